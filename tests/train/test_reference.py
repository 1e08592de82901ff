"""The reference column of real runs: what hits, what misses, and that a cached value is the value."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from dil_cli.config.schema import ModelConfig
from dil_cli.dynamics.measure import Compute, score_pairs
from dil_cli.models.load import weights_fingerprint
from dil_cli.models.reference_cache import ReferenceCache, column_files, identify
from dil_cli.tracking.record import read_metrics
from dil_cli.train import reference
from dil_cli.train.reference import look_up, reference_column
from dil_cli.train.throughput import MEASURED
from dil_cli.types import PairLogps, TokenisedPair

COMPUTE = Compute(torch.device("cpu"), bf16=False, token_budget=256, pad_id=0)
NOTHING = np.empty(0, np.int32)


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of pairs of each call that computes reference log-probs."""
    calls: list[int] = []

    def counted(model, pairs, compute, advance=lambda n: None) -> PairLogps:
        calls.append(len(pairs))
        return score_pairs(model, pairs, compute, advance)

    monkeypatch.setattr(reference, "score_pairs", counted)
    return calls


@pytest.fixture
def train(dil_here: Callable, small_run: list[str]) -> Callable[..., str]:
    """`train("loss=dpo")` runs to its end and returns what it printed."""

    def run(*argv: str) -> str:
        code, out, err = dil_here("train", *small_run, "probe.times=1", *argv)
        assert code == 0, err
        return out

    return run


def metrics(folder: Path) -> list[dict]:
    return [{k: v for k, v in row.items() if k not in MEASURED} for row in read_metrics(folder / "metrics.jsonl")]


def test_a_sweep_of_five_losses_costs_one_pass(train, passes, tmp_path: Path):
    train("-m", "loss=lsif,bce,ukl,dpo,ipo")
    assert len(list((tmp_path / "outputs").glob("*/result.json"))) == 5
    assert sorted(passes) == [4, 36]  # the probe set and the training pairs, once each
    assert len(list((tmp_path / "outputs" / "cache" / "reference").iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        "data.label_noise=0.4", "loss=dpo", "seed=5", "model.gradient_checkpointing=true",
        *(pytest.param(change, marks=pytest.mark.slow) for change in [
            "optim.epochs=2", "optim.lr=2e-3", "loss=simpo", "data.limit=20", "optim.token_budget=64",
            "model.attention=eager", "data.heldout_fraction=0.3", "optim.batch_size=9", "loss.reduction=sum",
        ]),
    ],
)  # fmt: skip
def test_what_changes_no_value_hits_all(change, train, passes):
    assert "reference log-probs: all 36 pairs computed" in train()
    assert sum(passes) == 40
    out = train(change, "hydra.run.dir=second")
    assert sum(passes) == 40
    assert "probe set at step 0: 4 of 4 pairs from the cache" in out or change == "data.heldout_fraction=0.3"
    assert "computed" not in out


def other_model(folder: Path, change: Callable[[Path], None]) -> Callable[[Path], list[str]]:
    def changed(tmp_path: Path) -> list[str]:
        copy = tmp_path / "other"
        shutil.copytree(folder, copy)
        change(copy)
        return [f"model.path={copy}"]

    return changed


def change_tokenizer(folder: Path) -> None:
    """'pl' becomes one token, in the place of a byte that no pair has."""
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["pl"] = vocabulary.pop("Z")
    tokenizer["model"]["merges"] = [["p", "l"]]
    path.write_text(json.dumps(tokenizer))


def change_template(folder: Path) -> None:
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("{{ m['content'] }}", " {{ m['content'] }}"))


def change_one_weight(folder: Path) -> None:
    path = folder / "model.safetensors"
    weights = load_file(path)
    weights["model.layers.0.self_attn.q_proj.weight"][2, 3] += 1e-6
    save_file(weights, path, metadata={"format": "pt"})


def change_rope(folder: Path) -> None:
    path = folder / "config.json"
    config = json.loads(path.read_text())
    config["rope_parameters"]["rope_theta"] = 20_000.0
    path.write_text(json.dumps(config))


