"""Whatever the number of processes, a run is the same run: record, measurements, weights; and it can be stopped."""

from __future__ import annotations

import json
import os
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from subprocess import PIPE, Popen

import pyarrow.parquet as pq
import pytest
import torch
from ranks import Ranks
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from tests.reliability.traces import MEASURED, OFTEN, run_in, traces

ZERO3 = pytest.param(
    "zero3",
    marks=[
        pytest.mark.distributed,
        pytest.mark.skipif(find_spec("deepspeed") is None, reason="pip install 'dil[deepspeed]'"),
    ],
)
KINDS = ["ddp", "fsdp2", ZERO3]

LONGER = "optim.epochs=2"
"""18 steps, so that a signal comes before the last of them on a machine that is busy."""


@pytest.fixture
def ranks(tmp_path: Path) -> Iterator[Callable[..., Ranks]]:
    """`ranks(2, "train", ...)`: so many processes; those that are left at the end of the test are killed."""
    started: list[Ranks] = []

    def start(number: int, *argv: str) -> Ranks:
        started.append(Ranks(tmp_path, number, list(argv)))
        return started[-1]

    yield start
    for one in started:
        one.send(signal.SIGKILL)


@pytest.fixture
def words(small_run: list[str]) -> list[str]:
    """A run of 9 steps whose batches take several micro-batches."""
    return ["train", *small_run, "optim.token_budget=90", OFTEN, "checkpoint.every=4"]


def rows_of(run: Path) -> list[dict[str, object]]:
    rows = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key.rpartition("/")[2] not in MEASURED} for row in rows]


def last_checkpoint(run: Path) -> Path:
    return max((run / "checkpoints").iterdir())


def require_equal(run: Path, alone: Path, rel: float = 1e-5) -> None:
    """Every number of the record and the probe files, and the weights."""
    rows, expected = rows_of(run), rows_of(alone)
    assert len(rows) == len(expected) > 9
    for row, other in zip(rows, expected, strict=True):
        assert row.keys() == other.keys()
        for key, value in other.items():
            if key.endswith(("accuracy", "accuracy_mean", "both_falling", "chosen_cost")) or "alarm" in key:
                continue  # a share or a quotient of differences that may be rounding alone
            assert row[key] == pytest.approx(value, rel=rel, abs=rel), (key, row["step"])
    files = sorted(path.name for path in (alone / "probe").iterdir())
    assert len(files) == 4
    for name in files:
        table, other = (pq.read_table(path / "probe" / name) for path in (run, alone))
        assert table.column_names == other.column_names
        for column in table.column_names:
            assert table[column].to_pylist() == pytest.approx(other[column].to_pylist(), rel=rel, abs=rel)
    weights, other = (load_file(*last_checkpoint(path).glob("*.safetensors")) for path in (run, alone))
    assert weights.keys() == other.keys()
    for name, value in other.items():
        torch.testing.assert_close(weights[name], value, rtol=1e-3, atol=2e-5)  # Adam divides by small moments


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("number", [2, pytest.param(4, marks=pytest.mark.distributed)])
@pytest.mark.parametrize(
    "more",
    [
        ["loss=lsif"],
        pytest.param(["loss=kto"], marks=pytest.mark.distributed),
        pytest.param(["loss=dpo", "model.attention=eager"], marks=pytest.mark.distributed),
        pytest.param(["loss=sft", "optim.batch_size=3"], marks=pytest.mark.distributed),
        pytest.param(["loss=ukl", "peft=lora"], marks=pytest.mark.distributed),
    ],
    ids=["packed", "coupled", "padded", "few", "adapter"],
)
def test_several_processes_give_what_one_gives(kind, number, more, ranks, words, tmp_path: Path):
    alone = ranks(1, *words, *more, "output=alone")
    assert alone.wait() == [0], alone.text
    several = ranks(number, *words, *more, "output=several", f"distributed={kind}")
    assert several.wait() == [0] * number, several.text
    assert all(not rank.text for rank in several.all[1:]), several.text
    run = run_in(tmp_path / "several")
    assert run.name == run_in(tmp_path / "alone").name
    require_equal(run, run_in(tmp_path / "alone"))
    model = AutoModelForCausalLM.from_pretrained(last_checkpoint(run))  # an adapter with its base
    assert type(model).__name__ == "LlamaForCausalLM"


