"""Log-probabilities of responses under a causal language model: of a packed row, or of padded rows.

Shapes: R rows, T tokens of the longest row, N scored tokens, S responses, V vocabulary.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from dil_cli.models.packed_attention import PackRefused, check_called, set_stems
from dil_cli.models.response_head import Head, token_logps
from dil_cli.types import Pack

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def packed_logps(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Summed log-prob of each response in the pack, float32 or better (2B,), in nats; chosen first.

    The model's attention must be one of `packed_attention` (`dynamics/layout.py` sets and checks it).

    Raises:
        PackRefused: when the model does not use that attention, or its head is none that is known.
    """
    head = Head.of(model)
    if head is None:
        raise PackRefused("its vocabulary head is not a linear layer")
    set_stems(pack.stems)
    body: Any = model.base_model
    hidden_TD = body(
        input_ids=pack.input_ids_T[None], position_ids=pack.positions_T[None], use_cache=False
    ).last_hidden_state[0]
    check_called()
    logps_N = token_logps(head, hidden_TD.index_select(0, pack.places_N), pack.targets_N)
    return logps_N.new_zeros(2 * pack.pairs).index_add(0, pack.responses_N, logps_N)


def padded_logps(model: PreTrainedModel, input_ids_RT: Tensor, attention_RT: Tensor, scored_RT: Tensor) -> Tensor:
    """Summed log-prob of each row's scored tokens, float32 or better (R,), in nats, by the model's own logits.

    Token t is predicted from position t - 1, so `scored_RT` is false in column 0.
    """
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=attention_RT, use_cache=False).logits
    predicts_RT = scored_RT[:, 1:]
    logits_NV = logits_RTV[:, :-1][predicts_RT]
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    targets_N = input_ids_RT[:, 1:][predicts_RT]
    logps_N = -torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    row_N = predicts_RT.nonzero()[:, 0]
    return logps_N.new_zeros(len(input_ids_RT)).index_add(0, row_N, logps_N)
