"""The benchmarks without TRL, at sizes of seconds: their arithmetic, dil's side, and that what they print is whole."""

from __future__ import annotations

import json
from argparse import Namespace
from itertools import chain, pairwise

import numpy as np
import pytest
import torch

from benchmarks import gpu, models, pairs, scaling, table, vs_trl
from benchmarks.dil_side import Dil
from benchmarks.limit import must_do
from benchmarks.models import QUICK, Shape, build
from benchmarks.pairs import Pair, choose, tokens_per_pair
from benchmarks.sides import Job, Side, compare

TINY = Shape(hidden=32, layers=2, heads=2, kv_heads=1, mlp=64, vocab=101)


@pytest.fixture(autouse=True)
def _threads_as_before():
    """The scripts set torch's threads for their process, which here is that of all tests."""
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def some_pairs(number: int, seed: int = 0, vocab: int = TINY.vocab) -> list[Pair]:
    rng = np.random.default_rng(seed)
    return [
        Pair(*(rng.integers(1, vocab, rng.integers(2, 12), dtype=np.int32) for _ in range(3))) for _ in range(number)
    ]


def test_must_do_work_by_hand():
    shape = Shape(hidden=4, layers=1, heads=2, kv_heads=1, mlp=8, vocab=10)
    # q and o: 2 x 16; k and v: 2 x 4 x 2; MLP: 3 x 4 x 8.
    assert shape.body_weights == 32 + 16 + 96
    work = must_do(shape, [Pair(np.ones(3), np.ones(2), np.ones(4))])
    # 3 prompt tokens, 1 and 3 read of the responses; the last of each is only predicted.
    assert work.body == 2 * 144 * (3 + 1 + 3)
    # 6 within the prompt, 1 x 3 + 1, 3 x 3 + 6.
    assert work.attention == 4 * 1 * 4 * (6 + 4 + 15)
    assert work.head == 2 * 4 * 10 * 6


def test_body_weights_are_those_of_the_model():
    model = build(TINY)
    layers = sum(p.numel() for name, p in model.named_parameters() if ".layers." in name and p.ndim == 2)
    assert TINY.body_weights == layers


def test_models_are_the_same_in_every_process():
    one, two, other = build(TINY), build(TINY), build(TINY, seed=1)
    assert models.weight_sum(one) == models.weight_sum(two) != models.weight_sum(other)


def test_tokens_per_pair_by_hand():
    long, short = Pair(np.ones(5), np.ones(3), np.ones(2)), Pair(np.ones(1), np.ones(1), np.ones(2))
    batches = pairs.Batches([long, short, short, long], [[0, 1], [2, 3]], [[0, 3], [1, 2]])
    counts = tokens_per_pair(batches)
    assert counts["padded"] == 2 * 8
    assert counts["grouped"] == 8 + 3
    assert counts["unpadded"] == (15 + 5) / 2
    assert counts["unique"] == (10 + 4) / 2
    assert counts["response"] == (5 + 3) / 2


def test_both_orders_go_through_the_same_pairs():
    every = some_pairs(60)
    batches = choose(every, batch=4, steps=3)
    for order in (batches.shuffled, batches.grouped):
        assert sorted(chain.from_iterable(order)) == list(range(12))
    assert all(len(group) == 4 for group in batches.shuffled + batches.grouped)
    # Grouped means grouped over the whole set: no batch of it overlaps another in length.
    spans = sorted(
        (min(widths), max(widths))
        for widths in ([batches.pairs[i].longest for i in group] for group in batches.grouped)
    )
    assert all(low[1] <= high[0] for low, high in pairwise(spans))
    found, whole = tokens_per_pair(batches), pairs.whole_set(every, 4)
    assert found == pytest.approx(whole, rel=0.1)


@pytest.mark.parametrize("kind", ["hh", "long"])
def test_bundled_pairs(kind):
    found, source = pairs.load(kind, None, 300)
    most_prompt, most = pairs.LIMITS[kind]
    assert len(found) > 300
    assert "bundled" in source
    for pair in found:
        assert 0 < len(pair.prompt) <= most_prompt
        assert pair.longest <= most
        assert max(map(np.max, pair)) < 300
        for response in pair[1:]:
            assert response[-1] == 0 or len(pair.prompt) + len(response) == most


def test_recorded_lengths_make_pairs():
    found = pairs.from_lengths(vocab=50, max_length=200, number=100)
    assert len(found) == 100
    assert max(pair.longest for pair in found) == 200
    assert max(len(pair.prompt) for pair in found) <= 100


def test_dil_s_side_trains_on_the_batches_it_is_given():
    every = some_pairs(6)
    torch.manual_seed(0)
    dil = Dil(build(TINY), every, lr=1e-2)
    dil.score()
    loss, norm = dil.gradient([0, 1, 2])
    assert loss == pytest.approx(0.693147, abs=1e-5)
    rows = dil.train([[0, 1, 2], [3, 4, 5], [0, 1, 2]])
    assert rows[0]["loss"] == pytest.approx(0.693147, abs=1e-5)
    assert rows[0]["grad_norm"] == pytest.approx(norm, rel=1e-5)
    # The reference stays where it was scored, and the pairs seen before are learnt.
    assert rows[2]["loss"] < rows[0]["loss"]


