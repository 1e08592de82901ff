"""Losses as configs: the registry, the structured config of each, and the refusals."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
from dataclasses import dataclass, fields
from pathlib import Path
from typing import ClassVar

import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

import dil_cli
from dil_cli.errors import DilError
from dil_cli.losses import BCE, DPO, LOSSES, LSIF, SFT, UKL, Reduction, SimPO, SLiC, loss_class, register

MEAN, SUM = Reduction.mean, Reduction.sum
# needs_reference, needs_rejected, and the defaults that a user sees.
EXPECTED = {
    "sft": (SFT, False, False, {"reduction": MEAN}),
    "lsif": (LSIF, True, True, {"reduction": MEAN, "exp_cap": 30.0}),
    "bce": (BCE, True, True, {"reduction": MEAN}),
    "ukl": (UKL, True, True, {"reduction": MEAN, "exp_cap": 30.0}),
    "dpo": (DPO, True, True, {"beta": 0.1, "reduction": SUM}),
    "slic": (SLiC, False, True, {"delta": 1.0, "lam": 0.1, "reduction": MEAN}),
    "simpo": (SimPO, False, True, {"beta": 2.0, "gamma": 1.6, "reduction": MEAN}),
}


def test_the_registry_knows_them_by_their_own_names():
    assert EXPECTED.keys() <= LOSSES.keys()
    assert all(loss.name == name for name, loss in LOSSES.items())


@pytest.mark.parametrize("name", EXPECTED)
def test_what_a_loss_says_of_itself(name):
    loss, needs_reference, needs_rejected, defaults = EXPECTED[name]
    assert loss_class(name) is loss
    assert (loss.name, loss.needs_reference, loss.needs_rejected) == (name, needs_reference, needs_rejected)
    assert vars(loss()) == defaults
    for part in ("Gradient: dL/d", "Source: ", "per token", "arXiv 2"):
        assert part in loss.__doc__


@pytest.mark.parametrize("name", EXPECTED)
def test_round_trip_through_a_structured_config(name):
    node = OmegaConf.structured(LOSSES[name])
    assert OmegaConf.to_object(node) == LOSSES[name]()
    changes = {"beta": "0.25", "gamma": 0.5, "delta": 3, "lam": 0, "exp_cap": None, "reduction": "mean"}
    own = {field.name: changes[field.name] for field in fields(LOSSES[name])}
    text = OmegaConf.to_yaml(OmegaConf.merge(node, own))
    changed = OmegaConf.to_object(OmegaConf.merge(node, OmegaConf.create(text)))
    values = {"beta": 0.25, "gamma": 0.5, "delta": 3.0, "lam": 0.0, "exp_cap": None, "reduction": MEAN}
    assert type(changed) is LOSSES[name]
    assert vars(changed) == {key: values[key] for key in own}


@pytest.mark.parametrize("name", EXPECTED)
@pytest.mark.parametrize("change", [{"betta": 1}, {"reduction": "median"}, {"reduction": None}])
def test_a_typo_fails_when_the_config_is_composed(name, change):
    with pytest.raises(OmegaConfBaseException):
        OmegaConf.merge(OmegaConf.structured(LOSSES[name]), change)


def must_be(key, value, must, example):
    return f"error: {key} is {value}, it must {must}\nwhere: {key}\nfix:   {key}={example}"


POSITIVE = "be a finite number above 0"
NOT_NEGATIVE = "be a finite number, 0 or more"
CAP = "be above 0 and at most 40, or null"
REFUSALS = [
    (DPO, {"beta": 0}, must_be("loss.beta", 0, POSITIVE, 0.1)),
    (DPO, {"beta": math.nan}, must_be("loss.beta", "nan", POSITIVE, 0.1)),
    (SimPO, {"beta": -1}, must_be("loss.beta", -1, POSITIVE, 2.0)),
    (SimPO, {"gamma": -0.5}, must_be("loss.gamma", -0.5, NOT_NEGATIVE, 1.6)),
    (SimPO, {"gamma": math.inf}, must_be("loss.gamma", "inf", NOT_NEGATIVE, 1.6)),
    (
        SimPO,
        {"reduction": SUM},
        "error: loss.reduction is sum, simpo is defined for mean only\n"
        "where: loss.reduction\nfix:   loss.reduction=mean",
    ),
    (SLiC, {"delta": 0}, must_be("loss.delta", 0, POSITIVE, 1.0)),
    (SLiC, {"lam": -0.1}, must_be("loss.lam", -0.1, NOT_NEGATIVE, 0.1)),
    (SLiC, {"lam": math.nan}, must_be("loss.lam", "nan", NOT_NEGATIVE, 0.1)),
    (LSIF, {"exp_cap": 0}, must_be("loss.exp_cap", 0, CAP, 30)),
    (LSIF, {"exp_cap": 88}, must_be("loss.exp_cap", 88, CAP, 30)),
    (UKL, {"exp_cap": math.nan}, must_be("loss.exp_cap", "nan", CAP, 30)),
    (UKL, {"exp_cap": -30.0}, must_be("loss.exp_cap", -30.0, CAP, 30)),
]


@pytest.mark.parametrize(("loss", "values", "text"), REFUSALS)
def test_a_value_that_does_not_apply_is_refused(loss, values, text):
    with pytest.raises(DilError) as caught:
        loss(**values)
    assert str(caught.value) == text


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


@pytest.mark.parametrize("name", [name for name, row in EXPECTED.items() if not row[1]])
def test_a_loss_that_needs_no_reference_works_without(name, make_pairs):
    assert LOSSES[name]()(make_pairs([-1], [-2])).loss_B.isfinite().all()


@pytest.mark.parametrize(("name", "near"), [("ukk", "ukl"), ("simp", "simpo"), ("", min(LOSSES))])
def test_an_unknown_name_lists_what_there_is(name, near):
    with pytest.raises(DilError) as caught:
        loss_class(name)
    assert str(caught.value) == (
        f"error: no loss is named {name!r}; there are {', '.join(sorted(LOSSES))}\nwhere: loss\nfix:   loss={near}"
    )


def test_a_name_is_taken_once(monkeypatch):
    monkeypatch.setattr("dil_cli.losses.registry.LOSSES", dict(LOSSES))
    assert register(BCE) is BCE  # the same class again is no conflict

    @dataclass(kw_only=True)
    class Other:
        name: ClassVar[str] = "bce"

    with pytest.raises(DilError, match="two losses are named 'bce'") as caught:
        register(Other)
    assert caught.value.where.startswith("dil_cli.losses.density_ratio.BCE, ")
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