@pytest.mark.parametrize("kind", [ZERO3])
def test_in_bfloat16_it_differs_by_rounding(kind, ranks, words, tmp_path: Path):
    words = [*words, "precision=bf16", "optim.lr=1e-5"]
    alone = ranks(1, *words, "output=alone")
    assert alone.wait() == [0], alone.text
    several = ranks(2, *words, "output=several", f"distributed={kind}")
    assert several.wait() == [0, 0], several.text
    rows, expected = (rows_of(run_in(tmp_path / output)) for output in ("several", "alone"))
    for row, other in zip(rows, expected, strict=True):
        for key in {"loss", "grad_norm", "probe/loss"} & row.keys():
            assert row[key] == pytest.approx(other[key], rel=2e-2), (key, row["step"])
    weights = load_file(last_checkpoint(run_in(tmp_path / "several")) / "model.safetensors")
    assert {tensor.dtype for tensor in weights.values()} == {torch.float32}


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
def test_killed_and_stopped_it_goes_on_to_the_same_end(kind, ranks, words, tmp_path: Path):
    words = [*words, LONGER, f"distributed={kind}"]
    whole = ranks(2, *words, "output=whole")
    assert whole.wait() == [0, 0], whole.text
    torn = ranks(2, *words, "output=torn")
    assert torn[0].says("step 3/18")
    torn[1].send(signal.SIGKILL)
    assert torn.wait()[1] == -signal.SIGKILL
    assert torn[0].wait() == 1, torn.text
    stopped = ranks(2, *words, "output=torn")
    assert stopped[0].says("step 6/18")
    stopped[1].send(signal.SIGTERM)
    assert stopped.wait() == [75, 75], stopped.text
    assert stopped.text.count("is saved, the same command goes on") == 1
    again = ranks(2, *words, "output=torn")
    assert again.wait() == [0, 0], again.text
    assert "going on after step" in again[0].text
    assert traces(run_in(tmp_path / "torn")) == traces(run_in(tmp_path / "whole"))


@pytest.mark.distributed
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("before", "after"), [(2, 1), (1, 2), (4, 2)])
def test_a_run_goes_on_with_another_number_of_processes(kind, before, after, ranks, words, tmp_path: Path):
    def start(number: int, output: str) -> Ranks:
        return ranks(number, *words, LONGER, output, f"distributed={kind if number > 1 else 'none'}")

    alone = start(1, "output=alone")
    assert alone.wait() == [0]
    torn = start(before, "output=torn")
    assert torn[0].says("step 5/18")
    torn.send(signal.SIGTERM)
    assert torn.wait() == [75] * before, torn.text
    again = start(after, "output=torn")
    assert again.wait() == [0] * after, again.text
    assert "going on after step" in again[0].text
    require_equal(run_in(tmp_path / "torn"), run_in(tmp_path / "alone"))


@pytest.mark.distributed
def test_an_error_is_said_once_and_keeps_its_exit_code(ranks, words, tmp_path: Path):
    wrong = ranks(2, *words, "distributed=ddp", "data.path=nowhere.jsonl")
    assert wrong.wait() == [2, 2], wrong.text
    assert wrong.text.count("error:") == 1
    lost = ranks(2, *words, "distributed=ddp", "optim.lr=1e30")
    assert lost.wait() == [1, 1], lost.text
    assert lost.text.count("error:") == 1
    many = ranks(2, *words)
    assert many.wait() == [2, 2]
    assert many.text.strip() == (
        "error: 2 processes were started, and distributed=none is of one\nwhere: distributed=none\n"
        "fix:   distributed=ddp, or fsdp2"
    )


@pytest.mark.distributed
def test_what_does_not_go_in_parts_is_refused(ranks, words):
    for more, what in [
        (["distributed=fsdp2", "optim=muon"], "muon needs whole weights, each process has its part of them"),
        (["distributed=fsdp2", "distributed.offload=true"], "there is no GPU whose memory could be saved"),
    ]:
        refused = ranks(2, *words, *more)
        assert refused.wait() == [2, 2], refused.text
        assert refused.text.count("error:") == refused.text.count(f"error: {what}\n") == 1, refused.text


@pytest.mark.distributed
def test_dil_starts_its_own_processes(dil, words, tmp_path: Path):
    done = dil(*words, "distributed=ddp", "distributed.processes=2")
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("step 9/9") == 1
    wrong = dil(*words, "distributed=ddp", "distributed.processes=2", "optim.lr=1e30")
    assert wrong.returncode == 1
    assert wrong.stderr.count("error:") == 1
    silent = dil(*words, "distributed=ddp")
    assert silent.returncode == 2
    assert silent.stderr.splitlines()[-1] == "fix:   distributed.processes=2"


@pytest.mark.distributed
def test_a_killed_process_of_its_own_start_is_told_in_three_lines(words, tmp_path: Path):
    run = Popen(
        [sys.executable, "-m", "dil_cli", *words, LONGER, "distributed=ddp", "distributed.processes=2"],
        cwd=tmp_path, stdout=PIPE, stderr=PIPE, text=True,
    )  # fmt: skip
    assert run.stdout is not None
    assert any("step 3/18" in line for line in run.stdout)
    children = (Path(f"/proc/{run.pid}/task/{run.pid}/children")).read_text().split()
    ranks = [pid for pid in children if "spawn_main" in Path(f"/proc/{pid}/cmdline").read_text()]
    os.kill(int(ranks[1]), signal.SIGKILL)
    _, told = run.communicate(timeout=120)
    assert run.returncode == 1
    assert told.splitlines() == [
        "error: process 2 of 2 was killed (SIGKILL)",
        f"where: pid {ranks[1]}",
        "fix:   was it the system, for want of memory? the same command goes on from the last state",
    ]
