"""Against TRL 1.16 as installed: equal to 1e-6 where both have a loss, and exactly the known difference elsewhere.

Skipped unless `trl` is there: `make losses-trl`, or `pip install -e '.[trl]'` and this file. TRL's loss is the inside
of a trainer's method; it is called here on a stand-in for the trainer, with log-probs in place of a model.
"""

from __future__ import annotations

import importlib
import logging
import math
import warnings
from collections import defaultdict
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from dil_cli.losses import LOSSES, PreferenceLoss, Reduction
from dil_cli.losses.dpo import Divergence
from dil_cli.types import PairLogps

pytest.importorskip("trl", reason="TRL is an extra: make losses-trl")

PAIRS = 7
MEAN, SUM = Reduction.mean, Reduction.sum
RATIOS: dict[str, float] = {}
"""Largest relative difference by comparison, printed at the end."""


@pytest.fixture(autouse=True)
def _quiet():
    """TRL warns of what is experimental in it."""
    logging.disable(logging.WARNING)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
    logging.disable(logging.NOTSET)


class Batch:
    """Random token log-probs of `PAIRS` pairs, and what both sides take of them."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float64, equal_lengths: bool = False) -> None:
        noise = torch.Generator().manual_seed(seed)
        low, high = (12, 13) if equal_lengths else (2, 40)
        self.tokens = torch.randint(low, high, (2 * PAIRS,), generator=noise)
        width = int(self.tokens.max())
        self.mask = torch.arange(width)[None, :] < self.tokens[:, None]
        logps = -torch.rand(2 * PAIRS, width, generator=noise, dtype=torch.float64) * 3
        self.logps = (logps * self.mask).to(dtype).requires_grad_()
        shift = torch.randn(2 * PAIRS, generator=noise, dtype=torch.float64) * 4
        self.reference = (self.logps.detach().sum(dim=1) + shift).clamp(max=-0.1).to(dtype)

    def pairs(self) -> PairLogps:
        chosen, rejected = self.logps.sum(dim=1).chunk(2)
        return PairLogps(chosen, rejected, *self.tokens.chunk(2), *self.reference.chunk(2))


def of(loss: PreferenceLoss, batch: Batch) -> tuple[Tensor, Tensor]:
    """Our mean loss and its gradient by each token's log-prob."""
    value = loss(batch.pairs()).loss_B.mean()
    return value.detach(), torch.autograd.grad(value, batch.logps)[0] * batch.mask


def same(name: str, ours: tuple[Tensor, Tensor], theirs: tuple[Tensor, Tensor], atol: float = 0.0) -> None:
    """Value and gradient agree to 1e-6 of the largest number in each."""
    for mine, other in zip(ours, theirs, strict=True):
        scale = float(other.abs().max()) or 1.0
        difference = float((mine - other).abs().max()) / scale
        RATIOS[name] = max(RATIOS.get(name, 0.0), difference)
        assert difference <= 1e-6 + atol / scale, f"{name}: {mine} is not {other}"


def accelerator() -> SimpleNamespace:
    return SimpleNamespace(device=torch.device("cpu"), gather_for_metrics=lambda x: x, gather=lambda x: x)


def trl_dpo(batch: Batch, loss_type: str, **settings) -> tuple[Tensor, Tensor]:
    """DPOTrainer's own loss and its gradient by each token's log-prob."""
    from trl import DPOTrainer

    rows, width = batch.mask.shape
    nothing = torch.zeros(rows, width)
    outputs = SimpleNamespace(
        log_probs=batch.logps * batch.mask, entropy=nothing, mean_logits=nothing, is_top1=nothing.bool()
    )
    chosen, rejected = batch.reference.chunk(2)
    inputs = {
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1, dtype=torch.long),
        # One token of prompt, which is not scored, before the response.
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), batch.mask.long()], dim=1),
        "ref_chosen_logps": chosen,
        "ref_rejected_logps": rejected,
    }
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), aux_loss_enabled=False, ld_alpha=None,
        precompute_ref_logps=True, f_divergence_type="reverse_kl", f_alpha_divergence_coef=0.5, beta=0.1,
        loss_types=[loss_type], loss_weights=[1.0], label_smoothing=0.0, use_weighting=False,
        args=SimpleNamespace(), _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    vars(trainer).update(settings)
    value = DPOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return value.detach(), torch.autograd.grad(value, batch.logps)[0] * batch.mask


