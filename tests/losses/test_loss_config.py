"""Losses as configs: the registry, the structured config of each, and the refusals."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import ClassVar

import pytest
import torch
from every_loss import EVERY, PINNED, label, usual
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dil_cli
from dil_cli.config.compose import loss_schema
from dil_cli.errors import DilError
from dil_cli.losses import (
    BCE,
    DPO,
    LOSSES,
    LSIF,
    UKL,
    Combine,
    Reduction,
    ReferenceSamples,
    SimPO,
    SLiC,
    check_loss,
    convex,
    loss_class,
    register,
)
from dil_cli.losses.dpo import Divergence
from dil_cli.types import LossOutput

MEAN, SUM = Reduction.mean, Reduction.sum
REJECTED = {"reference_samples": ReferenceSamples.rejected}
CAP = {"exp_cap": 30.0}
# needs_reference, needs_rejected, couples_batch, and the defaults that a user sees.
EXPECTED = {
    "sft": (0, 0, 0, {"reduction": MEAN}),
    "lsif": (1, 1, 0, {"reduction": MEAN, **CAP, **REJECTED}),
    "bce": (1, 1, 0, {"reduction": MEAN, **REJECTED}),
    "ukl": (1, 1, 0, {"reduction": MEAN, **CAP, **REJECTED}),
    "ukl_official": (1, 1, 0, {"reduction": MEAN, **CAP, **REJECTED}),
    "power": (1, 1, 0, {"alpha": 0.5, "reduction": MEAN, **CAP, **REJECTED}),
    "jeffreys": (1, 1, 0, {"reduction": MEAN, **CAP, **REJECTED}),
    "brier": (1, 1, 0, {"reduction": MEAN, **REJECTED}),
    "rulsif": (1, 1, 0, {"alpha": 0.1, "reduction": MEAN, **REJECTED}),
    "kliep": (1, 1, 1, {"reduction": MEAN, **REJECTED}),
    "bregman": (1, 1, 0, {"h": "lsif", "reduction": MEAN, **CAP, **REJECTED}),
    "dpo": (1, 1, 0, {"beta": 0.1, "reduction": SUM}),
    "cdpo": (1, 1, 0, {"beta": 0.1, "epsilon": 0.1, "reduction": SUM}),
    "robust_dpo": (1, 1, 0, {"beta": 0.1, "epsilon": 0.1, "reduction": SUM}),
    "fdpo": (1, 1, 0, {"divergence": Divergence.js, "beta": 0.1, "alpha": None, "reduction": SUM, **CAP}),
    "rdpo": (1, 1, 0, {"beta": 0.1, "alpha": 0.05, "sign": 1, "reduction": SUM}),
    "dpop": (1, 1, 0, {"beta": 0.3, "lam": 50.0, "reduction": SUM}),
    "ipo": (1, 1, 0, {"tau": 0.1, "reduction": MEAN}),
    "rso": (1, 1, 0, {"beta": 0.1, "reduction": SUM}),
    "exo": (1, 1, 0, {"beta": 0.1, "epsilon": 1e-3, "reduction": SUM}),
    "aot": (1, 1, 1, {"paired": True, "beta": 0.1, "epsilon": 0.0, "reduction": SUM}),
    "nca": (1, 1, 0, {"beta": 0.01, "reduction": SUM}),
    "bco": (1, 1, 1, {"beta": 0.1, "delta": None, "reduction": SUM}),
    "kto": (1, 1, 1, {"beta": 0.1, "lam_d": 1.0, "lam_u": 1.0, "z": None, "reduction": SUM}),
    "apo_zero": (1, 1, 0, {"beta": 0.1, "reduction": SUM}),
    "apo_down": (1, 1, 0, {"beta": 0.1, "reduction": SUM}),
    "cal_dpo": (1, 1, 0, {"beta": 1e-3, "weight": 1.0, "reduction": SUM}),
    "sppo": (1, 1, 0, {"beta": 1e-3, "reduction": SUM}),
    "slic": (0, 1, 0, {"delta": 1.0, "lam": 0.1, "reduction": MEAN}),
    "simpo": (0, 1, 0, {"beta": 2.0, "gamma": 1.6, "reduction": MEAN}),
    "cpo": (0, 1, 0, {"beta": 0.1, "lam": 1.0, "nll": SUM, "reduction": SUM}),
    "orpo": (0, 1, 0, {"lam": 0.1, "reduction": MEAN}),
    "rrhf": (0, 1, 0, {"lam": 1.0, "nll": SUM, "reduction": MEAN}),
    "simper": (0, 1, 0, {"reduction": MEAN}),
    "combine": (1, 1, 0, {"terms": {}}),
}


def test_the_registry_knows_them_by_their_own_names():
    assert EXPECTED.keys() == PINNED
    assert LOSSES.keys() >= PINNED
    assert all(loss.name == name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_loss_says_of_itself(name):
    *flags, defaults = EXPECTED[name]
    loss = usual(name)
    assert [loss.needs_reference, loss.needs_rejected, loss.couples_batch] == flags
    assert {f.name: getattr(loss, f.name) for f in fields(loss) if f.name != "terms"} | (
        {"terms": {}} if name == "combine" else {}
    ) == defaults
    assert loss_class(name) is type(loss)


@pytest.mark.parametrize("name", EXPECTED)
def test_round_trip_through_a_structured_config(name):
    node = loss_schema(LOSSES[name])
    own = {f.name: getattr(usual(name), f.name) for f in fields(LOSSES[name])}
    assert OmegaConf.to_object(OmegaConf.merge(node, own)) == usual(name)
    text = {
        "beta": "0.25", "gamma": 0.5, "delta": 3, "lam": 0, "lam_d": 2, "lam_u": 3, "z": 1, "tau": "1e-1", "weight": 2,
        "exp_cap": None, "epsilon": 0.2, "sign": -1, "paired": "false", "nll": "mean", "divergence": "alpha",
        "alpha": 0.25, "h": "ukl", "terms": {"dpo": {"weight": 1, "beta": 3}}, "reference_samples": "both",
        "reduction": usual(name).reduction.value,
    }  # fmt: skip
    values = text | {
        "beta": 0.25, "tau": 0.1, "paired": False, "nll": MEAN, "divergence": Divergence.alpha,
        "reference_samples": ReferenceSamples.both, "reduction": usual(name).reduction,
    }  # fmt: skip
    changed = OmegaConf.to_object(OmegaConf.merge(node, {key: text[key] for key in own}))
    assert type(changed) is LOSSES[name]
    assert {key: getattr(changed, key) for key in own} == {key: values[key] for key in own}


@pytest.mark.parametrize("name", sorted(EXPECTED.keys() - {"combine"}))
@pytest.mark.parametrize("change", [{"betta": 1}, {"reduction": "median"}, {"reduction": None}])
def test_a_typo_fails_when_the_config_is_composed(name, change):
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(loss_schema(LOSSES[name]), change)


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_every_loss_passes_the_check_of_a_user_s_own(loss):
    check_loss(loss)


@pytest.mark.parametrize("loss", EVERY, ids=label)
def test_a_value_is_a_value_whatever_else_is_set(loss):
    """Fields are all there is: an equal set of them makes an equal loss."""
    assert replace(loss) == loss


@pytest.mark.parametrize("loss", [x for x in EVERY if x.name not in {"bregman", "combine"}], ids=label)
def test_every_field_changes_something(loss, make_pairs):
    """No setting is ignored: another value gives another loss, on pairs made to need all of them."""
    pairs = make_pairs([-40, -2, 60], [-20, -60, -1], [-9, -80, 0], [-50, -3, -1], tokens=([1, 2, 4], [2, 1, 3]))
    other = {
        "beta": 0.7, "gamma": 0.4, "delta": 0.3, "lam": 3.0, "lam_d": 3.0, "lam_u": 3.0, "z": 9.0, "tau": 0.7,
        "weight": 3.0, "exp_cap": 0.5, "epsilon": 0.3, "sign": -loss.sign if loss.name == "rdpo" else 1,
        "paired": not getattr(loss, "paired", True), "alpha": 0.3,
        "nll": MEAN if getattr(loss, "nll", SUM) == SUM else SUM,
        "divergence": Divergence.reverse_kl if getattr(loss, "alpha", 0) is None else Divergence.alpha,
    }  # fmt: skip
    (given,) = REJECTED.values()
    other["reference_samples"] = ReferenceSamples.both if getattr(loss, "reference_samples", 0) == given else given
    for f in fields(loss):
        if f.name == "reduction" or (loss.name == "fdpo" and f.name in {"alpha", "exp_cap", "divergence"}):
            continue  # fdpo: which apply depends on the divergence; tested below and with the guards
        if f.name not in other:  # one of a new loss: a switch is turned, a number moved
            value = getattr(loss, f.name)
            other[f.name] = not value if isinstance(value, bool) else value * 3
        changed = replace(loss, **{f.name: other[f.name]})
        assert not torch.allclose(changed(pairs).loss_B, loss(pairs).loss_B), f.name


@pytest.mark.parametrize("loss", [LSIF(exp_cap=40), UKL(exp_cap=0.5), SLiC(lam=0), SimPO(gamma=0)])
def test_the_edges_are_allowed(loss):
    assert loss == type(loss)(**vars(loss))


def test_a_ratio_without_reference_log_probs_is_refused(make_pairs):
    with pytest.raises(DilError) as caught:
        BCE()(make_pairs([-1], [-2]))
    assert str(caught.value) == (
        "error: the loss uses reference log-probs and these pairs have none\n"
        "where: needs_reference in the loss's class\n"
        "fix:   needs_reference: ClassVar[bool] = True"
    )


@pytest.mark.parametrize("name", [name for name, row in EXPECTED.items() if not row[0]])
def test_a_loss_that_needs_no_reference_works_without(name, make_pairs):
    assert LOSSES[name]()(make_pairs([-1], [-2])).loss_B.isfinite().all()


def test_an_unknown_name_is_told_the_nearest():
    with pytest.raises(DilError) as caught:
        loss_class("ukk")
    assert str(caught.value) == "error: no loss is named 'ukk'; did you mean ukl?\nwhere: loss=ukk\nfix:   loss=ukl"
    with pytest.raises(DilError) as caught:
        loss_class("zzz")
    assert str(caught.value) == (
        f"error: no loss is named 'zzz'; there are {', '.join(sorted(LOSSES))}\nwhere: loss=zzz\nfix:   dil losses"
    )


def test_convex_functions_have_one_name_each():
    with pytest.raises(DilError, match="h=ukl is known already"):

        @convex
        def ukl(r):
            return r**2


def test_combine_adds_and_asks_for_what_its_terms_need(make_pairs):
    assert not Combine(terms={"sft": 1}).needs_rejected
    assert not Combine(terms={"slic": 1, "sft": 1}).needs_reference
    assert Combine(terms={"sft": 1, "kto": 1}).couples_batch
    assert Combine(terms={"sft": 1, "dpo": 1}).reduction == MEAN
    assert Combine(terms={"dpo": 1, "sft": 1}).reduction == SUM
    assert Combine(terms={"dpo": 0.5, "lsif": 2}).at_reference() == pytest.approx(math.log(2) / 2 - 1)
    assert Combine(terms={"dpo": 0.5, "sft": 2}).at_reference() is None
    pairs = make_pairs([31, 1], [0, 2], [0, 0], [0, 0])
    both = Combine(terms={"lsif": 1, "dpo": {"weight": 3, "reduction": "mean", "beta": 1}})
    expected_B = LSIF()(pairs).loss_B + 3 * DPO(beta=1.0, reduction=MEAN)(pairs).loss_B
    torch.testing.assert_close(both(pairs).loss_B, expected_B)
    assert both(pairs).guarded_B.tolist() == [True, False]
    assert Combine(terms={"dpo": 1, "sft": 1})(pairs).guarded_B is None


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr("dil_cli.losses.registry.LOSSES", dict(LOSSES))
    assert register(BCE) is BCE  # the same class again is no conflict

    @dataclass(kw_only=True)
    class Other:
        name: ClassVar[str] = "bce"
        needs_reference: ClassVar[bool] = True
        needs_rejected: ClassVar[bool] = True
        couples_batch: ClassVar[bool] = False
        reduction: Reduction = MEAN

        def __call__(self, pair):
            return LossOutput(pair.policy_chosen_B)

        def at_reference(self):
            return None

    with pytest.raises(DilError, match="two losses are named 'bce'") as caught:
        register(Other)
    first, second = caught.value.where.split("; ")
    assert "density_ratio.py, line " in first
    assert "test_loss_config.py, line " in second
    assert LOSSES["bce"] is BCE


NEW_LOSS = '''
from dataclasses import dataclass
from typing import ClassVar
from dil_cli.losses.common import Reduction, log_ratios
from dil_cli.losses.registry import register
from dil_cli.types import LossOutput, PairLogps

@register
@dataclass(kw_only=True)
class Hinge:
    """relu(margin - (s_w - s_l))."""
    name: ClassVar[str] = "hinge"
    needs_reference: ClassVar[bool] = True
    needs_rejected: ClassVar[bool] = True
    couples_batch: ClassVar[bool] = False
    margin: float = 1.0
    reduction: Reduction = Reduction.mean
    def __call__(self, pair: PairLogps) -> LossOutput:
        s_w_B, s_l_B = log_ratios(pair, self.reduction)
        return LossOutput((self.margin - (s_w_B - s_l_B)).relu())
    def at_reference(self) -> float | None:
        return self.margin
'''


def test_a_new_loss_is_one_file(tmp_path):
    """A copy of the package's lower layers with one file more knows one loss more."""
    package = Path(dil_cli.__file__).parent
    shutil.copytree(package / "losses", tmp_path / "dil_cli" / "losses")
    for name in ("__init__.py", "errors.py", "types.py"):
        shutil.copy(package / name, tmp_path / "dil_cli" / name)
    (tmp_path / "dil_cli" / "losses" / "hinge.py").write_text(NEW_LOSS)
    code = "from dil_cli.losses import registry; print(*sorted(registry.LOSSES))"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert {"hinge", *EXPECTED} <= set(done.stdout.split()), done.stderr
    assert "hinge" not in LOSSES
