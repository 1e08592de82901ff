"""Log-probabilities of responses under a causal language model: of a packed row, or of padded rows.

Shapes: R rows, T tokens of the longest row, N scored tokens, S responses, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from types import MethodType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from dil_cli.models.matmul import shape_step
from dil_cli.models.packed_attention import PackRefused, check_called, set_stems
from dil_cli.models.response_head import Head, token_logps
from dil_cli.types import Pack, Stem

if TYPE_CHECKING:
    from transformers import PreTrainedModel


PASSES = "passes"
"""Method of a model whose weights lie in parts, which are gathered for a call of it."""


def let_pass(model: PreTrainedModel) -> None:
    """Give `model` the method `PASSES`, through which rows then go."""
    setattr(model, PASSES, MethodType(_pass, model))


def _pass(model: PreTrainedModel, way: Callable[..., Tensor], *rows: Any) -> Tensor:
    return way(model, *rows)


def packed_logps(model: PreTrainedModel, pack: Pack) -> Tensor:
    """Summed log-prob of each response in the pack, float32 or better (2B,), in nats; chosen first.

    The model's attention must be one of `packed_attention` (`dynamics/layout.py` sets and checks it).

    Raises:
        PackRefused: when the model does not use that attention, or its head is none that is known.
    """
    return _passed(model, _packed_logps, pack)


def _packed_logps(model: PreTrainedModel, pack: Pack) -> Tensor:
    head = Head.of(model)
    if head is None:
        raise PackRefused("its vocabulary head is not a linear layer")
    row = _rounded(pack)
    set_stems(row.stems)
    body: Any = model.base_model
    hidden_TD = body(
        input_ids=row.input_ids_T[None], position_ids=row.positions_T[None], use_cache=False
    ).last_hidden_state[0]
    check_called()
    logps_N = token_logps(head, hidden_TD.index_select(0, row.places_N), row.targets_N)[: len(pack.responses_N)]
    return logps_N.new_zeros(2 * pack.pairs).index_add(0, pack.responses_N, logps_N)


def _rounded(pack: Pack) -> Pack:
    """The pack with tokens and scored places added at its end, until their numbers are multiples of `shape_step`.

    The added tokens see themselves only, and no log-prob of theirs is used: they change no value and no gradient.
    """
    step = shape_step(pack.input_ids_T.device)
    tokens, places = -len(pack.input_ids_T) % step, -len(pack.targets_N) % step
    added = (Stem(start=len(pack.input_ids_T), prompt=tokens, branches=()),) if tokens else ()
    return replace(
        pack,
        input_ids_T=pad(pack.input_ids_T, (0, tokens)),
        positions_T=torch.cat([pack.positions_T, torch.arange(tokens, device=pack.positions_T.device)]),
        stems=(*pack.stems, *added),
        places_N=pad(pack.places_N, (0, places)),
        targets_N=pad(pack.targets_N, (0, places)),
    )


def padded_logps(model: PreTrainedModel, input_ids_RT: Tensor, attention_RT: Tensor, scored_RT: Tensor) -> Tensor:
    """Summed log-prob of each row's scored tokens, float32 or better (R,), in nats, by the model's own logits.

    Token t is predicted from position t - 1, so `scored_RT` is false in column 0.
    """
    return _passed(model, _padded_logps, input_ids_RT, attention_RT, scored_RT)


def _passed(model: PreTrainedModel, way: Callable[..., Tensor], *rows: Any) -> Tensor:
    own: Callable[..., Tensor] | None = getattr(model, PASSES, None)
    return way(model, *rows) if own is None else own(way, *rows)


def _padded_logps(model: PreTrainedModel, input_ids_RT: Tensor, attention_RT: Tensor, scored_RT: Tensor) -> Tensor:
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=attention_RT, use_cache=False).logits
    predicts_RT = scored_RT[:, 1:]
    logits_NV = logits_RTV[:, :-1][predicts_RT]
    logits_NV = logits_NV.to(torch.promote_types(logits_NV.dtype, torch.float32))
    targets_N = input_ids_RT[:, 1:][predicts_RT]
    logps_N = -torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    row_N = predicts_RT.nonzero()[:, 0]
    return logps_N.new_zeros(len(input_ids_RT)).index_add(0, row_N, logps_N)
