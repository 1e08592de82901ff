from __future__ import annotations

import numpy as np
import pytest
import torch

from dil_cli.data.batches import epoch_order, micro_batches, pad_rows
from dil_cli.types import TokenisedPair


def tokens(*values):
    return np.array(values, dtype=np.int32)


def sized(prompt, chosen, rejected, row=1):
    return TokenisedPair(row, *(np.full(n, 7, dtype=np.int32) for n in (prompt, chosen, rejected)))


def random_pairs(n, seed, demonstrations=False):
    draw = np.random.default_rng(seed)
    return [sized(*draw.integers(1, 60, 2), 0 if demonstrations else draw.integers(1, 60)) for _ in range(n)]


def padded_tokens(pairs):
    return pad_rows(pairs, 0, "cpu").input_ids_RT.numel()


def test_rows_are_padded_right_chosen_first():
    pairs = [
        TokenisedPair(1, tokens(5, 6), tokens(7), tokens(8, 9)),
        TokenisedPair(2, tokens(4), tokens(3, 2), tokens()),
        TokenisedPair(3, tokens(1), tokens(2), tokens(3)),
    ]
    rows = pad_rows(pairs, pad_id=99, device="cpu")
    assert rows.input_ids_RT.tolist() == [
        [5, 6, 7, 99], [4, 3, 2, 99], [1, 2, 99, 99], [5, 6, 8, 9], [1, 3, 99, 99],
    ]  # fmt: skip
    assert rows.attention_mask_RT.int().tolist() == [
        [1, 1, 1, 0], [1, 1, 1, 0], [1, 1, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0],
    ]  # fmt: skip
    assert rows.response_mask_RT.int().tolist() == [
        [0, 0, 1, 0], [0, 1, 1, 0], [0, 1, 0, 0], [0, 0, 1, 1], [0, 1, 0, 0],
    ]  # fmt: skip
    assert rows.pair_R.tolist() == [0, 1, 2, 0, 2]
    assert rows.pairs == 3
    assert (rows.input_ids_RT.dtype, rows.response_mask_RT.dtype) == (torch.int64, torch.bool)


@pytest.mark.parametrize("demonstrations", [False, True])
@pytest.mark.parametrize("budget", [1, 200, 777, 10**6])
def test_micro_batches_cover_all_once_and_keep_the_budget(budget, demonstrations):
    pairs = random_pairs(100, seed=budget, demonstrations=demonstrations)
    groups = micro_batches(pairs, budget)
    assert sorted(index for group in groups for index in group) == list(range(100))
    for group in groups:
        members = [pairs[index] for index in group]
        assert padded_tokens(members) <= budget or len(members) == 1
    assert len(groups) == {1: 100, 10**6: 1}.get(budget, len(groups))


def test_micro_batches_group_by_length_longest_first_and_fill_the_budget():
    pairs = [sized(2, 2, 2), sized(10, 10, 1), sized(1, 3, 1), sized(1, 1, 19)]
    # Lengths 4, 20, 4, 20: two pairs of 20 are 4 rows of 20; two of 4 are 4 rows of 4.
    assert micro_batches(pairs, 80) == [[1, 3], [0, 2]]
    assert micro_batches(pairs, 79) == [[1], [3], [0, 2]]
    assert micro_batches(pairs, 16) == [[1], [3], [0, 2]]
    assert micro_batches([], 16) == []


def test_grouping_wastes_little():
    pairs = random_pairs(400, seed=0)
    padded = sum(padded_tokens([pairs[i] for i in group]) for group in micro_batches(pairs, 1024))
    at_random = sum(padded_tokens(pairs[i : i + 4]) for i in range(0, 400, 4))
    assert padded < 0.8 * at_random


def test_epoch_order_is_a_function_of_seed_and_epoch():
    order = epoch_order(50, seed=1, epoch=0)
    assert sorted(order) == list(range(50))
    assert (order == epoch_order(50, seed=1, epoch=0)).all()
    others = [epoch_order(50, 1, 1), epoch_order(50, 0, 1), epoch_order(50, 2, 0), np.arange(50)]
    assert all((order != other).any() for other in others)


def test_epoch_order_stays_what_it_was():
    # A stored run is resumed and compared by this order.
    assert epoch_order(8, seed=42, epoch=0).tolist() == [3, 2, 5, 1, 7, 0, 6, 4]