@pytest.mark.parametrize(
    "change",
    [
        change_tokenizer, change_template, change_one_weight, change_rope,
        ["model.max_prompt_length=8"], ["model.max_length=17"], ["model.dtype=bf16"], ["precision=bf16"],
    ],
    ids=lambda change: change[0] if isinstance(change, list) else change.__name__,
)  # fmt: skip
def test_what_changes_a_value_misses(change, train, passes, model_folder: Path, tmp_path: Path):
    train()
    assert sum(passes) == 40
    argv = change if isinstance(change, list) else other_model(model_folder, change)(tmp_path)
    if argv == ["model.max_length=17"]:
        argv = [*argv, "model.max_prompt_length=12"]
    out = train(*argv)
    assert sum(passes) == 80
    assert "reference log-probs: all 36 pairs computed" in out


def test_in_bfloat16_each_attention_has_its_own_values(train, passes):
    for attention in ("packed", "sdpa", "packed"):
        train("precision=bf16", f"model.attention={attention}")
    assert sum(passes) == 80
    train("model.attention=sdpa")
    train()
    assert sum(passes) == 120


def test_a_cached_run_is_the_same_run(train, passes):
    train("hydra.run.dir=first")
    train("hydra.run.dir=cached")
    assert sum(passes) == 40
    train("hydra.run.dir=elsewhere", "output=elsewhere-outputs")
    assert sum(passes) == 80
    first, cached, elsewhere = (metrics(Path(name)) for name in ("first", "cached", "elsewhere"))
    assert first == cached == elsewhere
    assert len(first) > 9
    fingerprints = {
        json.loads(Path(name, "manifest.json").read_text())["reference_sha256"] for name in ("first", "cached")
    }
    assert len(fingerprints) == 1


