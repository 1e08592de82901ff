"""What the pages say of fabricated runs."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.dynamics.probe import read_probe
from dil_cli.report.record import read_record
from dil_cli.report.runs import read_run
from results import compared, dynamics, reasoning, tables
from results.chain import Chain
from results.curves import chosen_by_length, costs, ranked, reached, series
from results.grid import Arm
from results.rates import Rate
from tests.report.run_folders import write_run


def test_where_a_level_is_first_reached_is_on_the_line_between_two_measurements():
    assert reached([0, 0.1, 0.05, 0.2], [0, -1.0, -3.0, -2.0], 0.05) == pytest.approx(-0.5)
    assert reached([0, 0.1, 0.05, 0.2], [0, -1.0, -3.0, -2.0], 0.15) == pytest.approx(-3 + 2 / 3)
    assert reached([0, 0.1], [0, -1.0], 0.2) is None
    assert reached([0.5, 0.6], [0, -1.0], 0.6) == -1.0


def test_a_cost_needs_a_margin():
    found = costs(np.array([0.0, -0.1, -0.2]), np.array([0.0, 0.009, 0.1]))
    assert np.isnan(found[:2]).all()
    assert found[2] == pytest.approx(2.0)


def probe(points: list[tuple[float, float, float]]) -> list[dict[str, float]]:
    rows: list[dict[str, float]] = [
        {"step": 0, "probe/accuracy_mean": 0.5, "probe/logps_sum/chosen": -100.0, "probe/logps_sum/rejected": -120.0}
    ]
    for step, (accuracy, chosen, margin) in enumerate(points, start=1):
        rows.append(
            {
                "step": step, "probe/accuracy_mean": accuracy,
                "probe/delta/chosen": chosen, "probe/delta/margin": margin,
                "probe/logps_sum/chosen": -100.0 + 100 * chosen,
                "probe/logps_sum/rejected": -120.0 + 100 * (chosen - margin),
            }
        )  # fmt: skip
    return rows


def run(seed: int, points: list[tuple[float, float, float]]) -> SimpleNamespace:
    return SimpleNamespace(run=SimpleNamespace(seed=seed), probe=probe(points))


@pytest.fixture
def levels_of_rows(monkeypatch):
    """Fabricated runs have no pairs to count."""
    margin, (_, start, named) = dynamics.LEVELS
    monkeypatch.setattr(dynamics, "LEVELS", (margin, (partial(series, key="accuracy_mean"), start, named)))


def test_pairs_are_ranked_per_token_whatever_the_runs_reduction(tmp_path):
    record = read_record(read_run(write_run(tmp_path, "dpo", 0)))
    rows = read_probe(RunFolder(record.run.folder).probe).to_pylist()
    last = [row["delta_margin"] > 0 for row in rows if row["step"] == record.probe[-1]["step"]]
    found = ranked(record)
    assert len(found) == len(record.probe)
    assert found[0] == 0.5
    assert found[-1] == pytest.approx(sum(last) / len(last))
    assert found[-1] != record.end["probe/accuracy"]
    _, (course, *_) = dynamics.LEVELS
    assert list(course(record)) == list(found)


@pytest.mark.usefixtures("levels_of_rows")
def test_arms_are_compared_at_the_highest_margin_and_accuracy_that_all_runs_reached():
    found = {
        "lsif": [run(s, [(0.6, -0.1 - s / 100, 0.1), (0.7, -0.2, 0.3)]) for s in range(2)],
        "dpo": [run(s, [(0.55, -0.1, 0.05), (0.625, -0.3, 0.105)]) for s in range(2)],
    }
    text = dynamics.equal(found)
    head, _, lsif, dpo = text.splitlines()[:4]
    assert "chosen at margin 0.10" in head
    assert "chosen at accuracy 62 %" in head
    # dpo's cross 0.10 between their two measurements, lsif's have it at the first.
    assert "2 of 4 runs had margin 0.10 at their first measurement" in text
    assert "runs had accuracy" not in text
    at = [cell.strip() for cell in lsif.split("|")[1:-1]]
    assert at[1].startswith("\N{MINUS SIGN}0.105 ")  # -0.10 and -0.11 at the first measurement
    assert at[2].startswith("**+0.177")  # dpo: -0.1 - 0.2 * 0.05 / 0.055
    assert at[5:] == ["\N{MINUS SIGN}20.0 [\N{MINUS SIGN}20.0, \N{MINUS SIGN}20.0]", "+30.0 [+30.0, +30.0]"]
    assert [cell.strip() for cell in dpo.split("|")[1:-1]][2] == ""


@pytest.mark.usefixtures("levels_of_rows")
def test_where_a_run_gained_nothing_there_is_no_level_to_compare_at():
    gained, lost = (0.7, -0.2, 0.2), (0.4, -0.1, -0.1)
    found = {"lsif": [run(s, [gained, gained]) for s in range(2)], "dpo": [run(s, [lost, lost]) for s in range(2)]}
    text = dynamics.equal(found)
    assert "chosen at" not in text
    assert "above margin 0.00" in text
    assert "above accuracy 50 %" in text


def test_chosen_responses_are_told_apart_by_their_length(tmp_path):
    records = {"lsif": [read_record(read_run(write_run(tmp_path, "lsif", seed))) for seed in range(3)]}
    tokens_P, change_P = chosen_by_length(records["lsif"][0])
    rows = read_probe(RunFolder(records["lsif"][0].run.folder).probe).to_pylist()
    last = max(row["step"] for row in rows)
    start, end = ({row["row"]: row for row in rows if row["step"] == step} for step in (0, last))
    pairs = sorted(
        (row["chosen_tokens"], (end[key]["chosen_logp_sum"] - row["chosen_logp_sum"]) / row["chosen_tokens"])
        for key, row in start.items()
    )
    assert list(tokens_P) == [tokens for tokens, _ in pairs]
    found = sorted(zip(tokens_P, change_P, strict=True))
    assert [change for _, change in found] == pytest.approx([change for _, change in pairs])
    head, _, line = dynamics.length_table(records).splitlines()[:3]
    assert f"| {tokens_P[0]} to " in head
    assert f" to {tokens_P[-1]} tokens |" in head
    assert line.count("[") == 4


def test_slopes_of_sums_are_told_by_their_middle_and_their_ends(monkeypatch):
    values = {0: [1.0, 0.5], 1: [1.0, 2.0], 2: [1.0, 54321.0]}
    monkeypatch.setattr(dynamics, "slopes", lambda record: values[record])
    text = dynamics.slope_table({"dpo": [0, 1, 2]})
    assert text.splitlines()[2] == "| dpo | 1.00 [1.00, 1.00] | 1.00 [1.00, 1.00] | 2.00 [0.50, 5.4e+04] |"


class Fabricated:
    """A chain whose runs are there."""

    def __init__(self, root: Path, loss: str) -> None:
        self.arm, self.words = Arm(loss, (f"loss={loss}",)), ()
        changed = {"data__label_noise": 0.25}
        self._records = [
            read_record(read_run(write_run(root, loss, seed, **more))) for seed in range(5) for more in ({}, changed)
        ]
        self._tried = write_run(root, loss, 42, optim__lr_factor=3.0)

    def records(self):
        return self._records

    def rates(self):
        return [Rate(3.0, read_record(read_run(self._tried)))]

    def grids(self):
        return []


def test_a_page_of_arms_has_its_blocks_and_a_figure(tmp_path):
    chains = [Fabricated(tmp_path, loss) for loss in ("lsif", "dpo")]
    page = compared.page("noise", "A question?", chains, baseline="loss=dpo", x="data.label_noise")
    blocks = page.blocks()
    assert set(blocks) == {"cost", "rates", "final", "differences", "cells", "validation"}
    assert blocks["cost"].startswith("20 runs, and 2 that chose the learning rates.")
    assert blocks["rates"].splitlines()[2].startswith("| lsif | **")
    assert blocks["final"].splitlines()[0].startswith("| loss | label_noise |")
    assert blocks["final"].count("| lsif |") == 2
    assert "| lsif, label_noise 0.25 | dpo, label_noise 0.25 |" in blocks["differences"]
    page.draw(tmp_path)
    assert 5_000 < (tmp_path / "noise.png").stat().st_size < 300_000


def test_arms_are_compared_once_more_at_one_rate_and_a_row_stands_once():
    chains = [Chain(Arm(loss, (f"loss={loss}",)), ("results/dynamics",)) for loss in ("lsif", "dpo")]
    page = compared.page("which_h", "A question?", chains, baseline="loss=lsif", same_rate="optim.lr_factor=1")
    assert [chain.rate for chain in page.chains] == [None, None, "optim.lr_factor=1", "optim.lr_factor=1"]
    at_one_rate = page.chains[2:]
    assert len(tables.cells([*at_one_rate, *at_one_rate]).splitlines()) == 4
    assert "loss=dpo optim.lr_factor=1 seed=0`" in tables.cells(at_one_rate)


def test_solutions_are_ranked_by_the_policy_itself(tmp_path):
    record = read_record(read_run(write_run(tmp_path, "lsif", 0, effect=(0.0, -9.0), between_seeds=0.0)))
    start, end = reasoning.measured(record)
    assert end.wrong - start.wrong == pytest.approx(-9, abs=0.02)
    assert start.ranked < 0.7
    assert end.ranked == 1.0
    assert end.ranked_whole > start.ranked_whole
    text = reasoning.table({"lsif": [(start, end), (start, end)]})
    assert text.splitlines()[2].startswith(f"| before | \N{MINUS SIGN}{-start.right:.3f} |")
    assert "| 100.0 [100.0, 100.0] |" in text.splitlines()[3]
