"""All pages, in the order in which they are run."""

from __future__ import annotations

from results import arms, dynamics
from results.chain import Chain
from results.compared import page
from results.page import Page

DYNAMICS = "results/dynamics"

PAGES: tuple[Page, ...] = (
    dynamics.PAGE,
    page(
        "noise",
        "How much margin and accuracy does each loss keep when labels are flipped?",
        [
            Chain(arm, ("results/noise",))
            for arm in (arms.LSIF, arms.DPO, arms.CDPO, arms.ROBUST_DPO, arms.IPO, arms.SIMPO)
        ],
        baseline="loss=dpo",
        x="data.label_noise",
    ),
    page(
        "reference",
        "Are the rejected responses alone enough to stand for the reference, or is it better to take both?",
        [Chain(arm, (DYNAMICS,)) for arm in (*arms.DIL, *arms.DIL_BOTH)],
        baseline="loss.reference_samples=rejected",
    ),
    page(
        "which_h",
        "Which convex function h keeps most of the chosen likelihood per margin gained?",
        [Chain(arm, (DYNAMICS,)) for arm in (*arms.DIL, *arms.WIDER)],
        baseline="loss=lsif",
    ),
    page(
        "which_h_dialogue",
        "And which one on dialogues, where the pairs differ less?",
        [Chain(arm, (DYNAMICS,), ("data=hh_sample",)) for arm in (*arms.DIL, *arms.WIDER)],
        baseline="loss=lsif",
    ),
    page(
        "epochs",
        "What do more epochs than the paper's one do, and who overfits first?",
        [Chain(arm, ("results/epochs",)) for arm in (arms.LSIF, arms.DPO, arms.SIMPO)],
        baseline="loss=dpo",
        x="optim.epochs",
    ),
)