def loss(name: str, **settings) -> PreferenceLoss:
    return LOSSES[name](**settings)


# TRL's name and settings, ours; equal to the last digits.
EQUAL = {
    "sigmoid = dpo": ("sigmoid", {}, loss("dpo")),
    "sigmoid_norm = dpo on means": ("sigmoid_norm", {"beta": 2.0}, loss("dpo", beta=2.0, reduction=MEAN)),
    "robust = robust_dpo": ("robust", {"label_smoothing": 0.2}, loss("robust_dpo", epsilon=0.2)),
    "hinge = rso": ("hinge", {"beta": 0.3}, loss("rso", beta=0.3)),
    "ipo = ipo on means": ("ipo", {"beta": 0.5}, loss("ipo", tau=0.5)),
    "exo_pair = exo": ("exo_pair", {"label_smoothing": 1e-3}, loss("exo")),
    "nca_pair = nca": ("nca_pair", {}, loss("nca", beta=0.1)),
    "bco_pair = bco with delta 0": ("bco_pair", {}, loss("bco", delta=0.0)),
    "bco_pair at beta 1 = bce on sums": ("bco_pair", {"beta": 1.0}, loss("bce", reduction=SUM)),
    "sppo_hard = sppo": ("sppo_hard", {"beta": 0.05}, loss("sppo", beta=0.05)),
    "aot = aot": ("aot", {"label_smoothing": 0.1}, loss("aot", epsilon=0.1)),
    "aot_unpaired = aot, not paired": ("aot_unpaired", {}, loss("aot", paired=False)),
    "forward_kl = fdpo": (
        "sigmoid", {"f_divergence_type": "forward_kl"}, loss("fdpo", divergence=Divergence.forward_kl),
    ),
    "js_divergence = fdpo": ("sigmoid", {"f_divergence_type": "js_divergence"}, loss("fdpo")),
}  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", EQUAL)
def test_losses_that_both_have_are_equal(name, seed):
    loss_type, settings, ours = EQUAL[name]
    batch = Batch(seed)
    same(name, of(ours, batch), trl_dpo(batch, loss_type, **settings))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("name", ["apo_zero", "apo_down"])
def test_apo_of_trl_adds_one(name, seed):
    batch = Batch(seed)
    value, gradient = of(loss(name), batch)
    same(f"{name} + 1", (value + 1, gradient), trl_dpo(batch, name))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("alpha", [0.2, 0.5, 0.8])
def test_alpha_of_trl_is_one_less_the_paper_s(alpha, seed):
    """TRL computes the alpha divergence in float32 only."""
    batch = Batch(seed, torch.float32)
    theirs = trl_dpo(batch, "sigmoid", f_divergence_type="alpha_divergence", f_alpha_divergence_coef=1 - alpha)
    ours = of(loss("fdpo", divergence=Divergence.alpha, alpha=alpha), batch)
    same("alpha_divergence(1 - alpha) = fdpo", ours, theirs)


@pytest.mark.parametrize("seed", range(3))
def test_sigmoid_of_trl_ignores_label_smoothing(seed):
    batch = Batch(seed)
    smoothed = trl_dpo(batch, "sigmoid", label_smoothing=0.1)
    same("sigmoid, smoothed = dpo", of(loss("dpo"), batch), smoothed)
    assert not torch.allclose(of(loss("cdpo", epsilon=0.1), batch)[0], smoothed[0])


@pytest.mark.parametrize("seed", range(3))
def test_cdpo_is_the_sum_of_two_sigmoids_of_trl(seed):
    """TRL has no cDPO left; it is (1 - e) sigmoid(beta) + e sigmoid(-beta)."""
    batch = Batch(seed)
    won, lost = (trl_dpo(batch, "sigmoid", beta=beta) for beta in (0.1, -0.1))
    mixed = [0.9 * a + 0.1 * b for a, b in zip(won, lost, strict=True)]
    same("cdpo", of(loss("cdpo", epsilon=0.1), batch), (mixed[0], mixed[1]))


