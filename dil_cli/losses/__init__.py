"""Preference losses: pure functions of `PairLogps`, one dataclass each, which is also its config schema.

A file is a family; the first line of its docstring names it, up to the comma. Importing this package imports every
module in it, so a new file is known by its `@register` alone.
"""

from __future__ import annotations

import importlib
import pkgutil

from dil_cli.losses.any_convex import Bregman, convex
from dil_cli.losses.check import check_loss
from dil_cli.losses.combine import Combine
from dil_cli.losses.common import Reduction, ReferenceSamples
from dil_cli.losses.density_ratio import BCE, LSIF, UKL
from dil_cli.losses.dpo import DPO
from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.losses.reference_free import SimPO, SLiC
from dil_cli.losses.registry import LOSSES, loss_class, register
from dil_cli.losses.sft import SFT

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BCE",
    "DPO",
    "LOSSES",
    "LSIF",
    "SFT",
    "UKL",
    "Bregman",
    "Combine",
    "PreferenceLoss",
    "Reduction",
    "ReferenceSamples",
    "SLiC",
    "SimPO",
    "check_loss",
    "convex",
    "loss_class",
    "register",
]
