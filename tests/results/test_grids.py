"""Grids are what `dil sweep` runs, cells what `dil train` runs, and the rate is the one that validation found best."""

from __future__ import annotations

import gzip
import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from dil_cli.config.compose import compose
from dil_cli.config.identity import run_hash
from dil_cli.config.paths import conf_dir
from dil_cli.data.load import load_pairs
from dil_cli.errors import DilError
from results import arms, chain, exact, rates
from results.__main__ import main
from results.chain import Chain
from results.grid import Grid, NotRun
from results.page import IMAGES
from results.pages import PAGES, chat_page, data_pages
from results.plan import plan
from results.rates import Rate


def rate(factor: float, accuracy: float, pairs: int = 1) -> Rate:
    record = SimpleNamespace(end={"probe/accuracy": accuracy}, pairs=SimpleNamespace(row=[0] * pairs))
    return Rate(factor, record)


def test_an_accuracy_of_more_pairs_is_surer():
    assert rate(1.0, 0.5, pairs=100).standard_error == pytest.approx(0.05)
    assert rate(1.0, 0.9, pairs=400).standard_error == pytest.approx(0.015)


@pytest.mark.parametrize(
    ("accuracies", "chosen", "next_one"),
    [
        ({0.3: 0.6, 1.0: 0.7, 3.0: 0.5}, 1.0, None),
        ({0.3: 0.6, 1.0: 0.7, 3.0: 0.8}, 3.0, 10.0),
        ({0.3: 0.9, 1.0: 0.7, 3.0: 0.8}, 0.3, 0.1),
        ({0.3: 0.6, 1.0: 0.7, 3.0: 0.8, 10.0: 0.75}, 3.0, None),
        ({0.3: 0.7, 1.0: 0.7, 3.0: 0.7}, 0.3, 0.1),
        ({3.0: 0.6, 10.0: 0.7, 30.0: 0.8}, 30.0, None),
    ],
)
def test_the_best_rate_has_a_worse_one_on_both_sides(accuracies, chosen, next_one):
    found = [rate(factor, accuracy) for factor, accuracy in accuracies.items()]
    assert rates.best(found).factor == chosen
    assert rates.wanted(found) == next_one
    assert rates.best(found).word == f"optim.lr_factor={chosen:g}"


def test_a_cell_is_the_run_that_the_sweep_makes():
    grid = Grid("results/noise", ("loss=dpo", "optim.lr_factor=3"))
    assert grid.command == "dil sweep experiment=results/noise loss=dpo optim.lr_factor=3"
    assert len(grid.cells()) == len({job.hash for job in grid.jobs()}) == 20
    command = grid.cell(grid.cells()[7])
    assert command.startswith(
        "dil train experiment=results/noise loss=dpo optim.lr_factor=3 data.label_noise=0.1 seed=2"
    )
    config = compose("train", command.split()[2:])
    fingerprint = load_pairs(config.data, config.seed, True).fingerprint
    assert run_hash(config, fingerprint) == grid.jobs()[7].hash
    with pytest.raises(NotRun, match="20 of 20 runs are missing: dil sweep experiment=results/noise"):
        grid.records()


def test_words_of_a_grid_take_the_place_of_an_axis():
    assert rates.one_more(arms.SIMPO, (), 10.0).cells() == [("seed=42",)]


def test_no_noise_and_one_epoch_are_the_runs_of_the_first_page():
    first = {job.hash for job in Grid("results/dynamics", arms.DPO.words).jobs()}
    for experiment, word in (("results/noise", "data.label_noise=0"), ("results/epochs", "optim.epochs=1")):
        assert {job.hash for job in Grid(experiment, (*arms.DPO.words, word)).jobs()} == first


def test_validation_questions_are_no_test_questions():
    validation, test = (
        Grid(name, ("loss=lsif", "seed=0")).jobs()[0].config for name in (rates.EXPERIMENT, "results/dynamics")
    )
    questions = [{p.prompt for p in load_pairs(config.data, 0, True).heldout} for config in (validation, test)]
    assert questions[0]
    assert not questions[0] & questions[1]


def test_the_plan_counts_a_run_once():
    first, noise = (replace(page, chains=page.chains[:1]) for page in PAGES if page.name in {"dynamics", "noise"})
    assert first.chains[0].arm == noise.chains[0].arm
    lines = plan([first, noise]).splitlines()
    assert lines[2].split("|")[3:5] == [" 8 ", " 0 "]  # 3 rates and 5 seeds
    assert lines[3].split("|")[3:5] == [" 15 ", " 0 "]  # 3 levels of noise, none is there already