@pytest.mark.slow
def test_a_run_waits_for_the_one_that_computes_the_column(train, small_run, tmp_path: Path):
    train("loss=lsif")
    (folder,) = (tmp_path / "outputs" / "cache" / "reference").iterdir()
    files = [path.rename(tmp_path / path.name) for path in column_files(folder)]
    with FileLock(f"{folder}.lock"):  # as the run that computes has it
        waiting = subprocess.Popen(
            [sys.executable, "-m", "dil_cli", "train", *small_run, "probe.times=1", "loss=dpo"],
            cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        assert any("probe set at step 0: another run computes them, waiting" in line for line in waiting.stdout)
        for path in files:
            path.rename(folder / path.name)
    out, _ = waiting.communicate(timeout=120)
    assert waiting.returncode == 0, out
    assert "reference log-probs: 36 of 36 pairs from the cache" in out


def test_a_damaged_file_is_said_and_computed_again(train, passes, tmp_path: Path):
    train("hydra.run.dir=first")
    (folder,) = (tmp_path / "outputs" / "cache" / "reference").iterdir()
    largest = max(column_files(folder), key=lambda path: path.stat().st_size)
    largest.write_bytes(largest.read_bytes()[:-100])
    passes.clear()
    out = train("hydra.run.dir=again")
    assert passes == [36]
    (line,) = (line for line in out.splitlines() if "cannot be used" in line)
    assert largest.name in line
    assert metrics(Path("again")) == metrics(Path("first"))
    assert "cannot be used" not in train("hydra.run.dir=third")
    assert passes == [36]


def test_a_cache_that_cannot_be_written_is_one_line(train, passes, tmp_path: Path):
    (tmp_path / "outputs" / "cache").mkdir(parents=True)
    (tmp_path / "outputs" / "cache" / "reference").write_text("in the way")
    out = train()
    assert out.count("the reference cache") == 1
    assert "cannot be written" in out
    assert sum(passes) == 40


def test_a_value_that_is_wrong_all_the_same_stops_the_run(dil_here, small_run, monkeypatch):
    """A file that is whole, of this reference, and false: only the preflight check can see it."""

    def off(model, pairs, compute, advance=lambda n: None) -> PairLogps:
        column = score_pairs(model, pairs, compute, advance)
        return replace(column, policy_chosen_B=column.policy_chosen_B * 1.01)

    with monkeypatch.context() as patched:
        patched.setattr(reference, "score_pairs", off)
        assert dil_here("train", *small_run)[0] == 1
    for loss in ("dpo", "sft"):
        code, _, err = dil_here("train", *small_run, f"loss={loss}")
        assert code == 1
        assert "not its reference" in err
        assert "dil cache verify" in err


@pytest.fixture
def model(model_folder: Path):
    return AutoModelForCausalLM.from_pretrained(model_folder)


@pytest.fixture
def cache(model, tmp_path: Path, model_folder: Path) -> Callable[[], ReferenceCache]:
    """Opens the cache of `model` in `tmp_path`, as a new run does."""
    config = ModelConfig(
        path=str(model_folder), lr=1, batch_size=1, max_length=64, max_prompt_length=32, token_budget=256
    )
    found = identify(model, weights_fingerprint(model), "fp32")
    return lambda: ReferenceCache(tmp_path / "reference", found, config, model.num_parameters())


def random_pairs(n: int, seed: int = 0) -> list[TokenisedPair]:
    random = np.random.default_rng(seed)

    def ids(least: int, most: int) -> np.ndarray:
        return random.integers(3, 250, random.integers(least, most), dtype=np.int32)

    return [TokenisedPair(row, ids(1, 12), ids(1, 20), ids(1, 20)) for row in range(1, n + 1)]


def columns(logps: PairLogps) -> list[torch.Tensor]:
    return [value for value in vars(logps).values() if value is not None]


def same_bits(one: PairLogps, other: PairLogps) -> bool:
    both = zip(columns(one), columns(other), strict=True)
    return all(torch.equal(x_B, y_B) and x_B.dtype == y_B.dtype for x_B, y_B in both)


def test_cached_equals_computed_bit_by_bit(model, cache, passes):
    pairs = random_pairs(60)
    pairs[7] = replace(pairs[7], rejected=NOTHING)
    direct = score_pairs(model, pairs, COMPUTE)
    assert same_bits(reference_column(model, pairs, COMPUTE, cache()), direct)
    assert passes == [60]
    assert same_bits(reference_column(model, pairs, COMPUTE, cache()), direct)
    assert passes == [60]
    swapped = [replace(pair, chosen=pair.rejected, rejected=pair.chosen) for pair in pairs if len(pair.rejected)]
    column = reference_column(model, swapped[::-1], COMPUTE, cache())
    kept = [i for i in range(60) if i != 7][::-1]
    assert torch.equal(column.policy_chosen_B, direct.policy_rejected_B[kept])
    assert torch.equal(column.rejected_tokens_B, direct.chosen_tokens_B[kept])
    assert passes == [60]


def test_only_what_is_missing_is_computed(model, cache, passes):
    pairs = random_pairs(30)
    told: list[int] = []
    reference_column(model, pairs[:20], COMPUTE, cache())
    mixed = [pairs[25], pairs[3], replace(pairs[4], rejected=pairs[26].rejected), pairs[10]]
    found = look_up(mixed, cache())
    assert (found.hits, found.missing) == (2, [0, 2])
    assert found.describe() == "2 of 4 pairs from the cache, the others computed"
    column = reference_column(model, mixed, COMPUTE, cache(), told.append)
    assert (passes, sum(told)) == ([20, 2], 2)
    direct = score_pairs(model, mixed, COMPUTE)
    for x_B, y_B in zip(columns(column), columns(direct), strict=True):
        torch.testing.assert_close(x_B, y_B, rtol=1e-6, atol=1e-6)


def test_a_response_that_comes_twice_has_one_value(model, cache, monkeypatch):
    monkeypatch.setattr(reference, "PART_TOKENS", 200)
    pairs = random_pairs(12)
    pairs += [
        replace(pair, row=99, rejected=ids.rejected) for pair, ids in zip(pairs, random_pairs(12, 1), strict=True)
    ]
    first = reference_column(model, pairs, COMPUTE, cache())
    assert torch.equal(first.policy_chosen_B[:12], first.policy_chosen_B[12:])
    assert same_bits(first, reference_column(model, pairs, COMPUTE, cache()))


def test_a_long_pass_is_written_in_parts(model, cache, passes, monkeypatch):
    pairs = random_pairs(40)
    direct = score_pairs(model, pairs, COMPUTE)
    monkeypatch.setattr(reference, "PART_TOKENS", 300)
    column = reference_column(model, pairs, COMPUTE, cache())
    assert len(passes) > 3
    assert sum(passes) == 40
    assert len(column_files(cache().folder)) == len(passes)
    for x_B, y_B in zip(columns(column), columns(direct), strict=True):
        torch.testing.assert_close(x_B, y_B, rtol=1e-6, atol=1e-6)


def test_values_that_are_not_finite_are_shown_and_not_kept(model, cache, monkeypatch):
    pairs = random_pairs(6)

    def broken(model, pairs, compute, advance) -> PairLogps:
        logps = score_pairs(model, pairs, compute, advance)
        logps.policy_rejected_B[2] = float("nan")
        return logps

    with monkeypatch.context() as patched:
        patched.setattr(reference, "score_pairs", broken)
        column = reference_column(model, pairs, COMPUTE, cache())
    assert column.policy_rejected_B.isnan().tolist() == [False, False, True, False, False, False]
    assert look_up(pairs, cache()).missing == [2]
    assert reference_column(model, pairs, COMPUTE, cache()).policy_rejected_B.isfinite().all()


PROGRAM = """
import sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[4])
import test_reference as t
from transformers import AutoModelForCausalLM
from dil_cli.train import reference
root, folder, slow = Path(sys.argv[1]), Path(sys.argv[2]), float(sys.argv[3])
model = AutoModelForCausalLM.from_pretrained(folder)
config = t.ModelConfig(path=str(folder), lr=1, batch_size=1, max_length=64, max_prompt_length=32, token_budget=256)
found = t.identify(model, t.weights_fingerprint(model), "fp32")
reference.PART_TOKENS = 150
def score(*args):
    time.sleep(slow)
    return t.score_pairs(*args)
reference.score_pairs = score
print("ready", flush=True)
if not slow:
    sys.stdin.readline()
cache = t.ReferenceCache(root, found, config, 7)
t.reference_column(model, t.random_pairs(60), t.COMPUTE, cache)
assert not cache.notices, cache.notices
"""


def start(root: Path, folder: Path, slow: float) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, str(root), str(folder), str(slow), here],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip


@pytest.mark.slow
def test_two_processes_at_once_leave_a_whole_cache(model, cache, model_folder: Path, tmp_path: Path, passes):
    both = [start(tmp_path / "reference", model_folder, slow=0) for _ in range(2)]
    for process in both:
        assert process.stdout.readline() == "ready\n"
    for process in both:
        process.stdin.write("go\n")
        process.stdin.flush()
    for process in both:
        _, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
    opened = cache()
    assert opened.notices == []
    assert look_up(random_pairs(60), opened).missing == []
    assert not list(opened.folder.glob(".*"))
    column = reference_column(model, random_pairs(60), COMPUTE, opened)
    assert passes == []
    torch.testing.assert_close(
        column.policy_chosen_B, score_pairs(model, random_pairs(60), COMPUTE).policy_chosen_B, rtol=1e-6, atol=1e-6
    )


def test_a_kill_in_the_middle_keeps_the_parts_that_were_written(model, cache, model_folder, tmp_path: Path, passes):
    process = start(tmp_path / "reference", model_folder, slow=0.2)
    deadline = time.monotonic() + 100
    while len(column_files(cache().folder)) < 3 and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate(timeout=60)
    opened = cache()
    assert opened.notices == []
    found = look_up(random_pairs(60), opened)
    assert found.hits > 0
    assert found.missing
    column = reference_column(model, random_pairs(60), COMPUTE, opened)
    assert passes == [len(found.missing)]
    torch.testing.assert_close(
        column.policy_rejected_B, score_pairs(model, random_pairs(60), COMPUTE).policy_rejected_B, rtol=1e-6, atol=1e-6
    )
