from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from run_folders import write_run

from dil_cli.errors import DilError
from dil_cli.report.command import run
from dil_cli.report.compare import compare, first_difference


def edit(folder: Path, change) -> None:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    for row in rows:
        change(row)
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_a_run_and_its_copy_do_not_differ(tmp_path: Path):
    a = write_run(tmp_path, "lsif", 0)
    b = tmp_path / "copy"
    shutil.copytree(a, b)
    lines = compare(a, b, None)
    assert "A and B have the same hash: the same config and data." in lines
    assert "config keys: no difference" in lines
    assert "environment: no difference" in lines
    assert lines[-1] == "the curves are the same up to rounding"


def test_rounding_is_no_difference_and_more_is(tmp_path: Path):
    a = write_run(tmp_path, "lsif", 0)
    b = tmp_path / "copy"
    shutil.copytree(a, b)

    def change(row):
        if "loss" in row:
            row["loss"] *= 1 + (1e-3 if row["step"] >= 17 else 1e-6)
            row["pairs_per_s"] = 1.0  # a time is no curve

    edit(b, change)
    lines = compare(a, b, None)
    assert lines[-1] == "the curves part at step 17"
    assert any(line.split() == ["loss", "50", "step", "17"] for line in lines)
    assert any(line.split() == ["grad_norm", "50", "never"] for line in lines)


def test_settings_versions_and_numbers_are_set_side_by_side(tmp_path: Path):
    a, b = write_run(tmp_path, "lsif", 0), write_run(tmp_path, "dpo", 0)
    manifest = json.loads((b / "manifest.json").read_text())
    manifest["environment"]["packages"]["torch"] = "2.14.0"
    manifest["device"] = "cuda"
    (b / "manifest.json").write_text(json.dumps(manifest))
    words = [line.split() for line in compare(a, b, None)]
    assert ["loss.name", "lsif", "dpo"] in words
    assert ["loss.beta", "-", "0.1"] in words
    assert ["torch", "2.13.0", "2.14.0"] in words
    assert ["device", "cpu", "cuda"] in words
    chosen = next(line for line in words if line and line[0] == "probe/delta/chosen")
    assert float(chosen[3]) == pytest.approx(float(chosen[2]) - float(chosen[1]), abs=1e-5)


def test_an_unfinished_run_is_compared_as_far_as_it_came(tmp_path: Path):
    a, b = write_run(tmp_path, "lsif", 0), write_run(tmp_path, "lsif", 1)
    (b / "result.json").unlink()
    rows = (b / "metrics.jsonl").read_text().splitlines()[:12]
    (b / "metrics.jsonl").write_text("\n".join(rows) + "\n")
    lines = compare(a, b, None)
    assert lines[1].endswith("unfinished")
    assert any(line.split()[:2] == ["loss", "11"] for line in lines)


def test_a_picture_of_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    a, b = write_run(tmp_path, "lsif", 0), write_run(tmp_path, "lsif", 1)
    assert run(["--compare", str(a), str(b), "--out", "both"]) == 0
    assert "picture both/compare.png" in capsys.readouterr().out
    assert (tmp_path / "both" / "compare.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "both" / "compare.pdf").read_bytes()[:4] == b"%PDF"
    with pytest.raises(DilError, match=r"holds no run"):
        run(["--compare", str(a), str(tmp_path)])


def test_first_difference_looks_at_the_steps_of_both():
    a = [{"step": step, "loss": 1.0} for step in range(10)]
    b = [{"step": step, "loss": 1.0 if step < 6 else 2.0} for step in range(0, 20, 2)]
    assert first_difference(a, b, "loss") == (6, 5)
    assert first_difference(a, a, "loss") == (None, 10)
    assert first_difference(a, b, "lr") == (None, 0)