def test_the_plan_counts_what_is_measured_beside_the_runs():
    (reasoning,) = (page for page in PAGES if page.name == "reasoning")
    assert reasoning.measuring() == 26 * exact.PROBLEMS * exact.SOLUTION  # the start, and 5 losses with 5 seeds
    without = replace(reasoning, measuring=lambda: 0.0)
    hours = [float(plan([page]).splitlines()[2].split("|")[5]) for page in (reasoning, without)]
    assert hours[0] - hours[1] == pytest.approx(0.5, abs=0.11)


def test_pages_have_names_and_experiments_of_their_own():
    assert len({page.name for page in PAGES}) == len(PAGES) >= 6
    used = {name for page in PAGES for chain in page.chains for name in (*chain.experiments, rates.EXPERIMENT)}
    there = {f"results/{path.stem}" for path in (conf_dir() / "experiment" / "results").glob("*.yaml")}
    assert used == there


def test_every_page_is_listed_and_says_of_itself_whether_it_was_run():
    folder = Path(__file__).parents[2] / "docs" / "results"
    listed = (folder / "README.md").read_text(encoding="utf-8")
    for page in (*PAGES, *data_pages(Path("DIR"))):
        row = next(line for line in listed.splitlines() if f"`{page.name}`" in line and page.question in line)
        text = page.path.read_text(encoding="utf-8")
        assert ("not run yet" in row) == ("Not run yet." in text), page.name
        assert ("not run yet" in row) != (IMAGES / f"{page.name}.png").is_file(), page.name
        assert f"make results PAGES={page.name}" in text


def test_a_chain_without_runs_says_which_are_missing():
    with pytest.raises(NotRun, match="3 of 3 runs are missing: dil sweep experiment=results/rates loss=ukl"):
        Chain(arms.UKL, ("results/dynamics",)).records()


def test_what_runs_start_from_need_not_be_there_to_be_planned(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (_, small, _, _) = data_pages(tmp_path)
    lines = plan([small]).splitlines()
    assert lines[2].split("|")[3:6] == [" ? ", " 0 ", " ? "]
    assert lines[4] == "`small_dynamics` is planned when it is run: there is no model folder outputs/small/model."
    (chat,) = (page for page in data_pages(tmp_path) if page.name == "dynamics_chat")
    with pytest.raises(DilError, match="has no alpaca_eval_prefs_train"):
        chat.prepare()


def test_what_it_costs_is_said_before_anything_is_made(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DATA", str(tmp_path))
    monkeypatch.setattr(sys, "argv", ["results", "dynamics_chat"])
    with pytest.raises(DilError, match="has no alpaca_eval_prefs_train"):
        main()
    assert "`dynamics_chat` is planned when it is run" in capsys.readouterr().out


def test_chat_answers_are_tested_on_their_own_split_and_rates_on_training_questions(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for split, number in (("train", 10), ("test", 3)):
        rows = [{"prompt": f"{split} {i}", "chosen": "a", "rejected": "b"} for i in range(number)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        with gzip.open(tmp_path / f"alpaca_eval_prefs_{split}.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write(text)
    page = chat_page(tmp_path)
    page.prepare()
    chain = page.chains[0]
    (grid,) = chain.at("optim.lr_factor=1")
    assert "data.path=outputs/alpaca_eval " in grid.command  # whose hash no path of a machine is part of
    pairs = [load_pairs(g.jobs()[0].config.data, 0, True) for g in (rates.grid(chain.arm, chain.words), grid)]
    assert [(p.counts.train, p.counts.heldout) for p in pairs] == [(8, 2), (10, 3)]


def test_a_sweep_that_fails_does_not_keep_the_others_from_running(monkeypatch):
    ran = []

    def run(of: Chain, at_once: int) -> None:
        ran.append(of)
        if of is first:
            raise RuntimeError("exit code 1")

    first, second = (Chain(arm, ("results/dynamics",)) for arm in (arms.LSIF, arms.DPO))
    monkeypatch.setattr(chain, "_run", run)
    with pytest.raises(RuntimeError, match="exit code 1"):
        chain.run_all([first, second, first], 1)
    assert ran == [first, second]
