"""Preference losses: pure functions of `PairLogps`, one dataclass each, which is also its config schema.

Importing this package imports every module in it, so a new file is known by its `@register` alone.
"""

from __future__ import annotations

import importlib
import pkgutil

from dil_cli.losses.common import Reduction
from dil_cli.losses.density_ratio import BCE, LSIF, UKL
from dil_cli.losses.dpo import DPO
from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.losses.registry import LOSSES, loss_class, register
from dil_cli.losses.sft import SFT
from dil_cli.losses.simpo import SimPO
from dil_cli.losses.slic import SLiC

for _module in pkgutil.iter_modules(__path__):
    importlib.import_module(f"{__name__}.{_module.name}")

__all__ = [
    "BCE",
    "DPO",
    "LOSSES",
    "LSIF",
    "SFT",
    "UKL",
    "PreferenceLoss",
    "Reduction",
    "SLiC",
    "SimPO",
    "loss_class",
    "register",
]
