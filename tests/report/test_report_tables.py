from __future__ import annotations

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from run_folders import PAIRS, STEPS, write_run, write_sweep

from dil_cli.errors import DilError
from dil_cli.report.estimates import BY_KEY, METRICS, best, difference, estimate
from dil_cli.report.experiment import Experiment, arrange
from dil_cli.report.intervals import t_interval
from dil_cli.report.more_tables import eval_table
from dil_cli.report.record import read_records
from dil_cli.report.runs import find_runs
from dil_cli.report.sweep import read_sweep
from dil_cli.report.tables import csv_text, difference_table, final_table, latex, markdown, plain


def experiment_of(*paths: Path, **options: object) -> Experiment:
    records, damaged = read_records(find_runs(paths)[0])
    assert not damaged
    return arrange(records, **options)


def test_runs_that_differ_by_their_seed_are_a_group(seeds: Path):
    experiment = experiment_of(seeds)
    assert experiment.keys == ("loss.name",)
    assert [group.label for group in experiment.groups] == ["lsif", "dpo", "simpo"]
    assert [record.run.seed for record in experiment.groups[0].records] == [0, 1, 2, 3]
    assert experiment.along == ()  # other keys of the loss come with it
    assert experiment.x is None
    assert experiment.partner(experiment.groups[0]) is experiment.groups[1]
    assert experiment.partner(experiment.groups[1]) is None


def test_the_one_numeric_key_is_the_x_axis(tmp_path: Path):
    for noise in (0.0, 0.25):
        for loss in ("lsif", "dpo"):
            write_run(tmp_path, loss, 0, data__label_noise=noise)
    experiment = experiment_of(tmp_path)
    assert experiment.keys == ("loss.name", "data.label_noise")
    assert experiment.x == "data.label_noise"
    assert experiment.groups[1].label == "lsif, label_noise 0.25"
    assert experiment.partner(experiment.groups[1]).label == "dpo, label_noise 0.25"
    write_run(tmp_path, "lsif", 0, optim__epochs=3.0)
    assert experiment_of(tmp_path).x is None  # two, and nobody says which


def test_a_sweep_says_what_was_swept(tmp_path: Path):
    jobs = [([], write_run(tmp_path, "dpo", 0, data__label_noise=n, optim__epochs=e)) for n, e in ((0.0, 1), (0.1, 3))]
    folder = write_sweep(tmp_path / "s", jobs, swept=["optim.epochs", "seed"], x="optim.epochs", baseline="loss=ipo")
    experiment = experiment_of(folder, sweeps=[read_sweep(folder)])
    assert experiment.keys == ("optim.epochs",)
    assert experiment.x == "optim.epochs"
    assert experiment.along == ("data.label_noise",)
    assert experiment.baseline == {"loss.name": "ipo"}


def test_settings_of_one_loss_tell_its_groups_apart(tmp_path: Path):
    for beta in (0.1, 0.01):
        write_run(tmp_path, "dpo", 0, loss__beta=beta)
    write_run(tmp_path, "lsif", 0)
    experiment = experiment_of(tmp_path)
    assert [group.label for group in experiment.groups] == ["lsif", "dpo, beta 0.01", "dpo, beta 0.1"]
    assert experiment.partner(experiment.groups[0]) is None  # two baselines are none
    named = experiment_of(tmp_path, baseline="loss=dpo,loss.beta=0.1")
    assert named.partner(named.groups[0]).label == "dpo, beta 0.1"
    assert named.partner(named.groups[1]).label == "dpo, beta 0.1"
    with pytest.raises(DilError, match="no run here has loss=kto"):
        experiment_of(tmp_path, baseline="loss=kto")
    with pytest.raises(DilError, match="'dpo' is no key=value"):
        experiment_of(tmp_path, baseline="dpo")


def test_keys_outside_the_run_hash_are_no_setting(tmp_path: Path):
    write_run(tmp_path, "lsif", 0, output="a", tracker={"mode": "disabled"})
    write_run(tmp_path, "lsif", 1, output="b", device="cuda")
    experiment = experiment_of(tmp_path)
    assert experiment.keys == ()
    assert [len(group.records) for group in experiment.groups] == [2]


def test_the_same_config_on_other_data_is_another_group(tmp_path: Path):
    write_run(tmp_path, "lsif", 0, data__path="pairs.jsonl")
    write_run(tmp_path, "lsif", 0, data__path="pairs.jsonl", name="other", device="cuda")
    assert len(experiment_of(tmp_path).groups) == 2


def test_estimates_over_seeds_are_t_intervals_of_the_results(seeds: Path):
    group = experiment_of(seeds).groups[0]
    found = estimate(group, BY_KEY["delta/margin"])
    ends = [record.run.result["end"]["probe/delta/margin"] for record in group.records]
    assert found.over == "seeds"
    assert found.interval == t_interval(ends)


