from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dil_cli.dynamics.alarms import Alarm
from dil_cli.errors import DilError
from dil_cli.tracking.record import MetricsRecord, read_metrics
from dil_cli.tracking.sink import RunInfo, Sinks


def run_info(folder: Path) -> RunInfo:
    return RunInfo(
        name="run", folder=folder, config={"seed": 42}, total_steps=3, loss="lsif", reduction="mean",
        model="tiny", data="gsm8k_pairs", n_train=10, n_probe=4,
    )  # fmt: skip


def test_each_row_is_a_sorted_line_that_is_there_at_once(tmp_path):
    record = MetricsRecord()
    record.start(run_info(tmp_path / "run"))
    path = tmp_path / "run" / "metrics.jsonl"
    record.probe({"step": 0, "probe/margin": 0.0})
    record.step({"step": 1, "loss": -0.5, "lr": np.float32(0.5)})
    assert path.read_text() == '{"probe/margin": 0.0, "step": 0}\n{"loss": -0.5, "lr": 0.5, "step": 1}\n'
    record.alarm(Alarm("chosen_fall", 1, "it fell", 0.7, 0.5))
    record.note("not a number")
    record.finish({"seconds": 3})
    record.close()
    record.close()
    assert read_metrics(path) == [
        {"step": 0, "probe/margin": 0.0},
        {"step": 1, "loss": -0.5, "lr": 0.5},
        {"step": 1, "alarm": "chosen_fall", "message": "it fell", "value": 0.7, "limit": 0.5},
    ]


def test_what_json_cannot_hold_is_null(tmp_path):
    record = MetricsRecord()
    record.start(run_info(tmp_path))
    record.step({"step": 1, "a": float("nan"), "b": float("inf"), "c": np.float64("-inf"), "d": None})
    record.close()
    text = (tmp_path / "metrics.jsonl").read_text()
    assert json.loads(text, parse_constant=pytest.fail) == {"step": 1, "a": None, "b": None, "c": None, "d": None}


def test_a_number_comes_back_to_the_last_bit(tmp_path):
    values = [0.1 + 0.2, 1 / 3, -1e-300, 2**-1074, 1.7976931348623157e308]
    record = MetricsRecord()
    record.start(run_info(tmp_path))
    for step, value in enumerate(values):
        record.step({"step": step, "x": value})
    record.close()
    assert [row["x"] for row in read_metrics(tmp_path / "metrics.jsonl")] == values


def test_a_cut_last_line_is_passed_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2}\n{"step": 3, "lo')
    assert [row["step"] for row in read_metrics(path)] == [1, 2]
    path.write_text("")
    assert read_metrics(path) == []


@pytest.mark.parametrize("line", ['{"step": 2', "[2]", "\x00\x00"])
def test_a_damaged_line_is_named(tmp_path, line):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n' + line + '\n{"step": 3}\n')
    with pytest.raises(DilError) as caught:
        read_metrics(path)
    assert caught.value.what == "line 2 of the record is damaged"
    assert caught.value.where == str(path)


def test_a_missing_record_is_named(tmp_path):
    with pytest.raises(DilError, match="there is no record here"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_a_new_run_starts_the_record_anew(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 99}\n')
    record = MetricsRecord()
    record.start(run_info(tmp_path))
    record.close()
    assert read_metrics(tmp_path / "metrics.jsonl") == []


def test_the_record_is_cut_back_to_an_offset(tmp_path):
    record = MetricsRecord()
    record.start(run_info(tmp_path))
    record.step({"step": 1, "text": "\u00e9"})
    offset = record.offset
    record.step({"step": 2})
    record.close()
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(path.read_bytes() + b'{"step": 3, "cu')

    again = MetricsRecord(keep=offset)
    again.start(run_info(tmp_path))
    again.step({"step": 2, "loss": 1.0})
    again.close()
    assert read_metrics(path) == [{"step": 1, "text": "\u00e9"}, {"step": 2, "loss": 1.0}]
    assert again.offset == path.stat().st_size


def test_a_record_shorter_than_its_offset_is_refused(tmp_path):
    with pytest.raises(DilError, match="holds 0 bytes, the run to go on with wrote 40"):
        MetricsRecord(keep=40).start(run_info(tmp_path))


def test_the_fan_out_reaches_all_and_closes_all(tmp_path):
    first, second = MetricsRecord(), MetricsRecord()
    sinks = Sinks([first, second])
    first.start(run_info(tmp_path / "a"))
    second.start(run_info(tmp_path / "b"))
    sinks.probe({"step": 0})
    sinks.step({"step": 1})
    sinks.alarm(Alarm("x", 1, "m", 2.0, 1.0))

    def broken() -> None:
        raise OSError("disk full")

    second.close, really_close = broken, second.close
    with pytest.raises(OSError, match="disk full"):
        sinks.close()
    with pytest.raises(RuntimeError, match="not open"):
        first.step({"step": 2})
    really_close()
    rows = read_metrics(tmp_path / "a" / "metrics.jsonl")
    assert rows == read_metrics(tmp_path / "b" / "metrics.jsonl")
    assert len(rows) == 3
