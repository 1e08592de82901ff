from __future__ import annotations

import ast
import json
import os
import shutil
from pathlib import Path

import pytest
from run_folders import write_run, write_sweep

from dil_cli.errors import DilError
from dil_cli.files import parse_json
from dil_cli.report import experiment
from dil_cli.report.build import ALL_FORMATS, build
from dil_cli.report.record import read_records
from dil_cli.report.runs import find_runs, read_run
from dil_cli.report.sweep import read_sweep


def test_runs_are_found_at_any_depth_and_each_once(tmp_path: Path):
    a = write_run(tmp_path / "x" / "deep" / "er", "lsif", 0)
    b = write_run(tmp_path / "x", "dpo", 1)
    (a / "checkpoints" / "step-000050").mkdir(parents=True)
    (a / "checkpoints" / "step-000050" / "manifest.json").write_text("{}")  # nothing below a run is a run
    (tmp_path / "x" / "cache" / "reference").mkdir(parents=True)
    (tmp_path / "x" / "cache" / "reference" / "manifest.json").write_text("{}")
    runs, damaged = find_runs([tmp_path / "x", a, b / ".." / b.name])
    assert [run.folder for run in runs] == sorted([a.resolve(), b.resolve()], key=str)
    assert damaged == []


def test_a_run_is_what_its_files_say(tmp_path: Path):
    run = read_run(write_run(tmp_path, "dpo", 3))
    assert (run.loss, run.reduction, run.seed, run.status) == ("dpo", "sum", 3, "done")
    assert run.name == "tiny-gsm8k_pairs-dpo"
    assert run.config["loss"]["beta"] == 0.1
    assert len(run.hash) == 8


def test_status(tmp_path: Path):
    unfinished, failed = write_run(tmp_path, "lsif", 0), write_run(tmp_path, "lsif", 1)
    for folder in (unfinished, failed):
        (folder / "result.json").unlink()
    (failed / "failure.json").write_text(json.dumps({"step": 7, "what": "the loss is not finite"}))
    assert read_run(unfinished).status == "unfinished"
    assert read_run(failed).status == "failed"
    assert read_run(failed).failure == {"step": 7, "what": "the loss is not finite"}


@pytest.mark.parametrize(
    ("file", "content", "reason"),
    [
        ("manifest.json", None, "manifest.json is missing"),
        ("manifest.json", '{"hash": "12', "manifest.json cannot be read as JSON"),
        ("manifest.json", "[]", "manifest.json is not a JSON object"),
        ("manifest.json", '{"hash": "12345678"}', "manifest.json holds no config"),
        ("manifest.json", '{"hash": "12345678", "config": {"name": "x"}}', "no usable value of 'loss'"),
        ("result.json", "", "result.json cannot be read as JSON"),
        ("result.json", '{"end": {}}', "no usable value of 'step'"),
        ("result.json", '{"end": {"step": 5, "probe/logps/chosen": -1, "probe/x": "y"}}', "probe/x is no number"),
        ("metrics.jsonl", None, "metrics.jsonl is missing"),
        ("metrics.jsonl", '{"step": 1}\n{"st\n', "metrics.jsonl: line 2 of the record is damaged"),
        ("metrics.jsonl", '{"step": 1}\n', "metrics.jsonl holds no probe measurement"),
        ("metrics.jsonl", '{"probe/logps/chosen": 1}\n', "metrics.jsonl: a row has no step"),
        ("probe/step-000050.parquet", None, "probe/step-000050.parquet is missing"),
        ("probe/step-000050.parquet", "PAR1", "probe/step-000050.parquet is damaged"),
    ],
)
def test_a_damaged_folder_is_named_and_skipped(tmp_path: Path, file, content, reason):
    whole, broken = write_run(tmp_path, "lsif", 0), write_run(tmp_path, "lsif", 1)
    if content is None:
        (broken / file).unlink()
    else:
        (broken / file).write_text(content)
    runs, damaged = find_runs([tmp_path])
    records, more = read_records(runs)
    assert [record.run.folder for record in records] == [whole.resolve()]
    ((folder, told),) = [(item.folder, item.reason) for item in [*damaged, *more]]
    assert folder == broken.resolve()
    assert reason in told
    assert str(tmp_path) not in told


HOSTILE = {
    "huge": '{"benchmark": "g", "metrics": {"m": 1' + 400 * "0" + "}}",
    "deep": 100_000 * "[",
    "surrogate": '{"benchmark": "g", "metrics": {"\\ud800": 1}}',
    "infinite": '{"benchmark": "g", "metrics": {"m": 1e999}}',
}


