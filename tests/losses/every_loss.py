"""Every loss of the package under each reduction it accepts, with the settings that change its formula."""

from __future__ import annotations

from contextlib import suppress

import torch

from dil_cli.errors import DilError
from dil_cli.losses import LOSSES, Bregman, PreferenceLoss, Reduction, ReferenceSamples
from dil_cli.losses.dpo import Divergence


def pearson(r: torch.Tensor) -> torch.Tensor:
    """A convex function that the package does not know."""
    return (r - 1) ** 2 + r * r.log()


SETTINGS: dict[str, list[dict[str, object]]] = {
    "fdpo": [{"divergence": divergence} for divergence in Divergence if divergence != Divergence.alpha]
    + [{"divergence": Divergence.alpha, "alpha": 0.5}],
    "rdpo": [{"sign": 1}, {"sign": -1}],
    "aot": [{"paired": True}, {"paired": False, "epsilon": 0.1}],
    "bco": [{}, {"delta": 0.25}],
    "kto": [{}, {"z": 3.0, "lam_d": 1.5}],
    "cpo": [{}, {"nll": Reduction.mean}],
    "rrhf": [{}, {"nll": Reduction.mean}],
    "power": [{"alpha": alpha} for alpha in (-2.0, -1.0, -0.5, 0.0, 0.5, 1.0, 2.0)],
    "bregman": [{"h": "hellinger"}, {"h": "brier"}, {"h": pearson}],
    "combine": [
        {"terms": {"dpo": 0.9, "sft": 0.1}},
        {"terms": {"kliep": {"weight": 0.5, "reduction": "sum"}, "aot": 1, "lsif": 2.0}},
    ],
}
"""Settings beside the defaults, for losses that have more than one form; the first is the usual one."""

PINNED = {
    "lsif", "bce", "ukl", "ukl_official", "power", "jeffreys", "brier", "rulsif", "kliep", "bregman",
    "dpo", "cdpo", "robust_dpo", "fdpo", "rdpo", "dpop", "ipo", "rso", "exo", "aot",
    "nca", "bco", "kto", "apo_zero", "apo_down", "cal_dpo", "sppo",
    "slic", "simpo", "cpo", "orpo", "rrhf", "simper", "sft", "combine",
}  # fmt: skip
"""Losses whose numbers, defaults and vectors these tests hold. A new one is tried by every property without being
named here; its name here makes the tests ask for its numbers."""

DENSITY_RATIO = ["lsif", "bce", "ukl", "ukl_official", "power", "jeffreys", "brier", "rulsif", "kliep", "bregman"]
"""The DIL family: `reference_samples` applies."""


def accepted(name: str, **settings: object) -> list[PreferenceLoss]:
    """The loss under mean, sum, or whichever of them it accepts."""
    if name == "combine":
        return [LOSSES[name](**settings)]
    losses = []
    for reduction in Reduction:
        with suppress(DilError):
            losses.append(LOSSES[name](reduction=reduction, **settings))
    assert losses
    return losses


def usual(name: str) -> PreferenceLoss:
    """The loss as `loss=NAME` gives it; of combine, its example."""
    return LOSSES[name](**SETTINGS["combine"][0]) if name == "combine" else LOSSES[name]()


EVERY: list[PreferenceLoss] = [
    loss for name in LOSSES for settings in SETTINGS.get(name, [{}]) for loss in accepted(name, **settings)
] + [
    loss
    for name in DENSITY_RATIO
    for settings in SETTINGS.get(name, [{}])
    for loss in accepted(name, reference_samples=ReferenceSamples.both, **settings)
]


def label(loss: object) -> str:
    """A short name for a test: the loss and what is not its default."""
    if not hasattr(loss, "name"):
        return str(loss)
    given = {k: v for k, v in vars(loss).items() if not k.startswith("_") and v != getattr(type(loss), k, None)}
    words = [f"{k}={getattr(v, 'value', getattr(v, '__name__', v))}" for k, v in given.items() if k != "terms"]
    return "-".join([loss.name, *words])


assert any(isinstance(loss, Bregman) and callable(loss.h) for loss in EVERY)
