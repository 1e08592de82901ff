"""The script for a GPU, shrunk and on a CPU; and what it plans for the true geometry."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import geometry_7b


@pytest.mark.parametrize("way", ["lora", pytest.param("full_bf16", marks=pytest.mark.slow)])
def test_it_trains_a_shrunk_geometry_and_compares(way: str, tmp_path: Path):
    argv = ["--small", "--way", way, "--threads", "1", "--out", str(tmp_path)]
    report = geometry_7b.run(geometry_7b.arguments(argv))
    assert len(report["rows"]) == 2
    assert all(row["tokens_per_s"] > 0 and row["grad_norm"] > 0 for row in report["rows"])
    assert report["layout"].startswith("rows: packed, each prompt once")
    plan = report["plan"]
    assert (plan["trained"] < plan["parameters"]) is (way == "lora")
    assert plan["weights"] == pytest.approx(
        2 * (plan["parameters"] - plan["trained"]) + (4 if way == "lora" else 2) * plan["trained"], rel=0.01
    )
    text = geometry_7b.render(report)
    assert "plan / measured" in text
    assert "MFU not known" in text
    assert json.loads((tmp_path / f"geometry_7b_{way}.json").read_text())["way"] == way


@pytest.mark.slow
@pytest.mark.parametrize("way", geometry_7b.WAYS)
def test_the_true_geometry_fits_one_gpu_by_the_plan(way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    report = geometry_7b.run(geometry_7b.arguments(["--way", way, "--out", str(tmp_path)]))
    assert report["plan"]["parameters"] - report["plan"]["trained"] * (way == "lora") == 7_241_732_096
    assert report["plan"]["total"] < 80e9
    assert "not run: no GPU here" in geometry_7b.render(report)
