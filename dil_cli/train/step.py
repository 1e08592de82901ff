"""One optimiser step's gradient: the mean loss over its pairs, whatever the micro-batches.

The loss is differentiated with respect to the log-probs first, then the log-probs with respect to the
weights: so dL/ds is known per pair, and a bad pair is found before it reaches a weight. A loss with a statistic of
the batch is differentiated once, on the log-probs of the whole batch, and each micro-batch is then computed again.
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

from dil_cli.data.packing import packed_tokens
from dil_cli.distributed.tensors import total_norm
from dil_cli.distributed.tensors import whole as whole_tensor
from dil_cli.dynamics.measure import Compute, Share, forward_pairs, score_pairs, share_of
from dil_cli.errors import RunFailed
from dil_cli.losses import PreferenceLoss
from dil_cli.train.clock import Part, StepClock
from dil_cli.train.optimiser import clear_gradient, clip_gradient
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

NOTHING = np.empty(0, dtype=np.int32)


class WeightsLost(RunFailed):
    """The policy holds NaN or infinity: nothing of it is worth keeping."""


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

    `slope_*_B` is d(sum of the losses) / d(summed log-prob) of each response. `tokens` are those that must be read:
    each prompt once, whatever the layout of the rows.
    """

    logps: PairLogps
    loss_B: Tensor
    slope_chosen_B: Tensor
    slope_rejected_B: Tensor
    guarded_B: Tensor
    tokens: int
    per_token: bool

    @property
    def weight_chosen_B(self) -> Tensor:
        """|dL/ds_w|, the push on the log-ratio of the chosen response under the loss's reduction."""
        return self._weight(self.slope_chosen_B, self.logps.chosen_tokens_B)

    @property
    def weight_rejected_B(self) -> Tensor:
        """|dL/ds_l|, the push on the log-ratio of the rejected response under the loss's reduction."""
        return self._weight(self.slope_rejected_B, self.logps.rejected_tokens_B)

    def slopes(self, index: Sequence[int] | slice = slice(None)) -> list[Tensor]:
        """The slopes of the pairs at `index`, of all without it: chosen, rejected."""
        return [self.slope_chosen_B[index], self.slope_rejected_B[index]]

    def _weight(self, slope_B: Tensor, tokens_B: Tensor) -> Tensor:
        # s under the mean is the summed log-ratio over its tokens: dL/ds = dL/dlogp times the tokens.
        return (slope_B * tokens_B if self.per_token else slope_B).abs()


def accumulate_gradient(
    model: PreTrainedModel, loss: PreferenceLoss, batch: Batch, compute: Compute, clock: StepClock | None = None
) -> Gradient:
    """Add the gradient of the batch's mean loss to the weights, micro-batch by micro-batch.

    Each process computes its share of the pairs; gradient and measurements are those of the whole batch in all of them;
    `clock` hears how long they exchange them.

    Raises:
        RunFailed: when a loss or its derivative is not finite, naming the rows of the pairs.
    """
    batch = replace(batch, pairs=as_read(batch.pairs, loss))
    share = share_of(batch.pairs, compute)
    whole = None
    if loss.couples_batch and (len(share.own) > 1 or not compute.world.alone):
        whole = differentiate(loss, batch, score_pairs(model, batch.pairs, compute))
        _refuse_non_finite(batch.pairs, whole)
    parts = []
    for group in share.own:
        part = batch.part(group)
        graph = forward_pairs(model, part.pairs, compute)
        if whole is None:
            parts.append(differentiate(loss, part, graph))
        slopes = parts[-1].slopes() if whole is None else whole.slopes(group)
        # What is not finite is refused below, by all processes alike; until then no weight shall see it.
        _backward(graph, [slope_B.nan_to_num(0, 0, 0) / len(batch.pairs) for slope_B in slopes], compute)
    for group in share.fillers:
        graph = forward_pairs(model, batch.part(group).pairs, compute)
        _backward(graph, [torch.zeros(len(group))] * 2, compute)
    with (clock or StepClock()).part(Part.communication):
        compute.world.add_gradients(model.parameters())
        gathered = whole or _gather(parts, share, batch, loss, compute)
    _refuse_non_finite(batch.pairs, gathered)
    return gathered


def _backward(graph: PairLogps, slopes: Sequence[Tensor], compute: Compute) -> None:
    """Add the slopes times the derivatives of the log-probs to the gradient."""
    world, ends = compute.world, [graph.policy_chosen_B, graph.policy_rejected_B]
    # Sharded weights take the mean over the processes in the backward pass, and a step's gradient is the sum.
    factor = world.size if world.sharded else 1
    torch.autograd.backward(ends, [slope_B.to(end_B) * factor for slope_B, end_B in zip(slopes, ends, strict=True)])


def as_read(pairs: Sequence[TokenisedPair], loss: PreferenceLoss) -> Sequence[TokenisedPair]:
    """The pairs as a step reads them: without the rejected response where the loss does not look at it."""
    return pairs if loss.needs_rejected else [replace(pair, rejected=NOTHING) for pair in pairs]


