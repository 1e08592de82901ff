"""All pages, in the order in which they are run."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from dil_cli.errors import DilError
from dil_cli.files import replacing
from results import arms, dynamics, mode_seeking, reasoning
from results.chain import Chain
from results.compared import page
from results.page import Page

PAGES: tuple[Page, ...] = (
    dynamics.page(
        "dynamics",
        "Does the chosen likelihood fall less under DIL than under DPO and SimPO?",
        arms.FIGURE_2,
        directions=True,
    ),
    dynamics.page(
        "one_rate",
        "And when all losses share one learning rate?",
        arms.FIGURE_2,
        rate="optim.lr_factor=1",
        baselines=("loss=dpo", "loss=simpo"),
    ),
    dynamics.page(
        "whole_epoch",
        "And after an epoch over all pairs, as in the paper?",
        arms.FIGURE_2,
        words=("data.limit=null",),
    ),
    dynamics.page(
        "whole_epoch_one_rate",
        "And after an epoch over all pairs, at one learning rate for all?",
        arms.FIGURE_2,
        rate="optim.lr_factor=1",
        baselines=("loss=dpo", "loss=simpo"),
        words=("data.limit=null",),
    ),
    dynamics.page(
        "dynamics_dialogue",
        "And on dialogues, which the model does not know?",
        arms.FIGURE_2,
        baselines=("loss=dpo", "loss=simpo"),
        words=("data=hh_sample",),
    ),
    reasoning.page(
        "reasoning",
        "Are right solutions kept likely, and likelier than wrong ones?",
        [Chain(arm, (dynamics.EXPERIMENT,)) for arm in arms.FIGURE_2],
        start="bundled:tiny",
    ),
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
    dynamics.page(
        "reductions",
        "What changes when log-probs are summed over a response instead of averaged over its tokens?",
        (*arms.DIL, *arms.DIL_SUM, arms.DPO, arms.DPO_MEAN),
    ),
    page(
        "reference",
        "Are the rejected responses alone enough to stand for the reference, or is it better to take both?",
        [Chain(arm, (dynamics.EXPERIMENT,)) for arm in (*arms.DIL, *arms.DIL_BOTH)],
        baseline="loss.reference_samples=rejected",
        same_rate="optim.lr_factor=1",
    ),
    page(
        "which_h",
        "Which convex function h keeps most of the chosen likelihood per margin gained?",
        [Chain(arm, (dynamics.EXPERIMENT,)) for arm in (*arms.DIL, *arms.WIDER)],
        baseline="loss=lsif",
        same_rate="optim.lr_factor=1",
    ),
    page(
        "which_h_dialogue",
        "And which one on dialogues, where the pairs differ less?",
        [Chain(arm, (dynamics.EXPERIMENT,), ("data=hh_sample",)) for arm in (*arms.DIL, *arms.WIDER)],
        baseline="loss=lsif",
    ),
    page(
        "epochs",
        "What do more epochs than the paper's one do, and who overfits first?",
        [Chain(arm, ("results/epochs",)) for arm in (arms.LSIF, arms.DPO, arms.SIMPO)],
        baseline="loss=dpo",
        x="optim.epochs",
    ),
    Page(
        "mode_seeking",
        "Does the paper's theory hold as numbers, and does DIL seek one mode or cover all?",
        (),
        mode_seeking.blocks,
        mode_seeking.draw,
    ),
)


def data_pages(folder: Path) -> tuple[Page, ...]:
    """Those that need data which do not ship; `folder` holds them."""
    from recipes.make_small import MODEL
    from results import small

    figure_2 = dynamics.page(
        "small_dynamics",
        "And in a larger model, trained on more than arithmetic?",
        arms.FIGURE_2,
        words=small.WORDS,
    )
    kept = reasoning.page(
        "small_reasoning",
        "And does it keep its reasoning?",
        figure_2.chains,
        start=str(MODEL),
        problems=64,
    )
    return (small.PAGE, *(replace(page, prepare=small.make) for page in (figure_2, kept)), chat_page(folder))


CHAT = Path("outputs/alpaca_eval")
"""Where the chat answers are copied to: relative, as a run's hash is made of the paths that stand in its config."""


def chat_page(folder: Path) -> Page:
    """Figure 2 on long chat answers: AlpacaEval's, which do not ship; `folder` holds their files."""
    name = "alpaca_eval_prefs"
    files = [f"{name}_{split}.jsonl.gz" for split in ("train", "test")]

    def prepare() -> None:
        for file in files:
            if not (folder / file).is_file():
                raise DilError(f"{folder} has no {file}", "DATA", f"DATA=DIR, with {' and '.join(files)} in it")
            with replacing(CHAT / file) as temporary:
                shutil.copyfile(folder / file, temporary)

    found = dynamics.page(
        "dynamics_chat",
        "And on long chat answers?",
        arms.FIGURE_2,
        words=("data=local", f"data.path={CHAT}", f"data.train_split={name}_train"),
        test=(f"data.heldout_split={name}_test", "data.heldout_fraction=null"),
    )
    return replace(found, prepare=prepare)