@pytest.mark.parametrize("hostile", HOSTILE)
@pytest.mark.parametrize(
    "name", ["result.json", *(pytest.param(name, marks=pytest.mark.slow)
                              for name in ("manifest.json", "eval/a.json", "metrics.jsonl"))],
)  # fmt: skip
def test_json_that_anyone_may_have_written(tmp_path: Path, name: str, hostile: str):
    write_run(tmp_path, "lsif", 0)
    folder = write_run(tmp_path, "lsif", 1)
    (folder / "eval").mkdir()
    (folder / name).write_text(HOSTILE[hostile] + "\n")
    report = build([tmp_path], tmp_path / "out", None, ALL_FORMATS)
    assert report.finished == (2 if name == "eval/a.json" else 1)
    assert len(report.left_out) == (0 if name == "eval/a.json" and hostile == "surrogate" else 1)


def test_characters_that_would_turn_or_hide_what_follows():
    assert parse_json('{"a\\u202e": ["\\u001b[31m", "\\u0000", "plain \\u00e9"]}') == {
        "a\N{REPLACEMENT CHARACTER}": [
            "\N{REPLACEMENT CHARACTER}[31m", "\N{REPLACEMENT CHARACTER}", "plain \N{LATIN SMALL LETTER E WITH ACUTE}",
        ]
    }  # fmt: skip


def test_a_number_that_is_none_and_a_pipe(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    folder = write_run(tmp_path, "lsif", 1)
    (folder / "eval").mkdir()
    os.mkfifo(folder / "eval" / "g.json")
    result = json.loads((folder / "result.json").read_text())
    (folder / "result.json").write_text(json.dumps(result | {"train_seconds": "x"}))
    assert build([tmp_path], tmp_path / "out", None, ["html"]).finished == 1


def test_any_cut_of_any_file_is_survived(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    broken = write_run(tmp_path, "lsif", 1)
    for file in ("manifest.json", "result.json", "metrics.jsonl", "probe/step-000050.parquet"):
        content = (broken / file).read_bytes()
        for share in (0.0, 0.2, 0.5, 0.999):
            (broken / file).write_bytes(content[: int(share * len(content))])
            records, _ = read_records(find_runs([tmp_path])[0])
            # A record that is cut in its last line is read up to there, as after a kill.
            assert len(records) == 1 + (file == "metrics.jsonl" and share > 0)
        (broken / file).write_bytes(content)
    assert len(read_records(find_runs([tmp_path])[0])[0]) == 2


def test_no_run_at_all(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    for path, what in ((tmp_path / "empty", "there is no run here"), (tmp_path / "gone", "gone is not there")):
        with pytest.raises(DilError, match=what) as raised:
            find_runs([path])
        assert raised.value.exit_code == 2
        assert raised.value.fix
    broken = write_run(tmp_path / "broken", "lsif", 0)
    (broken / "manifest.json").write_text("{")
    with pytest.raises(DilError, match=r"no usable run: tiny.*manifest\.json cannot be read"):
        find_runs([tmp_path / "broken"])


def test_a_run_that_is_there_twice_counts_once(tmp_path: Path):
    first = write_run(tmp_path / "a", "lsif", 0)
    second = tmp_path / "b" / first.name
    shutil.copytree(first, second)
    (first / "result.json").unlink()
    runs, damaged = find_runs([tmp_path])
    assert [(run.folder, run.status) for run in runs] == [(second.resolve(), "done")]
    assert damaged[0].folder == first.resolve()
    assert "is there already" in damaged[0].reason


def test_a_sweep_names_its_runs_and_what_is_missing(tmp_path: Path):
    runs = [write_run(tmp_path, "lsif", seed) for seed in range(2)]
    other = write_run(tmp_path, "dpo", 0)
    jobs = [([f"seed={i}"], run) for i, run in enumerate(runs)] + [(["loss=bce"], tmp_path / "tiny-bce-00000000")]
    folder = write_sweep(tmp_path / "sweeps" / "s-1a2b3c4d", jobs, swept=["loss", "seed"], x="data.label_noise")
    found, damaged = find_runs([folder])
    assert {run.folder for run in found} == {run.resolve() for run in runs}
    assert other.resolve() not in {run.folder for run in found}
    assert [(item.folder.name, item.reason) for item in damaged] == [
        ("tiny-bce-00000000", "missing; the sweep's job is loss=bce")
    ]
    sweep = read_sweep(folder)
    assert sweep.swept == ("loss.name", "seed")
    assert sweep.x == "data.label_noise"
    (folder / "sweep.json").write_text('{"name": "s"}')
    with pytest.raises(DilError, match=r"sweep\.json is damaged"):
        find_runs([folder])


def test_keys_that_do_not_matter_are_those_of_the_run_hash():
    source = (Path(experiment.__file__).parents[1] / "config" / "identity.py").read_text()  # importing it loads torch
    (value,) = (
        node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "NOT_IDENTITY"
    )
    assert ast.literal_eval(value) == experiment.NOT_IDENTITY