@pytest.mark.slow
def test_rounds_alternate_and_a_failed_side_leaves_the_others():
    batches = choose(some_pairs(40), batch=2, steps=2)
    job = Job(TINY, batches, bf16=False, threads=1, rounds=2)
    sides = [
        Side("bad", "bad", attention="nonsense"),
        Side("dil_first", "first", reference=True),
        Side("dil_cached", "cached"),
    ]
    turns: list[int] = []
    results = compare(sides, job, between=lambda: turns.append(1))
    assert len(turns) == 3
    grouped = dict.fromkeys(results, False)
    assert [check["ok"] for check in vs_trl.checks(results, grouped, bf16=False)] == [False, True, True]
    assert "nonsense" in results.pop("bad").failed
    for result in results.values():
        assert result.failed is None
        assert len(result.seconds) == 2
        assert min(result.seconds) > 0
        assert result.threads == 1
        assert result.memory_gb > 0
        assert result.moved > 0
    # A first run sees every token twice: once for the reference, once to train.
    unique = tokens_per_pair(batches)["unique"]
    assert results["dil_cached"].body_tokens >= unique - 2
    assert results["dil_first"].body_tokens == pytest.approx(2 * results["dil_cached"].body_tokens, rel=0.1)
    results["dil_first"].first = (0.693147, 2 * results["dil_first"].first[1])
    assert [check["ok"] for check in vs_trl.checks(results, grouped, bf16=False)] == [False, True]


@pytest.mark.slow
def test_vs_trl_prints_and_writes(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("DATA", raising=False)
    monkeypatch.setattr(vs_trl, "TOKENIZER_VOCAB", 300)
    argv = ["vs_trl", "--quick", "--sides", "dil_cached", "--threads", "1", "--steps", "1", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", argv)
    vs_trl.main()
    report = json.loads((tmp_path / "vs_trl.json").read_text())
    assert report["machine"]["versions"]["torch"] == torch.__version__
    lines = table.render([report])
    assert any(line.startswith("| dil, reference cached | ") for line in lines)
    assert any("First step: loss 0.693147 on all 1 sides" in line for line in lines)
    assert "| dil, reference cached |" in capsys.readouterr().out


def test_scaling_at_a_small_size():
    args = Namespace(batch=2, token_budget=256, quick=True)
    row = scaling.by_length(QUICK, 64, args)
    assert row["ms"] > 0
    assert row["gflop"] == pytest.approx(4 * must_do(QUICK, scaling.synthetic(QUICK, 64, 1)).forward / 1e9)
    assert len(scaling.repeat(some_pairs(3), 7)) == 7


@pytest.mark.slow
def test_gpu_script_on_a_cpu(tmp_path, monkeypatch):
    monkeypatch.setattr(gpu.importlib.util, "find_spec", lambda name: None)
    argv = ["--small", "--layers", "1", "--checkpointing", "on", "--threads", "1", "--out", str(tmp_path)]
    report = gpu.run(gpu.arguments(argv))
    sides = {side["name"]: side for side in report["settings"][0]["sides"]}
    assert set(sides) == {"dil_first", "dil_cached"}
    assert all(side["failed"] is None and side["pairs_per_s"] > 0 for side in sides.values())
    assert json.loads((tmp_path / "gpu.json").read_text()) == json.loads(json.dumps(report))
    assert "1 layers" in "\n".join(table.render([report]))


def test_without_a_gpu_the_table_says_not_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "not measured" in table.render([gpu.run(gpu.arguments(["--out", str(tmp_path)]))])


def test_the_ratio_table_names_the_aims():
    side = {
        "seconds": [2.0],
        "on_core": [1.0],
        "failed": None,
        "memory_gb": 1.0,
        "of_limit": 0.5,
        "slowest": 1.0,
        "fastest": 3.0,
        "body_tokens": 9.0,
    }
    sides = [
        side | {"name": name, "title": name, "pairs_per_s": speed, "threads": 1}
        for name, speed in (("trl_online", 1.0), ("trl_precomputed", 2.0), ("trl_grouped", 5.0), ("dil_first", 9.5),
                            ("dil_cached", 21.0))
    ]  # fmt: skip
    setting = {
        "pairs": "hh", "vocab": "8k", "dtype": "fp32", "source": "s", "sides": sides, "checks": [], "batch": 8,
        "rounds": 1, "steps": 1, "matmul_gflops": 1.0, "work_gflop": {"body": 1.0, "attention": 1.0, "head": 1.0},
        "tokens": dict.fromkeys(("padded", "grouped", "unpadded", "unique", "response"), 1.0),
    }  # fmt: skip
    machine = {"versions": {}, "gpu": None, "cpu": "c", "cores": 1, "threads": 1, "memory_gb": 1, "python": "3",
               "revision": "r", "when": "w", "load": 0.0}  # fmt: skip
    text = "\n".join(table.render([{"benchmark": "vs_trl", "quick": False, "command": "c", "machine": machine,
                                    "settings": [setting]}]))  # fmt: skip
    assert "reference precomputed | 10 x | 10.50 x |" in text
    assert "reference online | 9 x | 9.50 x |" in text
    assert "| of the must-do limit, cached | 60 % | 50 % |" in text
    assert "was on a core for 50 % of its time" in text
