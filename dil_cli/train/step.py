"""One optimiser step's gradient: the mean loss over its pairs, whatever the micro-batches.

The loss is differentiated with respect to the log-probs first, then the log-probs with respect to the
weights: so dL/ds is known per pair, and a bad pair is found before it reaches a weight.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from dil_cli.data.batches import micro_batches
from dil_cli.dynamics.measure import Compute, forward_pairs
from dil_cli.errors import RunFailed
from dil_cli.losses import PreferenceLoss
from dil_cli.train.optimiser import clip_gradient
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOTHING = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Batch:
    """The pairs of one optimiser step and their reference log-probs (B,), None for a loss without one."""

    pairs: Sequence[TokenisedPair]
    reference_chosen_B: Tensor | None
    reference_rejected_B: Tensor | None

    def part(self, index: Sequence[int]) -> Batch:
        """The pairs at `index`."""
        take = torch.tensor(index)
        return Batch(
            [self.pairs[i] for i in index],
            None if self.reference_chosen_B is None else self.reference_chosen_B[take],
            None if self.reference_rejected_B is None else self.reference_rejected_B[take],
        )

    def reference_fingerprint(self) -> str | None:
        """sha256 over the reference log-probs, None without them."""
        if self.reference_chosen_B is None or self.reference_rejected_B is None:
            return None
        columns = self.reference_chosen_B.numpy().tobytes() + self.reference_rejected_B.numpy().tobytes()
        return hashlib.sha256(columns).hexdigest()


@dataclass(frozen=True)
class Gradient:
    """What a step measured: per-pair values in the order of the batch, all detached on the CPU.

    `weight_*_B` is |dL/ds|, the push of a pair's own loss on its log-ratio under the loss's reduction.
    """

    logps: PairLogps
    loss_B: Tensor
    weight_chosen_B: Tensor
    weight_rejected_B: Tensor
    guarded_B: Tensor
    tokens: int


def accumulate_gradient(model: PreTrainedModel, loss: PreferenceLoss, batch: Batch, compute: Compute) -> Gradient:
    """Add the gradient of the batch's mean loss to the weights, micro-batch by micro-batch.

    Raises:
        RunFailed: when a loss or its derivative is not finite, naming the rows of the pairs.
    """
    if not loss.needs_rejected:
        batch = replace(batch, pairs=[replace(pair, rejected=NOTHING) for pair in batch.pairs])
    groups = micro_batches(batch.pairs, compute.token_budget)
    parts = [_micro_batch(model, loss, batch.part(group), len(batch.pairs), compute) for group in groups]
    order = torch.tensor([i for group in groups for i in group]).argsort()
    return Gradient(
        logps=_gather([part.logps for part in parts], order),
        loss_B=torch.cat([part.loss_B for part in parts])[order],
        weight_chosen_B=torch.cat([part.weight_chosen_B for part in parts])[order],
        weight_rejected_B=torch.cat([part.weight_rejected_B for part in parts])[order],
        guarded_B=torch.cat([part.guarded_B for part in parts])[order],
        tokens=sum(part.tokens for part in parts),
    )


def apply_gradient(
    model: PreTrainedModel,
    optimisers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    clip: float | None,
    rescore: Callable[[Batch], object],
) -> float:
    """Clip, update the weights and clear the gradient; returns the gradient's norm before clipping.

    Args:
        model: holds the gradient.
        optimisers: step together.
        batch: the pairs the gradient came from.
        clip: limit of the norm.
        rescore: accumulates the gradient of a batch into the weights; used to find which pair broke it.

    Raises:
        RunFailed: when the norm is not finite; the weights are as they were before the step.
    """
    norm = clip_gradient(model, clip)
    if math.isfinite(norm):
        for optimiser in optimisers:
            optimiser.step()
        model.zero_grad(set_to_none=True)
        return norm
    rows = []
    for i, pair in enumerate(batch.pairs):
        model.zero_grad(set_to_none=True)
        rescore(batch.part([i]))
        if not math.isfinite(clip_gradient(model, None)):
            rows.append(pair.row)
    raise RunFailed(
        f"the gradient is not finite (norm {norm}); by itself already on {_named(rows)}",
        fix="look at these rows; lower optim.lr; keep loss.exp_cap set",
    )


def _micro_batch(
    model: PreTrainedModel, loss: PreferenceLoss, batch: Batch, batch_size: int, compute: Compute
) -> Gradient:
    graph = forward_pairs(model, batch.pairs, compute)
    chosen_B = graph.policy_chosen_B.detach().requires_grad_()
    rejected_B = graph.policy_rejected_B.detach().requires_grad_()
    logps = replace(
        graph,
        policy_chosen_B=chosen_B,
        policy_rejected_B=rejected_B,
        reference_chosen_B=_on(batch.reference_chosen_B, compute.device),
        reference_rejected_B=_on(batch.reference_rejected_B, compute.device),
    )
    out = loss(logps)
    slope_chosen_B, slope_rejected_B = torch.autograd.grad(
        out.loss_B.sum(), [chosen_B, rejected_B], materialize_grads=True
    )
    _refuse_non_finite(batch.pairs, out.loss_B, slope_chosen_B, slope_rejected_B)
    torch.autograd.backward(
        [graph.policy_chosen_B, graph.policy_rejected_B],
        [slope_chosen_B / batch_size, slope_rejected_B / batch_size],
    )
    per_token = loss.reduction.value == "mean"
    # s under the mean is the summed log-ratio over its tokens: dL/ds = dL/dlogp times the tokens.
    scale_chosen_B = logps.chosen_tokens_B if per_token else torch.ones_like(chosen_B)
    scale_rejected_B = logps.rejected_tokens_B if per_token else torch.ones_like(rejected_B)
    guarded_B = torch.zeros_like(chosen_B, dtype=torch.bool) if out.guarded_B is None else out.guarded_B
    return Gradient(
        logps=logps.map(lambda x_B: x_B.detach().cpu()),
        loss_B=out.loss_B.detach().cpu(),
        weight_chosen_B=(slope_chosen_B * scale_chosen_B).abs().cpu(),
        weight_rejected_B=(slope_rejected_B * scale_rejected_B).abs().cpu(),
        guarded_B=guarded_B.cpu(),
        tokens=sum(len(p.prompt) * (1 + (len(p.rejected) > 0)) + len(p.chosen) + len(p.rejected) for p in batch.pairs),
    )


def _refuse_non_finite(pairs: Sequence[TokenisedPair], *values_B: Tensor) -> None:
    bad_B = ~torch.stack([x_B.detach().isfinite() for x_B in values_B]).all(dim=0)
    if bad_B.any():
        rows = [pair.row for pair, bad in zip(pairs, bad_B.tolist(), strict=True) if bad]
        raise RunFailed(
            f"the loss or its slope is not finite on {_named(rows)}",
            fix="look at these rows; lower optim.lr; keep loss.exp_cap set",
        )


def _named(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return f"{len(rows)} pairs (rows {shown})" if rows else "no single pair"


def _gather(parts: Sequence[PairLogps], order: Tensor) -> PairLogps:
    first = parts[0]
    names = [name for name in vars(first) if getattr(first, name) is not None]
    return PairLogps(**{name: torch.cat([getattr(part, name) for part in parts])[order] for name in names})


def _on(x_B: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x_B is None else x_B.to(device)
