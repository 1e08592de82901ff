"""The methods that the pages compare, each at its default settings but for what its name says."""

from __future__ import annotations

from results.grid import Arm


def _default(loss: str) -> Arm:
    return Arm(loss, (f"loss={loss}",))


def _with(label: str, arm: Arm, *words: str) -> Arm:
    return Arm(f"{arm.label}, {label}", (*arm.words, *words))


LSIF, BCE, UKL, DPO, SIMPO = map(_default, ("lsif", "bce", "ukl", "dpo", "simpo"))
DIL = (LSIF, BCE, UKL)
FIGURE_2 = (*DIL, DPO, SIMPO)
"""Those of the paper's figure 2."""
DIL_SUM = tuple(_with("sum", arm, "loss.reduction=sum") for arm in DIL)
DIL_BOTH = tuple(_with("both", arm, "loss.reference_samples=both") for arm in DIL)
DPO_MEAN = _with("mean, beta 1", DPO, "loss.reduction=mean", "loss.beta=1")
"""The CPC member of DIL, under the reduction of the other three."""

WIDER = tuple(map(_default, ("power", "jeffreys", "brier", "rulsif", "kliep")))
"""More members of the Bregman family; power at its alpha of 0.5."""

CDPO, ROBUST_DPO, IPO = map(_default, ("cdpo", "robust_dpo", "ipo"))
