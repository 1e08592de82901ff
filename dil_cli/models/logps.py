"""Log-probabilities of responses under a causal language model.

Shapes: R rows, T tokens of the longest row, V vocabulary, B pairs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def response_logps(model: PreTrainedModel, input_ids_RT: Tensor, attention_RT: Tensor, scored_RT: Tensor) -> Tensor:
    """Summed log-prob of each row's scored tokens, float32 (R,), in nats.

    Token t is predicted from position t - 1, so `scored_RT` is false in column 0. The vocabulary
    is normalised in float32 and only where a scored token is predicted.
    """
    logits_RTV = model(input_ids=input_ids_RT, attention_mask=attention_RT, use_cache=False).logits
    predicts_RT = scored_RT[:, 1:]
    logits_NV = logits_RTV[:, :-1][predicts_RT].float()
    targets_N = input_ids_RT[:, 1:][predicts_RT]
    logps_N = -torch.nn.functional.cross_entropy(logits_NV, targets_N, reduction="none")
    row_N = predicts_RT.nonzero()[:, 0]
    return torch.zeros(len(input_ids_RT), device=logps_N.device).index_add(0, row_N, logps_N)
