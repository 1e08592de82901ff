"""Values that do not apply are refused: exact texts."""

from __future__ import annotations

import math

import pytest

from dil_cli.errors import DilError
from dil_cli.losses import DPO, LOSSES, LSIF, UKL, Bregman, Combine, Reduction, SimPO, SLiC
from dil_cli.losses.dpo import Divergence

MEAN, SUM = Reduction.mean, Reduction.sum


def must_be(key, value, must, example):
    return f"error: {key} is {value}, it must {must}\nwhere: {key}\nfix:   {key}={example}"


POSITIVE = "be a finite number above 0"
NOT_NEGATIVE = "be a finite number, 0 or more"
IN_CAP = "be above 0 and at most 40, or null"
EPSILON = "be 0 or more and below 0.5"


def only(name, given, defined):
    return (
        f"error: loss.reduction is {given}, {name} is defined for {defined} only\n"
        f"where: loss.reduction\nfix:   loss.reduction={defined}"
    )


REFUSALS = [
    (DPO, {"beta": 0}, must_be("loss.beta", 0, POSITIVE, 0.1)),
    (DPO, {"beta": math.nan}, must_be("loss.beta", "nan", POSITIVE, 0.1)),
    (SimPO, {"beta": -1}, must_be("loss.beta", -1, POSITIVE, 2.0)),
    (SimPO, {"gamma": -0.5}, must_be("loss.gamma", -0.5, NOT_NEGATIVE, 1.6)),
    (SimPO, {"gamma": math.inf}, must_be("loss.gamma", "inf", NOT_NEGATIVE, 1.6)),
    (
        SimPO,
        {"reduction": SUM},
        only("simpo", "sum", "mean"),
    ),
    (SLiC, {"delta": 0}, must_be("loss.delta", 0, POSITIVE, 1.0)),
    (SLiC, {"lam": -0.1}, must_be("loss.lam", -0.1, NOT_NEGATIVE, 0.1)),
    (SLiC, {"lam": math.nan}, must_be("loss.lam", "nan", NOT_NEGATIVE, 0.1)),
    (LSIF, {"exp_cap": 0}, must_be("loss.exp_cap", 0, IN_CAP, 30)),
    (LSIF, {"exp_cap": 88}, must_be("loss.exp_cap", 88, IN_CAP, 30)),
    (UKL, {"exp_cap": math.nan}, must_be("loss.exp_cap", "nan", IN_CAP, 30)),
    (UKL, {"exp_cap": -30.0}, must_be("loss.exp_cap", -30.0, IN_CAP, 30)),
    *(
        (LOSSES[name], {"reduction": SUM}, only(name, "sum", "mean"))
        for name in ("orpo", "simper", "rrhf", "ukl_official")
    ),
    *((LOSSES[name], {"reduction": MEAN}, only(name, "mean", "sum")) for name in ("rdpo", "cpo")),
    *(
        (LOSSES[name], {"epsilon": value}, must_be("loss.epsilon", value, EPSILON, 0.1))
        for name in ("cdpo", "robust_dpo", "aot")
        for value in (0.5, -0.1, math.nan)
    ),
    *(
        (LOSSES["exo"], {"epsilon": value}, must_be("loss.epsilon", value, "lie between 0 and 0.5", 0.001))
        for value in (0, 0.5, math.nan)
    ),
    *(
        (LOSSES[name], {"beta": 0}, must_be("loss.beta", 0, POSITIVE, example))
        for name, example in {
            "cdpo": 0.1,
            "robust_dpo": 0.1,
            "fdpo": 0.1,
            "rdpo": 0.1,
            "dpop": 0.3,
            "rso": 0.1,
            "exo": 0.1,
            "aot": 0.1,
            "nca": 0.01,
            "bco": 0.1,
            "kto": 0.1,
            "apo_zero": 0.1,
            "apo_down": 0.1,
            "cal_dpo": 0.001,
            "sppo": 0.001,
            "cpo": 0.1,
        }.items()
    ),
    (LOSSES["ipo"], {"tau": 0}, must_be("loss.tau", 0, POSITIVE, 0.1)),
    (LOSSES["rdpo"], {"sign": 0}, must_be("loss.sign", 0, "be 1 or -1", 1)),
    (LOSSES["rdpo"], {"alpha": -1}, must_be("loss.alpha", -1, NOT_NEGATIVE, 0.05)),
    (LOSSES["dpop"], {"lam": -1}, must_be("loss.lam", -1, NOT_NEGATIVE, 50.0)),
    (LOSSES["cal_dpo"], {"weight": -1}, must_be("loss.weight", -1, NOT_NEGATIVE, 1.0)),
    (LOSSES["cpo"], {"lam": -1}, must_be("loss.lam", -1, NOT_NEGATIVE, 1.0)),
    (LOSSES["rrhf"], {"lam": math.inf}, must_be("loss.lam", "inf", NOT_NEGATIVE, 1.0)),
    (LOSSES["orpo"], {"lam": -1}, must_be("loss.lam", -1, NOT_NEGATIVE, 0.1)),
    (LOSSES["kto"], {"z": -1}, must_be("loss.z", -1, NOT_NEGATIVE, "null")),
    (LOSSES["kto"], {"lam_d": 0}, must_be("loss.lam_d", 0, POSITIVE, 1.0)),
    (LOSSES["kto"], {"lam_u": 0}, must_be("loss.lam_u", 0, POSITIVE, 1.0)),
    (LOSSES["bco"], {"delta": math.nan}, must_be("loss.delta", "nan", "be a finite number or null", "null")),
    (LOSSES["power"], {"alpha": math.inf}, must_be("loss.alpha", "inf", "be a finite number", 0.5)),
    *(
        (LOSSES["rulsif"], {"alpha": a}, must_be("loss.alpha", a, "lie between 0 and 1 (0 is loss=lsif)", 0.1))
        for a in (0, 1, -0.1)
    ),
    *(
        (LOSSES[name], {"exp_cap": 0}, must_be("loss.exp_cap", 0, IN_CAP, 30))
        for name in (
            "power",
            "jeffreys",
            "ukl_official",
            "bregman",
            "fdpo",
        )
    ),
    (
        LOSSES["fdpo"],
        {"alpha": 0.5},
        must_be("loss.alpha", 0.5, "stay null unless loss.divergence=alpha", "null"),
    ),
    *(
        (
            LOSSES["fdpo"],
            {"divergence": Divergence.alpha, "alpha": a},
            must_be("loss.alpha", a, "lie between 0 and 1 with loss.divergence=alpha", 0.5),
        )
        for a in (None, 0, 1)
    ),
    (
        Bregman,
        {"h": "hellinge"},
        "error: no convex function is named 'hellinge'; "
        "there are bce, brier, hellinger, itakura_saito, jeffreys, lsif, ukl\nwhere: loss.h\nfix:   loss.h=hellinger",
    ),
    (
        Bregman,
        {"h": lambda r: -(r**2)},
        "error: h is not convex: h''(0.00674) = -2\nwhere: loss.h\nfix:   a function of r with h'' above 0",
    ),
    (
        Bregman,
        {"h": lambda r: 3 * r},
        "error: h is not convex: h''(0.00674) = 0\nwhere: loss.h\nfix:   a function of r with h'' above 0",
    ),
    (
        Bregman,
        {"h": lambda r: (r**2).sum()},
        "error: h returns the shape () for (41,)\nwhere: loss.h\nfix:   one h(r) per r",
    ),
    (
        Bregman,
        {"h": lambda r: r.detach()},
        "error: h cannot be differentiated twice: "
        "element 0 of tensors does not require grad and does not have a grad_fn\n"
        "where: loss.h\nfix:   use torch operations on r",
    ),
    (
        Combine,
        {},
        "error: loss=combine adds losses, and loss.terms names none\n"
        "where: loss.terms\nfix:   loss.terms.dpo=0.9 loss.terms.sft=0.1",
    ),
    (
        Combine,
        {"terms": {"dpp": 1}},
        "error: no loss is named 'dpp'; did you mean dpop?\nwhere: loss.terms.dpp\nfix:   loss.terms.dpop",
    ),
    (
        Combine,
        {"terms": {"combine": 1}},
        "error: a sum is no term of a sum\nwhere: loss.terms.combine\nfix:   loss.terms.dpo=0.9 loss.terms.sft=0.1",
    ),
    (Combine, {"terms": {"dpo": 0}}, must_be("loss.terms.dpo", 0, POSITIVE, 0.1)),
    (
        Combine,
        {"terms": {"dpo": {"beta": 1}}},
        "error: loss.terms.dpo has no weight\nwhere: loss.terms.dpo={'beta': 1}\nfix:   loss.terms.dpo.weight=0.1",
    ),
    (
        Combine,
        {"terms": {"dpo": {"weight": 1, "betta": 1}}},
        "error: no key 'loss.terms.dpo.betta' here; did you mean beta?\n"
        "where: loss.terms.dpo.betta\nfix:   dil losses dpo",
    ),
    (
        Combine,
        {"terms": {"dpo": {"weight": 1, "reduction": "max"}}},
        "error: loss.terms.dpo.reduction is 'max', not one of mean, sum\n"
        "where: loss.terms.dpo.reduction\nfix:   loss.terms.dpo.reduction=mean",
    ),
    (
        Combine,
        {"terms": {"dpo": {"weight": 1, "beta": "low"}}},
        "error: loss.terms.dpo.beta is 'low', which is of the wrong type\n"
        "where: loss.terms.dpo.beta\nfix:   dil losses shows what it takes",
    ),
    (Combine, {"terms": {"dpo": {"weight": 1, "beta": -1}}}, must_be("loss.terms.dpo.beta", -1.0, POSITIVE, 0.1)),
]


@pytest.mark.parametrize(("loss", "values", "text"), REFUSALS)
def test_a_value_that_does_not_apply_is_refused(loss, values, text):
    with pytest.raises(DilError) as caught:
        loss(**values)
    assert str(caught.value) == text