@pytest.mark.parametrize("seed", range(3))
def test_ipo_of_trl_is_not_ipo_on_sums_and_its_hinge_is_not_slic(seed):
    batch = Batch(seed)
    assert not torch.allclose(of(loss("ipo", tau=0.5, reduction=SUM), batch)[0], trl_dpo(batch, "ipo", beta=0.5)[0])
    assert not torch.allclose(of(loss("slic", lam=0, reduction=SUM), batch)[0], trl_dpo(batch, "hinge", beta=1.0)[0])


@pytest.mark.parametrize("seed", range(3))
def test_a_sum_of_losses_is_equal(seed):
    batch = Batch(seed)
    theirs = trl_dpo(batch, "", loss_types=["sigmoid", "ipo", "bco_pair"], loss_weights=[0.8, 0.2, 1.0], beta=0.3)
    terms = {
        "dpo": {"weight": 0.8, "beta": 0.3}, "ipo": {"weight": 0.2, "tau": 0.3},
        "bco": {"weight": 1.0, "beta": 0.3, "delta": 0.0},
    }  # fmt: skip
    same("loss_weights = combine", of(loss("combine", terms=terms), batch), theirs)


@pytest.mark.parametrize("seed", range(3))
def test_sft_of_trl_weighs_tokens_ours_responses(seed):
    """TRL takes one mean over all tokens of the batch: our sum over responses, divided by their tokens."""
    batch = Batch(seed)
    value, gradient = of(loss("sft", reduction=SUM), batch)
    factor = PAIRS / batch.tokens[:PAIRS].sum()
    same("sft per token", (value * factor, gradient * factor), trl_dpo(batch, "sft"))