def differentiate(loss: PreferenceLoss, batch: Batch, policy: PairLogps) -> Gradient:
    """The losses of the pairs of `batch`, whose policy log-probs are `policy`, and their slopes."""
    device = policy.policy_chosen_B.device
    chosen_B = policy.policy_chosen_B.detach().requires_grad_()
    rejected_B = policy.policy_rejected_B.detach().requires_grad_()
    logps = replace(
        policy,
        policy_chosen_B=chosen_B,
        policy_rejected_B=rejected_B,
        reference_chosen_B=_on(batch.reference_chosen_B, device),
        reference_rejected_B=_on(batch.reference_rejected_B, device),
    )
    out = loss(logps)
    slopes = torch.autograd.grad(out.loss_B.sum(), [chosen_B, rejected_B], materialize_grads=True)
    logps = logps.map(lambda x_B: x_B.detach().cpu())
    return Gradient(
        logps=logps,
        loss_B=out.loss_B.detach().cpu(),
        slope_chosen_B=slopes[0].cpu(),
        slope_rejected_B=slopes[1].cpu(),
        guarded_B=torch.zeros(len(batch.pairs), dtype=torch.bool) if out.guarded_B is None else out.guarded_B.cpu(),
        tokens=sum(map(packed_tokens, batch.pairs)),
        per_token=loss.reduction.value == "mean",
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
        WeightsLost: when the update itself gave weights that are not finite.
        RunFailed: when the norm is not finite; the weights are as they were before the step.
    """
    norm = clip_gradient(model, clip)
    if math.isfinite(norm):
        for optimiser in optimisers:
            optimiser.step()
        _refuse_lost_weights(model)
        clear_gradient(optimisers)
        return norm
    rows = []
    for i, pair in enumerate(batch.pairs):
        clear_gradient(optimisers)
        rescore(batch.part([i]))
        if not math.isfinite(clip_gradient(model, None)):
            rows.append(pair.row)
    raise RunFailed(
        f"the gradient is not finite (norm {norm}); by itself already on {_named(rows)}",
        fix="look at these rows; lower optim.lr; keep loss.exp_cap set",
    )


def _refuse_lost_weights(model: PreTrainedModel) -> None:
    """A norm over all weights costs one pass over them; which one it was is asked only afterwards."""
    if total_norm(p for p in model.parameters() if p.requires_grad).isfinite():
        return
    names = [name for name, parameter in model.named_parameters() if not whole_tensor(parameter).isfinite().all()]
    raise WeightsLost(
        f"the update gave weights that are not finite ({names[0] if names else 'too large'}), from a finite gradient",
        fix="lower optim.lr; raise optim.eps",
    )


def _refuse_non_finite(pairs: Sequence[TokenisedPair], gradient: Gradient) -> None:
    """Name the pairs whose own log-probs are not finite or, where all are, whose loss or slope is not."""
    results = [gradient.loss_B, gradient.slope_chosen_B, gradient.slope_rejected_B]
    inputs = [x_B for name, x_B in vars(gradient.logps).items() if x_B is not None and not name.endswith("tokens_B")]
    # A log-ratio of -inf has a finite loss under most losses, and means nothing.
    if all(x_B.isfinite().all() for x_B in [*inputs, *results]):
        return
    bad_B = _non_finite(inputs)
    # In a batch that is coupled, one bad log-prob makes the loss of every pair bad.
    if not bad_B.any():
        bad_B = _non_finite(results)
    rows = [pair.row for pair, bad in zip(pairs, bad_B.tolist(), strict=True) if bad]
    raise RunFailed(
        f"the loss or its slope is not finite on {_named(rows)}",
        fix="look at these rows; lower optim.lr; keep loss.exp_cap set",
    )


def _non_finite(values_B: Sequence[Tensor]) -> Tensor:
    return ~torch.stack(list(values_B)).isfinite().all(dim=0)


def _named(rows: Sequence[int]) -> str:
    shown = ", ".join(map(str, rows[:8])) + (", ..." if len(rows) > 8 else "")
    return f"{len(rows)} pairs (rows {shown})" if rows else "no single pair"


def _gather(parts: Sequence[Gradient], share: Share, batch: Batch, loss: PreferenceLoss, compute: Compute) -> Gradient:
    """The micro-batches' measurements, of all processes, as one in the order of the batch."""
    index = torch.tensor([i for group in share.own for i in group], dtype=torch.long)

    def column(values: Sequence[Tensor]) -> Tensor:
        own = torch.cat([*values]) if values else torch.zeros(0)  # a process of more than there are pairs has none
        return own.new_zeros(len(batch.pairs)).index_copy(0, index, own)

    chosen_B, rejected_B, loss_B, slope_chosen_B, slope_rejected_B, guarded_B = compute.world.joined(
        [
            column([part.logps.policy_chosen_B for part in parts]),
            column([part.logps.policy_rejected_B for part in parts]),
            column([part.loss_B for part in parts]),
            column([part.slope_chosen_B for part in parts]),
            column([part.slope_rejected_B for part in parts]),
            column([part.guarded_B for part in parts]),
        ]
    )
    return Gradient(
        logps=PairLogps(
            policy_chosen_B=chosen_B,
            policy_rejected_B=rejected_B,
            chosen_tokens_B=torch.tensor([len(pair.chosen) for pair in batch.pairs]),
            rejected_tokens_B=torch.tensor([len(pair.rejected) for pair in batch.pairs]),
            reference_chosen_B=batch.reference_chosen_B,
            reference_rejected_B=batch.reference_rejected_B,
        ),
        loss_B=loss_B,
        slope_chosen_B=slope_chosen_B,
        slope_rejected_B=slope_rejected_B,
        guarded_B=guarded_B,
        tokens=sum(map(packed_tokens, batch.pairs)),
        per_token=loss.reduction.value == "mean",
    )


def _on(x_B: Tensor | None, device: torch.device) -> Tensor | None:
    return None if x_B is None else x_B.to(device)
