"""`dil losses`: the list, one loss in full, the figure, and docs/losses.md as the dataclasses say it."""

from __future__ import annotations

import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from dil_cli.catalogue.document import markdown
from dil_cli.catalogue.entries import SECTIONS, entries, entry_of
from dil_cli.catalogue.plot import draw_losses, plot_losses, weights
from dil_cli.catalogue.text import explanation, listing
from dil_cli.config.presets import presets_of
from dil_cli.dynamics.style import LOSS_COLOURS, loss_styles
from dil_cli.errors import DilError
from dil_cli.losses import BCE, DPO, LOSSES, LSIF, UKL, Reduction, SimPO

ROOT = Path(__file__).resolve().parents[2]


def test_the_document_is_what_the_dataclasses_say():
    assert (ROOT / "docs" / "losses.md").read_text() == markdown(), "dil losses --markdown > docs/losses.md"
    assert (ROOT / "docs" / "images" / "losses.png").is_file()


def test_every_link_of_the_document_has_its_heading():
    text = markdown()
    assert set(re.findall(r"\]\(#(\w+)\)", text)) == set(re.findall(r"^### (\w+)$", text, re.MULTILINE)) == set(LOSSES)


@pytest.mark.parametrize("name", LOSSES)
def test_a_loss_says_all_that_the_catalogue_shows(name):
    """Formula, symbols, gradient, ranges, neighbours, source: a docstring that lacks one is seen here."""
    entry = entry_of(name)
    assert entry.formula
    assert entry.symbols
    assert tuple(entry.sections) == SECTIONS
    assert "dL/d" in entry.sections["Gradient"]
    assert re.fullmatch(r"arXiv \d{4}\.\d{5}|arXiv 1106\.4729|.*, \d{4}", entry.source)
    assert all(len(line) <= 120 for line in explanation(name).splitlines())
    for setting in entry.settings:
        assert f"loss.{setting.name}" in explanation(name)
        assert setting.name in {"reduction", "reference_samples", "nll"} or setting.name in LOSSES[name].__doc__
    words = set(re.findall(r"\w+", entry.sections["Neighbours"]))
    assert (words - {name}) & LOSSES.keys(), "a neighbour is a loss that dil losses knows by this name"


def test_the_list_has_every_loss_once_under_its_family():
    text = listing()
    assert re.findall(r"^  (\w+)", text, re.MULTILINE) == [entry.name for entry in entries()]
    assert {entry.name for entry in entries()} == set(LOSSES)
    assert text.startswith(f"{len(LOSSES)} losses.")
    assert all(len(line) <= 120 for line in text.splitlines())
    families = [entry.family for entry in entries()]
    ours = list(dict.fromkeys(families))[:8]  # a family of a new file comes after
    assert [family.partition(",")[0] for family in ours] == [
        "DIL", "Bregman", "DPO", "Margin", "Absolute", "Reference-free", "SFT", "Sums",
    ]  # fmt: skip
    assert families == sorted(families, key=families.index), "a family stands in one place"


def test_a_long_name_does_not_run_into_its_formula(monkeypatch):
    long = type("Long", (UKL,), {"name": "a_name_of_26_letters_or_so", "__doc__": UKL.__doc__})
    monkeypatch.setitem(LOSSES, long.name, long)
    assert re.search(r"^  a_name_of_26_letters_or_so -s_w \+ e\^\{s_l\} +yes +mean +arXiv", listing(), re.MULTILINE)
    assert all(len(line) <= 120 for line in listing().splitlines())


def test_facts_of_a_few():
    ukl, simpo, combine, kto = (entry_of(name) for name in ("ukl", "simpo", "combine", "kto"))
    assert (ukl.title, ukl.formula) == (
        "Unnormalised Kullback-Leibler divergence, h(r) = r log r - r", "-s_w + e^{s_l}",
    )  # fmt: skip
    assert (ukl.reference, ukl.reduction, ukl.couples_batch, ukl.at_reference) == ("yes", "mean", "no", "1")
    assert (simpo.reference, simpo.reduction) == ("no", "mean only")
    assert [(s.name, s.takes, s.default) for s in simpo.settings] == [
        ("beta", "number", "2"), ("gamma", "number", "1.6"), ("reduction", "mean", "mean"),
    ]  # fmt: skip
    assert (combine.reference, combine.reduction, combine.couples_batch) == ("as its terms",) * 3
    assert (kto.couples_batch, kto.source) == ("yes", "arXiv 2402.01306")


def test_a_loss_shows_its_presets_and_where_they_come_from():
    text = explanation("simpo")
    assert "model=llama3_8b: model.lr=6e-7 loss.beta=2.0 loss.gamma=1.0 (beta, gamma and learning rate" in text
    assert [(preset.model, preset.values["model.lr"]) for preset in presets_of("simper")] == [
        ("llama3_8b", "6e-7"), ("mistral7b", "3e-7"),
    ]  # fmt: skip
    assert presets_of("lsif") == []
    assert "Presets" not in explanation("lsif")