@pytest.mark.parametrize("loss", ["lsif", "dpo"])
def test_one_seed_has_a_bootstrap_interval_around_the_recorded_number(tmp_path: Path, loss):
    write_run(tmp_path, loss, 0)
    (group,) = experiment_of(tmp_path).groups
    record = group.records[0]
    for metric in METRICS:
        found = estimate(group, metric)
        assert found.over == "pairs"
        assert found.interval.n == PAIRS
        if not metric.key.startswith("accuracy"):
            assert found.interval.mean == record.run.result["end"][f"probe/{metric.key}"]
        assert found.interval.low < found.interval.mean < found.interval.high or metric.key == "both_falling"
    # The numbers that are resampled are those the record was made of.
    own = record.pairs.won_sum if loss == "dpo" else record.pairs.won_mean
    assert own.mean() == pytest.approx(record.end["probe/accuracy"], abs=1e-12)
    assert estimate(group, BY_KEY["accuracy_mean"]).interval.mean == record.pairs.won_mean.mean()
    assert estimate(group, BY_KEY["accuracy_sum"]).interval.mean == record.pairs.won_sum.mean()
    assert record.pairs.both_falling.mean() == pytest.approx(record.end["probe/both_falling"], abs=1e-12)
    assert record.pairs.margin.mean() == pytest.approx(record.end["probe/delta/margin"], abs=1e-12)