def trl_kto(batch: Batch, loss_type: str, z: float, weights: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """KTOTrainer's own loss, the chosen responses as desirable and the rejected ones as undesirable examples."""
    from trl import KTOTrainer

    rows, width = batch.mask.shape
    inputs = {
        "label": torch.tensor([True] * PAIRS + [False] * PAIRS),
        "input_ids": torch.zeros(rows, width + 1, dtype=torch.long),
        "attention_mask": torch.ones(rows, width + 1, dtype=torch.long),
        "completion_mask": torch.cat([torch.zeros(rows, 1, dtype=torch.long), batch.mask.long()], dim=1),
        "ref_logps": batch.reference,
        "ref_KL_logps": torch.zeros(rows, dtype=torch.float64),
    }
    nothing = torch.zeros(rows, width)
    outputs = SimpleNamespace(log_probs=batch.logps * batch.mask, entropy=nothing, mean_logits=nothing)
    trainer = SimpleNamespace(
        model=SimpleNamespace(training=True), accelerator=accelerator(), aux_loss_enabled=False, loss_type=loss_type,
        precompute_ref_logps=True, calculate_KL=loss_type == "kto", beta=0.1, desirable_weight=weights[0],
        undesirable_weight=weights[1], _compute_kl_logps=lambda model, inputs: torch.full((rows,), z).double(),
        _metrics={"train": defaultdict(list)}, _total_train_tokens=0, _tp_size=1,
    )  # fmt: skip
    value = KTOTrainer._compute_loss(trainer, lambda **_: outputs, inputs, False)
    return value.detach(), torch.autograd.grad(value, batch.logps)[0] * batch.mask


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("weights", [(1.0, 1.0), (1.5, 0.5)])
def test_kto_of_trl_is_half_of_ours_for_one_z(weights, seed):
    """TRL averages over 2n responses; its z is of mismatched pairs, which a loss does not see, so z is given here."""
    batch = Batch(seed)
    value, gradient = of(loss("kto", z=1.75, lam_d=weights[0], lam_u=weights[1]), batch)
    same("kto / 2", (value / 2, gradient / 2), trl_kto(batch, "kto", 1.75, weights))


@pytest.mark.parametrize("seed", range(5))
def test_apo_zero_of_trl_s_unpaired_trainer_adds_one_and_halves(seed):
    batch = Batch(seed)
    value, gradient = of(loss("apo_zero"), batch)
    same("(apo_zero + 1) / 2", ((value + 1) / 2, gradient / 2), trl_kto(batch, "apo_zero_unpaired", 0.0, (1.0, 1.0)))


def trl_without_reference(kind: str, batch: Batch, **settings) -> tuple[Tensor, Tensor]:
    """CPOTrainer's or ORPOTrainer's loss with its likelihood term, a mean over all chosen tokens of the batch."""
    module = importlib.import_module(f"trl.experimental.{kind}")
    trainer_class = getattr(module, f"{kind.upper()}Trainer")
    averaged = kind == "orpo" or settings.get("loss_type") == "simpo"
    summed = (batch.logps * batch.mask).sum(dim=1)
    chosen, rejected = (summed / batch.tokens if averaged else summed).chunk(2)
    nll = -summed[:PAIRS].sum() / batch.tokens[:PAIRS].sum()
    zeros = torch.zeros(PAIRS)
    trainer = SimpleNamespace(
        accelerator=accelerator(), beta=0.1, alpha=0.0, label_smoothing=0.0, loss_type="sigmoid", cpo_alpha=1.0,
        aux_loss_enabled=False, concatenated_forward=lambda model, batch: (chosen, rejected, zeros, zeros, nll),
    )  # fmt: skip
    vars(trainer).update(settings)
    method = {"cpo": "cpo_loss", "orpo": "odds_ratio_loss"}[kind]
    setattr(trainer, method, lambda *args: getattr(trainer_class, method)(trainer, *args))
    value, _ = trainer_class.get_batch_loss_metrics(trainer, None, {})
    return value.detach(), torch.autograd.grad(value, batch.logps)[0] * batch.mask


@pytest.mark.parametrize("seed", range(5))
def test_simpo_is_equal(seed):
    batch = Batch(seed)
    theirs = trl_without_reference("cpo", batch, loss_type="simpo", simpo_gamma=1.6, beta=2.0, cpo_alpha=0.0)
    same("simpo", of(loss("simpo"), batch), theirs)


@pytest.mark.parametrize("seed", range(5))
def test_cpo_is_equal_but_for_the_unit_of_its_likelihood_term(seed):
    batch = Batch(seed)
    same("cpo without likelihood", of(loss("cpo", lam=0), batch), trl_without_reference("cpo", batch, cpo_alpha=0.0))
    # TRL's likelihood term is one mean over tokens: ours per token when all responses are equally long,
    equal = Batch(seed, equal_lengths=True)
    same(
        "cpo, equal lengths",
        of(loss("cpo", lam=0.7, nll=MEAN), equal),
        trl_without_reference("cpo", equal, cpo_alpha=0.7),
    )
    # and ours per response with lam divided by the mean length in general.
    lam = float(0.7 * PAIRS / batch.tokens[:PAIRS].sum())
    same("cpo, lam / mean length", of(loss("cpo", lam=lam), batch), trl_without_reference("cpo", batch, cpo_alpha=0.7))


@pytest.mark.parametrize("seed", range(5))
def test_slic_is_the_hinge_of_trl_s_cpo_but_for_the_unit_of_its_likelihood_term(seed):
    """That one is SLiC-HF's, on the policy's own log-probs; DPOTrainer's `hinge` is rso."""
    batch = Batch(seed)
    lam = float(0.7 * PAIRS / batch.tokens[:PAIRS].sum())
    theirs = trl_without_reference("cpo", batch, loss_type="hinge", beta=1.0, cpo_alpha=0.7)
    same("slic on sums, lam / mean length", of(loss("slic", lam=lam, reduction=SUM), batch), theirs)


@pytest.mark.parametrize("seed", range(5))
def test_orpo_is_equal_but_for_the_mean_of_its_likelihood_term(seed):
    """TRL computes the odds in float32, and the likelihood as one mean over tokens."""
    equal = Batch(seed, equal_lengths=True)
    same("orpo, equal lengths", of(loss("orpo"), equal), trl_without_reference("orpo", equal))
    batch = Batch(seed)
    likelihood = of(loss("sft"), batch)
    tokens = of(loss("sft", reduction=SUM), batch)
    factor = PAIRS / batch.tokens[:PAIRS].sum()
    ours = of(loss("orpo"), batch)
    moved = [mine - mean + total * factor for mine, mean, total in zip(ours, likelihood, tokens, strict=True)]
    same("orpo, token mean", (moved[0], moved[1]), trl_without_reference("orpo", batch))


def test_what_was_compared_is_reported(capsys):
    """Runs last: the largest differences, so that a run of this file says how close it came."""
    with capsys.disabled():
        print()
        for name, ratio in sorted(RATIOS.items()):
            print(f"  {name:<36} {ratio:.1e}")
    assert max(RATIOS.values()) < 1e-6
    assert math.isfinite(max(RATIOS.values()))