def test_the_grids_of_the_baselines_are_kept():
    grids = {
        "dpo": "beta 0.01, 0.05, 0.1", "ipo": "tau 0.01, 0.1, 0.5, 1",
        "cpo": "lam 1 in the paper; beta 0.01, 0.05, 0.1", "kto": "lam_d = lam_u = 1 and beta 0.01, 0.05, 0.1",
        "orpo": "0.1, 0.5, 1, 2", "rdpo": "alpha 0.05, 0.1, 0.5, 1 and beta 0.01, 0.05, 0.1",
        "slic": "lam 0.1, 0.5, 1, 10 and delta 0.1, 0.5, 1, 2", "lsif": "3e-7, 5e-7, 6e-7, 1e-6",
        "cal_dpo": "beta 1e-3",
    }  # fmt: skip
    for name, grid in grids.items():
        assert grid in entry_of(name).sections["Ranges"]


def test_on_the_command_line(dil_here, tmp_path):
    assert dil_here("losses") == (0, listing(), "")
    assert dil_here("losses", "ukl") == (0, explanation("ukl"), "")
    assert dil_here("losses", "ukl", "dpo")[1] == explanation("ukl") + "\n" + explanation("dpo")
    assert dil_here("losses", "--markdown")[1] == markdown()
    assert "dil losses --plot" in dil_here("losses", "--help")[1]
    assert dil_here("losses", "--plot", "ukl,dpo")[1] == "losses.png\n"
    assert dil_here("losses", "--plot=lsif", "--out=figures/a.pdf")[1] == "figures/a.pdf\n"
    assert (tmp_path / "losses.png").stat().st_size > 10_000
    assert (tmp_path / "figures" / "a.pdf").read_bytes().startswith(b"%PDF")