def test_differences_over_one_shared_seed_are_paired_by_pair(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    write_run(tmp_path, "dpo", 0)
    write_run(tmp_path, "simpo", 5)
    lsif, dpo, simpo = experiment_of(tmp_path).groups
    found = difference(lsif, dpo, BY_KEY["delta/chosen"])
    assert found.over == "pairs"
    assert found.mean == pytest.approx(estimate(lsif, BY_KEY["delta/chosen"]).mean - estimate(
        dpo, BY_KEY["delta/chosen"]).mean)  # fmt: skip
    spread = np.std(lsif.records[0].pairs.chosen - dpo.records[0].pairs.chosen) / np.sqrt(PAIRS)
    assert found.interval.high - found.interval.low == pytest.approx(2 * 1.96 * spread, rel=0.1)
    assert difference(lsif, simpo, BY_KEY["delta/chosen"]) is None  # no seed in common


def test_no_difference_between_runs_on_other_pairs(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    write_run(tmp_path, "dpo", 0, pairs=100)
    lsif, dpo = experiment_of(tmp_path).groups
    assert difference(lsif, dpo, BY_KEY["delta/chosen"]) is None


def test_bold_is_what_the_intervals_support(tmp_path: Path):
    for seed in range(4):
        write_run(tmp_path / "clear", "lsif", seed, effect=(-0.1, -0.3))
        write_run(tmp_path / "clear", "dpo", seed, effect=(-0.4, -0.5))
        write_run(tmp_path / "close", "lsif", seed, effect=(-0.1, -0.3), between_seeds=0.05)
        write_run(tmp_path / "close", "dpo", seed, effect=(-0.1001, -0.3001), between_seeds=0.05)
    clear, close = (experiment_of(tmp_path / name) for name in ("clear", "close"))
    assert best(clear.groups, BY_KEY["delta/chosen"]) is clear.groups[0]
    assert best(close.groups, BY_KEY["delta/chosen"]) is None
    assert best(clear.groups, BY_KEY["delta/rejected"]) is None  # neither more nor less is better
    assert best(clear.groups[:1], BY_KEY["delta/chosen"]) is None  # better than nothing is not the best
    head = [column.label for column in final_table(clear).columns]
    bold = [[name for name, cell in zip(head, row, strict=True) if cell.bold] for row in final_table(clear).rows]
    assert bold[0] == ["chosen", "margin", "accuracy per token", "accuracy whole", "chosen_cost", "both falling"]
    assert bold[1] == []
    # chosen is as before when a third group comes that is no worse: one interval that holds 0 is enough.
    for seed in range(4):
        write_run(tmp_path / "clear", "bce", seed, effect=(-0.1, -0.6))
    assert best(experiment_of(tmp_path / "clear").groups, BY_KEY["delta/chosen"]) is None


def test_the_final_table_in_three_formats(seeds: Path):
    experiment = experiment_of(seeds)
    table = final_table(experiment)
    text = markdown(table)
    assert "| loss | loss.reduction | seeds | chosen |" in text
    assert "| dpo | sum | 4 |" in text
    assert "Student's t over seeds" in text
    rows = list(csv.DictReader(io.StringIO(csv_text(table))))
    assert [row["loss"] for row in rows] == ["lsif", "dpo", "simpo"]
    found = estimate(experiment.groups[2], BY_KEY["chosen_cost"]).interval
    assert float(rows[2]["chosen_cost"]) == found.mean
    assert float(rows[2]["chosen_cost_low"]) == found.low
    assert (rows[2]["chosen_cost_n"], rows[2]["chosen_cost_over"]) == ("4", "seeds")
    tex = latex(table)
    assert "chosen\\_cost" in tex
    assert tex.count("\\\\\n") == 4
    assert "$-$" in tex
    assert "loss" in plain(table).splitlines()[1]
    gaps = difference_table(experiment)
    assert [row[0].text for row in gaps.rows] == ["lsif", "simpo"]
    assert {row[1].text for row in gaps.rows} == {"dpo"}


def test_one_seed_is_named_in_the_note(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    assert "bootstrap interval over the 256 probe pairs of one seed" in final_table(experiment_of(tmp_path)).note
    write_run(tmp_path, "dpo", 0)
    write_run(tmp_path, "dpo", 1)
    note = final_table(experiment_of(tmp_path)).note
    assert "Student's t over seeds; in rows with one seed a 95 % bootstrap interval" in note


def evaluated(folder: Path, value: float, *, name: str = "likelihood", place: str = "", **facts: Any) -> None:
    """A record beside the last checkpoint, or at `place`."""
    path = folder / (place or f"checkpoints/step-{STEPS:06d}") / "eval" / f"{name}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"benchmark": name, "metrics": {"m": value}, **facts}))


def evaluations(tmp_path: Path) -> dict[tuple[str, str], list[str]]:
    """Benchmark and group of the table's rows to the cells after them."""
    records, _ = read_records(find_runs([tmp_path])[0])
    table = eval_table(arrange(records))
    assert table is not None
    assert all("#" not in row[0].text for row in table.rows) or "neither averaged nor to be compared" in table.note
    return {(row[0].text, row[2].text): [cell.text for cell in row[4:]] for row in table.rows}


def test_only_evaluations_of_the_same_thing_are_averaged(tmp_path: Path):
    runs = [write_run(tmp_path, "lsif", seed) for seed in range(4)] + [write_run(tmp_path, "dpo", 0)]
    for run, value, pairs in zip(runs, (1.0, 2.0, 30.0, 5.0, 3.0), (370, 370, 10, 370, 370), strict=True):
        evaluated(run, value, pairs=pairs, pairs_sha256="other" if value == 5 else "same")
    found = evaluations(tmp_path)
    assert {key: (cells[0], cells[1].partition(" ")[0]) for key, cells in found.items()} == {
        ("likelihood #1", "lsif"): ("370", "1.500"), ("likelihood #2", "lsif"): ("10", "30.000"),
        ("likelihood #3", "lsif"): ("370", "5.000"), ("likelihood #1", "dpo"): ("370", "3.000"),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ({"judge": {"model": "a"}}, {"judge": {"model": "b"}}, False),
        ({"judge": {"model": "a", "base_url": "http://x"}}, {"judge": {"model": "a", "base_url": "http://y"}}, True),
        ({"opponent": {"name": "chosen"}}, {"opponent": {"name": "rejected"}}, False),
        ({"opponent": {"name": "x", "weights_sha256": "1"}}, {"opponent": {"name": "x", "weights_sha256": "2"}}, True),
        ({"questions": {"scored": 3}}, {"questions": {"scored": 4}}, False),
        ({"data": {"openai/gsm8k": "a"}}, {"data": {"openai/gsm8k": "b"}}, False),
        ({"shots": 5}, {"shots": 0}, False),
        ({"chat_template": {"used": True, "text": "a"}}, {"chat_template": {"used": True, "text": "b"}}, True),
        ({"checkpoint": {"data_sha256": "a"}}, {"checkpoint": {"data_sha256": "b"}}, False),
        ({"checkpoint": {"name": "a", "data_sha256": "a"}}, {"checkpoint": {"name": "b", "data_sha256": "a"}}, True),
    ],
)
def test_what_makes_two_evaluations_comparable(one, other, alike, tmp_path: Path):
    for seed, facts in enumerate((one, other)):
        evaluated(write_run(tmp_path, "lsif", seed), float(seed), **facts)
    assert len(evaluations(tmp_path)) == (1 if alike else 2)


def test_a_checkpoint_before_the_last_is_another_row(tmp_path: Path):
    runs = [write_run(tmp_path, "lsif", seed) for seed in range(2)]
    evaluated(runs[0], 1.0)
    evaluated(runs[1], 9.0, place="checkpoints/step-000025")
    found = evaluations(tmp_path)
    assert {key[0]: cells[1] for key, cells in found.items()} == {
        "likelihood": "1.000", "likelihood at step-000025": "9.000",
    }  # fmt: skip
