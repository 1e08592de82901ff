"""Log-probs of response tokens from hidden states: the vocabulary head only where a token is scored, tile by tile.

Nothing of size tokens x vocabulary is ever kept: the backward pass computes each tile of logits again.

Shape suffixes: N scored tokens, n tokens of a tile, D hidden dimension, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TILE_BYTES = {"cpu": 32 * 2**20, "cuda": 512 * 2**20}
"""Size of a tile of float32 logits."""


@dataclass(frozen=True)
class Head:
    """The map from hidden states to logits: cap * tanh(scale (W h + b) / cap), each part where the model has it."""

    weight_VD: Tensor
    bias_V: Tensor | None
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: PreTrainedModel) -> Head | None:
        """The head of `model`; None where it has none that is known here."""
        get: Any = model.get_output_embeddings  # untyped in transformers
        linear = get()
        if not isinstance(linear, nn.Linear):
            return None
        config = model.config.get_text_config()
        # Cohere multiplies its logits, Granite divides them.
        scale = getattr(config, "logit_scale", None) or 1 / (getattr(config, "logits_scaling", None) or 1)
        return cls(linear.weight, linear.bias, scale, getattr(config, "final_logit_softcapping", None))


def token_logps(head: Head, hidden_ND: Tensor, targets_N: Tensor) -> Tensor:
    """Log-prob of each target (N,) in nats, float32 or better, after the hidden state that predicts it."""
    logps_N: Tensor = _TokenLogps.apply(  # type: ignore[no-untyped-call]
        hidden_ND, head.weight_VD, head.bias_V, targets_N, head.scale, head.softcap
    )
    return logps_N


class _TokenLogps(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        weight_VD: Tensor,
        bias_V: Tensor | None,
        targets_N: Tensor,
        scale: float,
        softcap: float | None,
    ) -> Tensor:
        ctx.scale, ctx.softcap = scale, softcap
        ctx.dtype = _compute_dtype(hidden_ND)
        ctx.save_for_backward(hidden_ND, weight_VD, bias_V, targets_N)
        logps_N = torch.empty(len(hidden_ND), dtype=_exact(ctx.dtype), device=hidden_ND.device)
        with torch.autocast(hidden_ND.device.type, enabled=False):
            h_ND, w_VD = hidden_ND.to(ctx.dtype), weight_VD.to(ctx.dtype)
            for rows in _tiles(hidden_ND, weight_VD):
                logits_nV, _ = _logits(h_ND[rows], w_VD, bias_V, ctx)
                target_n = logits_nV.gather(1, targets_N[rows, None])[:, 0]
                logps_N[rows] = target_n - logits_nV.logsumexp(dim=1)
        return logps_N

    @staticmethod
    def backward(ctx: Any, slope_N: Tensor) -> tuple[Tensor | None, ...]:
        hidden_ND, weight_VD, bias_V, targets_N = ctx.saved_tensors
        d_hidden_ND = torch.empty_like(hidden_ND)
        d_weight_VD = torch.zeros_like(weight_VD) if ctx.needs_input_grad[1] else None
        d_bias_V = torch.zeros_like(bias_V) if bias_V is not None else None
        with torch.autocast(hidden_ND.device.type, enabled=False):
            h_ND, w_VD = hidden_ND.to(ctx.dtype), weight_VD.to(ctx.dtype)
            for rows in _tiles(hidden_ND, weight_VD):
                logits_nV, bend_nV = _logits(h_ND[rows], w_VD, bias_V, ctx)
                # d log p(target) / d logit = 1 at the target, less the probability.
                slope_n1 = slope_N[rows, None].to(logits_nV.dtype)
                d_logits_nV = logits_nV.softmax(dim=1).mul_(-slope_n1)
                d_logits_nV.scatter_add_(1, targets_N[rows, None], slope_n1)
                if bend_nV is not None:
                    d_logits_nV.mul_(bend_nV)
                if d_bias_V is not None:
                    d_bias_V += d_logits_nV.sum(dim=0) * ctx.scale
                d_logits_nV = d_logits_nV.mul_(ctx.scale).to(ctx.dtype)
                d_hidden_ND[rows] = d_logits_nV @ w_VD
                if d_weight_VD is not None:
                    d_weight_VD += d_logits_nV.T @ h_ND[rows]
        return d_hidden_ND, d_weight_VD, d_bias_V, None, None, None


def _logits(h_nD: Tensor, w_VD: Tensor, bias_V: Tensor | None, ctx: Any) -> tuple[Tensor, Tensor | None]:
    """A tile of logits, float32 or better, and d(capped logit) / d(logit) if there is a cap."""
    logits_nV = (h_nD @ w_VD.T).to(_exact(ctx.dtype))
    if bias_V is not None:
        logits_nV += bias_V
    if ctx.scale != 1:
        logits_nV *= ctx.scale
    if ctx.softcap is None:
        return logits_nV, None
    tanh_nV = logits_nV.div_(ctx.softcap).tanh_()
    bend_nV = 1 - tanh_nV.square() if ctx.needs_input_grad[0] else None
    return tanh_nV * ctx.softcap, bend_nV


def _tiles(hidden_ND: Tensor, weight_VD: Tensor) -> Iterator[slice]:
    size = TILE_BYTES.get(hidden_ND.device.type, TILE_BYTES["cpu"])
    rows = max(1, size // (4 * len(weight_VD)))
    for start in range(0, len(hidden_ND), rows):
        yield slice(start, start + rows)


def _compute_dtype(x: Tensor) -> torch.dtype:
    """What autocast would multiply in."""
    kind = x.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else x.dtype


def _exact(dtype: torch.dtype) -> torch.dtype:
    return torch.promote_types(dtype, torch.float32)