WRONG = {
    "unknown": (["ukk"], "no loss is named 'ukk'; did you mean ukl?", "dil losses ukk", "dil losses ukl"),
    "unknown in a plot": (
        ["--plot", "ukl,dop"], "no loss is named 'dop'; did you mean dpop?", "dil losses dop", "dil losses dpop",
    ),
    "option": (["--plt", "ukl"], "no option --plt", "dil losses --plt", "dil losses --help"),
    "no value": (["--plot"], "--plot needs a value", "dil losses --plot", "dil losses --plot lsif,ukl,dpo"),
    "format": (["--plot", "ukl", "--out", "a.txt"], "a figure is .png, .pdf, .svg", "--out a.txt", "--out losses.png"),
    "nothing to write": (
        ["--out", "a.png"], "--out is the file of --plot", "dil losses --out",
        "dil losses --plot lsif,ukl,dpo --out FILE",
    ),
    "both": (["ukl", "--plot", "dpo"], "--plot takes nothing beside it", "dil losses ukl", "dil losses --plot ukl"),
    "a sum": (
        ["--plot", "combine"], "combine has no default settings, with which a loss is drawn",
        "dil losses --plot combine", "name losses that have them",
    ),
    "too many": (
        ["--plot", "lsif,ukl,bce,dpo,cdpo,rso,exo,ipo,sft,kto"], "a figure shows at most 9 losses, not 10",
        "dil losses --plot lsif,ukl,bce,dpo,cdpo,rso,exo,ipo,sft,kto",
        "dil losses --plot lsif,ukl,bce,dpo,cdpo,rso,exo,ipo,sft",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_wrong_words_are_three_exact_lines(case, dil_here, tmp_path):
    argv, what, where, fix = WRONG[case]
    code, _, err = dil_here("losses", *argv)
    assert err.splitlines() == [f"error: {what}", f"where: {where}", f"fix:   {fix}"]
    assert code == 2
    assert not list(tmp_path.iterdir())


def test_weights_by_hand():
    """Relative to the loss's own at the reference: LSIF e^s and e^{2s}, UKL 1 and e^s, DPO 2 sigma(-z) in beta s."""
    x_G = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    zero_G = torch.zeros_like(x_G)
    assert weights(LSIF(), x_G, zero_G).pull_G.tolist() == pytest.approx([math.exp(-2), 1, math.exp(1)])
    assert weights(LSIF(), zero_G, x_G).push_G.tolist() == pytest.approx([math.exp(-4), 1, math.exp(2)])
    assert weights(UKL(), x_G, x_G).pull_G.tolist() == [1, 1, 1]
    sigmoid = [2 / (1 + math.exp(x)) for x in x_G.tolist()]
    assert weights(BCE(), x_G, zero_G).pull_G.tolist() == pytest.approx(sigmoid)
    for beta in (0.1, 3.0):
        assert weights(DPO(beta=beta), x_G, zero_G).pull_G.tolist() == pytest.approx(sigmoid)
    means = weights(DPO(beta=3.0, reduction=Reduction.mean), x_G, zero_G)
    assert means.pull_G.tolist() == pytest.approx([2 / (1 + math.exp(3 * x)) for x in x_G.tolist()])
    simpo = weights(SimPO(), x_G, zero_G).pull_G.tolist()
    assert simpo == pytest.approx([(1 + math.exp(-1.6)) / (1 + math.exp(2 * x - 1.6)) for x in x_G.tolist()])


def test_a_coupled_loss_is_drawn_in_company():
    """KLIEP's push among 31 pairs at the reference: e^s over the mean of 32 ratios; alone it would be 1 throughout."""
    x_G = torch.tensor([-2.0, 0.0, 1.0], dtype=torch.float64)
    push_G = weights(LOSSES["kliep"](), torch.zeros_like(x_G), x_G).push_G
    assert push_G.tolist() == pytest.approx([32 * math.exp(x) / (31 + math.exp(x)) for x in x_G.tolist()])


def test_the_figure_draws_what_was_computed(tmp_path):
    figure = draw_losses([LSIF(), DPO(), LOSSES["sft"]()])
    pull, push, ratio = figure.axes
    path_G = torch.tensor(pull.get_lines()[0].get_xdata())
    for axes, side in ((pull, "pull_G"), (push, "push_G")):
        at = (path_G, torch.zeros_like(path_G)) if side == "pull_G" else (torch.zeros_like(path_G), path_G)
        drawn = torch.tensor(axes.get_lines()[0].get_ydata())
        torch.testing.assert_close(drawn, getattr(weights(LSIF(), *at), side))
    margin = ratio.get_lines()[0].get_xdata()
    assert ratio.get_lines()[0].get_ydata().tolist() == pytest.approx([math.exp(2 * m) for m in margin.tolist()])
    assert ratio.get_lines()[1].get_ydata().tolist() == pytest.approx([1.0] * len(margin))
    assert ratio.get_lines()[2].get_ydata().tolist() == pytest.approx([math.nan] * len(margin), nan_ok=True)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["lsif", "dpo", "sft"]
    assert pull.get_lines()[0].get_color() == LOSS_COLOURS["lsif"]
    first, second = (plot_losses(["lsif", "dpo"], tmp_path / name).read_bytes() for name in ("a.png", "b.png"))
    assert first == second


def test_curves_in_one_place_are_all_seen():
    """BCE's pull is DPO's: the second is dashed over the first."""
    pull = draw_losses([BCE(), DPO(), UKL()]).axes[0]
    assert [line.get_linestyle() for line in pull.get_lines()[:3]] == ["-", "--", "-"]


def test_curves_that_part_later_are_seen_where_they_lie_together():
    """SLiC's pull is UKL's up to its margin, 5/8 of the panel; SimPO's only crosses them."""
    pull = draw_losses([UKL(), LOSSES["slic"](), SimPO()]).axes[0]
    assert [line.get_linestyle() for line in pull.get_lines()[:3]] == ["-", "--", "-"]


def test_a_curve_is_thin_where_the_loss_moves_the_response_the_other_way():
    """NCA draws the chosen response to r_w = log 2 from both sides; LSIF always up."""
    figure = draw_losses([LOSSES["nca"](), LSIF()])
    thick, thin, lsif = figure.axes[0].get_lines()[:3]
    assert thin.get_linewidth() < thick.get_linewidth() == lsif.get_linewidth()
    drawn = [line.get_xdata()[~np.isnan(line.get_ydata())] for line in (thick, thin, lsif)]
    assert drawn[0].max() < math.log(2) < drawn[1].min()
    assert len(drawn[2]) == len(lsif.get_xdata())
    assert any("thin" in text.get_text() for text in figure.texts)
    assert not any("thin" in text.get_text() for text in draw_losses([LSIF(), LOSSES["apo_zero"]()]).texts)


def test_every_loss_can_be_drawn():
    x_G = torch.linspace(-4, 4, 9, dtype=torch.float64)
    for name in LOSSES.keys() - {"combine"}:
        drawn = weights(LOSSES[name](), x_G, -x_G)
        assert drawn.pull_G.isfinite().all(), name
        assert drawn.push_G.isfinite().all(), name


def test_styles_tell_losses_apart():
    looks = loss_styles(["lsif", "kto", "dpo", "orpo", "ipo", "exo", "nca", "cpo", "rso"])
    assert looks["lsif"] == (LOSS_COLOURS["lsif"], "-")
    assert len(set(looks.values())) == 9
    assert len(loss_styles(list(LOSSES))) == len(LOSSES)


def test_a_loss_without_a_docstring_is_shown_all_the_same(monkeypatch):
    class Bare(UKL):
        pass

    Bare.__doc__ = "Bare(*, reduction: Reduction = ...)"
    monkeypatch.setitem(LOSSES, "ukl", Bare)
    entry = entry_of("ukl")
    assert (entry.title, entry.formula, entry.symbols, entry.sections, entry.source) == ("ukl", "", (), {}, "")
    assert "dil train loss=ukl" in explanation("ukl")
    with pytest.raises(DilError):
        entry_of("nothing")
