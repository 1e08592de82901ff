"""Muon on a CPU: what an update is, and that it is torch's in float32."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from dil_cli.train.muon import Muon, orthogonal

SETTINGS = {"lr": 0.02, "momentum": 0.9, "weight_decay": 0.05}
QUINTIC = (3.4445, -4.7750, 2.0315)
SHAPES = [(6, 6), (5, 12), (12, 5), (64, 176)]


def matrices(dtype: torch.dtype = torch.float32) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(1)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]


def trained(
    optimiser: type[torch.optim.Muon], dtype: torch.dtype = torch.float32, **settings: object
) -> list[nn.Parameter]:
    """After five steps on gradients of very different sizes."""
    generator = torch.Generator().manual_seed(2)
    weights = matrices(dtype)
    muon = optimiser(weights, **{**SETTINGS, **settings})
    for step in range(5):
        for p in weights:
            p.grad = (10.0 ** (step - 3) * torch.randn(p.shape, generator=generator)).to(dtype)
        muon.step()
    return weights


@pytest.mark.parametrize("shape", SHAPES)
def test_the_singular_vectors_stay_and_the_values_come_near_one(shape):
    matrix = torch.randn(shape, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    s = s.clamp(min=0.1 * s.max())  # five iterations lift no smaller ones
    found = u.T @ orthogonal(u * s @ vh, QUINTIC, steps=5, eps=1e-7) @ vh.T
    assert torch.allclose(found, found.diagonal().diag(), atol=1e-9)
    assert 0.65 < found.diagonal().min() < found.diagonal().max() < 1.25


@pytest.mark.parametrize("nesterov", [True, False])
def test_an_update_is_that_of_torch_up_to_its_bfloat16(nesterov):
    ours, theirs = trained(Muon, nesterov=nesterov), trained(torch.optim.Muon, nesterov=nesterov)
    for start, p, q in zip(matrices(), ours, theirs, strict=True):
        assert (p - q).norm() < 0.02 * (q - start).norm()
        assert not torch.equal(p, q)  # a CPU's would be torch's if it were bfloat16 too


def test_weights_may_be_in_bfloat16():
    coarse, fine = trained(Muon, torch.bfloat16, lr=0.5), trained(Muon, lr=0.5)
    for start, p, q in zip(matrices(), coarse, fine, strict=True):
        assert p.dtype == torch.bfloat16
        assert (p.float() - q).norm() < 0.05 * (q - start).norm()


def test_a_matrix_without_a_gradient_and_one_of_zeros():
    still, zeros = (nn.Parameter(torch.ones(3, 4)) for _ in range(2))
    zeros.grad = torch.zeros(3, 4)
    loss = Muon([still, zeros], **{**SETTINGS, "weight_decay": 0.0}).step(lambda: 3.0)
    assert loss == 3.0
    assert torch.equal(still, torch.ones(3, 4))
    assert torch.equal(zeros, torch.ones(3, 4))


def test_its_state_is_that_of_torch():
    """So that a run begun with either goes on with the other."""
    p = nn.Parameter(torch.randn(3, 4))
    p.grad = torch.ones(3, 4)
    states = []
    for optimiser in (Muon, torch.optim.Muon):
        muon = optimiser([p], **SETTINGS)
        muon.step()
        states.append(muon.state_dict())
    assert states[0].keys() == states[1].keys()
    assert states[0]["param_groups"] == states[1]["param_groups"]
    assert torch.equal(states[0]["state"][0]["momentum_buffer"], states[1]["state"][0]["momentum_buffer"])
