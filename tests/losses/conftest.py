"""Pairs by hand, and the losses' gradients."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor

from dil_cli.losses import PreferenceLoss
from dil_cli.types import PairLogps

MakePairs = Callable[..., PairLogps]
ValueAndGradients = Callable[[PreferenceLoss, PairLogps], tuple[Tensor, Tensor, Tensor]]


def _make_pairs(
    chosen: Sequence[float],
    rejected: Sequence[float],
    reference_chosen: Sequence[float] | None = None,
    reference_rejected: Sequence[float] | None = None,
    *,
    tokens: tuple[Sequence[int], Sequence[int]] | None = None,
    dtype: torch.dtype = torch.float64,
) -> PairLogps:
    counts = tokens or ([1] * len(chosen), [1] * len(rejected))
    reference = [None if x is None else torch.tensor(x, dtype=dtype) for x in (reference_chosen, reference_rejected)]
    return PairLogps(
        policy_chosen_B=torch.tensor(chosen, dtype=dtype),
        policy_rejected_B=torch.tensor(rejected, dtype=dtype),
        chosen_tokens_B=torch.tensor(counts[0]),
        rejected_tokens_B=torch.tensor(counts[1]),
        reference_chosen_B=reference[0],
        reference_rejected_B=reference[1],
    )


def _value_and_gradients(
    loss: PreferenceLoss, pairs: PairLogps, *, coupled: bool = True
) -> tuple[Tensor, Tensor, Tensor]:
    if loss.couples_batch and not coupled:
        ones = [
            _value_and_gradients(loss, pairs.map(lambda x_B, i=i: x_B[i : i + 1]))
            for i in range(len(pairs.chosen_tokens_B))
        ]
        return tuple(torch.cat(column) for column in zip(*ones, strict=True))
    chosen_B = pairs.policy_chosen_B.clone().requires_grad_()
    rejected_B = pairs.policy_rejected_B.clone().requires_grad_()
    leaves = PairLogps(
        policy_chosen_B=chosen_B,
        policy_rejected_B=rejected_B,
        chosen_tokens_B=pairs.chosen_tokens_B,
        rejected_tokens_B=pairs.rejected_tokens_B,
        reference_chosen_B=pairs.reference_chosen_B,
        reference_rejected_B=pairs.reference_rejected_B,
    )
    loss_B = loss(leaves).loss_B
    gradients = torch.autograd.grad(loss_B.sum(), (chosen_B, rejected_B), allow_unused=True, materialize_grads=True)
    return loss_B.detach(), gradients[0], gradients[1]


@pytest.fixture(scope="session")
def make_pairs() -> MakePairs:
    """Pairs from summed log-probs: chosen, rejected, their references; `tokens=(chosen, rejected)` or 1."""
    return _make_pairs


@pytest.fixture(scope="session")
def value_and_gradients() -> ValueAndGradients:
    """The losses (B,) and the gradients (B,) of their sum with respect to the summed log-probs of the policy.

    `coupled=False` takes each pair as a batch of its own.
    """
    return _value_and_gradients
