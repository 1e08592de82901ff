"""The losses that the page compares: those of the package, on sums, by the names that its tables show."""

from __future__ import annotations

from dil_cli.losses import BCE, DPO, LSIF, SFT, UKL, Bregman, PreferenceLoss, Reduction, ReferenceSamples
from dil_cli.losses.bregman import KLIEP, Brier, Jeffreys, Power, RuLSIF
from dil_cli.losses.density_ratio import UKLOfficial

SUM, BOTH = Reduction.sum, ReferenceSamples.both

PAPER: dict[str, PreferenceLoss] = {
    "lsif": LSIF(reduction=SUM),
    "bce": BCE(reduction=SUM),
    "ukl": UKL(reduction=SUM),
}
"""The h of the paper."""

PAPER_BOTH: dict[str, PreferenceLoss] = {
    "lsif, both": LSIF(reduction=SUM, reference_samples=BOTH),
    "bce, both": BCE(reduction=SUM, reference_samples=BOTH),
    "ukl, both": UKL(reduction=SUM, reference_samples=BOTH),
}

WIDER: dict[str, PreferenceLoss] = {
    "ukl_official": UKLOfficial(),
    "power, alpha 1/2": Power(alpha=0.5, reduction=SUM),
    "bregman, hellinger": Bregman(h="hellinger", reduction=SUM),
    "bregman, itakura_saito": Bregman(h="itakura_saito", reduction=SUM),
    "jeffreys": Jeffreys(reduction=SUM),
    "brier": Brier(reduction=SUM),
    "rulsif, alpha 0.1": RuLSIF(alpha=0.1, reduction=SUM),
    "kliep": KLIEP(reduction=SUM),
}

SFT_SUM = SFT(reduction=SUM)


def dpo(beta: float = 1.0) -> DPO:
    """DPO; beta = 1 is the CPC member of DIL."""
    return DPO(beta=beta)


def on_means() -> dict[str, PreferenceLoss]:
    """Losses under `mean`, the default of the DIL family."""
    mean = Reduction.mean
    return {
        "lsif": LSIF(reduction=mean),
        "bce": BCE(reduction=mean),
        "ukl": UKL(reduction=mean),
        "dpo, beta 1": DPO(beta=1.0, reduction=mean),
    }
