from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dil_cli.dynamics.probe import choose_probe, probe_steps, read_probe, write_probe
from dil_cli.errors import DilError
from dil_cli.types import PairLogps


def pairs(chosen, rejected, rejected_tokens=(3, 4), reference=None):
    return PairLogps(
        torch.tensor(chosen),
        torch.tensor(rejected),
        torch.tensor([4, 2]),
        torch.tensor(rejected_tokens),
        reference if reference is None else torch.tensor(reference[0]),
        reference if reference is None else torch.tensor(reference[1]),
    )


@pytest.mark.parametrize(
    ("total", "times", "steps"),
    [
        (53, 10, [0, 5, 11, 16, 21, 27, 32, 37, 42, 48, 53]),
        (100, 4, [0, 25, 50, 75, 100]),
        (3, 10, [0, 1, 2, 3]),
        (1, 1, [0, 1]),
        (7, 1, [0, 7]),
        (0, 5, [0]),
    ],
)
def test_probe_steps_are_spread_evenly(total, times, steps):
    assert probe_steps(total, times) == steps


def test_probe_steps_always_begin_at_0_and_end_at_the_end():
    for total in range(1, 120):
        for times in (1, 2, 3, 7, 10, 50):
            steps = probe_steps(total, times)
            assert steps[0] == 0
            assert steps[-1] == total
            assert len(steps) == min(total, times) + 1
            gaps = {b - a for a, b in pairwise(steps)}
            assert max(gaps) - min(gaps) <= 1


def test_the_probe_set_is_spread_over_the_held_out_pairs():
    assert choose_probe(10, 5) == [1, 3, 5, 7, 9]
    assert choose_probe(3, 128) == [0, 1, 2]
    assert choose_probe(370, 1) == [185]
    chosen = choose_probe(370, 128)
    assert len(set(chosen)) == 128
    assert chosen == sorted(chosen)
    assert chosen[-1] < 370


def test_an_empty_held_out_split_is_refused():
    with pytest.raises(DilError) as caught:
        choose_probe(0, 128)
    assert str(caught.value) == (
        "error: no pair is held out, so nothing can be measured\n"
        "where: data.heldout_split, data.heldout_fraction\n"
        "fix:   data.heldout_split=null data.heldout_fraction=0.1"
    )


def test_parquet_round_trip_in_step_order(tmp_path):
    start = pairs([-3.0, -5.0], [-3.0, -4.0])
    now = pairs([-4.0, -6.0], [-6.0, -4.0], reference=([-6.0, -5.0], [-3.0, -6.0]))
    folder = tmp_path / "probe"
    late = write_probe(folder, 1_000_000, [7, 9], now, start)  # seven digits sort behind six
    write_probe(folder, 999_999, [7, 9], now, None)
    assert write_probe(folder, 0, [7, 9], start, start).name == "step-000000.parquet"
    assert late.name == "step-1000000.parquet"
    assert len(list(folder.iterdir())) == 3  # nothing temporary is left

    table = read_probe(folder)
    assert table.column("step").to_pylist() == [0, 0, 999_999, 999_999, 1_000_000, 1_000_000]
    assert {str(table.schema.field(name).type) for name in table.column_names} == {"int64", "double"}
    assert table.slice(4).to_pylist() == [
        {
            "step": 1_000_000, "row": 7, "chosen_tokens": 4, "rejected_tokens": 3,
            "chosen_logp_sum": -4.0, "rejected_logp_sum": -6.0,
            "reference_chosen_sum": -6.0, "reference_rejected_sum": -3.0,
            "delta_chosen": -0.25, "delta_rejected": -1.0, "delta_margin": 0.75,
        },
        {
            "step": 1_000_000, "row": 9, "chosen_tokens": 2, "rejected_tokens": 4,
            "chosen_logp_sum": -6.0, "rejected_logp_sum": -4.0,
            "reference_chosen_sum": -5.0, "reference_rejected_sum": -6.0,
            "delta_chosen": -0.5, "delta_rejected": 0.0, "delta_margin": -0.5,
        },
    ]  # fmt: skip
    assert table.slice(2, 2).column("delta_chosen").to_pylist() == [None, None]
    assert table.slice(0, 2).column("reference_chosen_sum").to_pylist() == [None, None]


def test_a_demonstration_has_null_rejected_columns(tmp_path):
    write_probe(
        tmp_path,
        3,
        [1, 2],
        pairs([-4.0, -6.0], [0.0, 0.0], (0, 0)),
        pairs([-3.0, -5.0], [0.0, 0.0], (0, 0)),
    )
    first = read_probe(tmp_path).to_pylist()[0]
    assert first["delta_chosen"] == -0.25
    assert first["rejected_tokens"] == 0
    assert first["rejected_logp_sum"] is first["delta_rejected"] is first["delta_margin"] is None


def test_a_run_without_measurements_reads_as_an_empty_table(tmp_path):
    table = read_probe(tmp_path / "probe")
    assert table.num_rows == 0
    assert "delta_margin" in table.column_names


def test_a_damaged_file_is_named(tmp_path):
    path = write_probe(tmp_path, 5, [1, 2], pairs([-4.0, -6.0], [-6.0, -4.0]), None)
    path.write_bytes(path.read_bytes()[:100])
    with pytest.raises(DilError) as caught:
        read_probe(tmp_path)
    assert caught.value.what == "this probe file is damaged"
    assert caught.value.where == str(path)
