"""Packed rows, by hand: which token lies where, what predicts it, and how rows are filled."""

from __future__ import annotations

import numpy as np
import pytest

from dil_cli.data.packing import fill_packs, pack_pairs, packed_tokens
from dil_cli.types import Stem, TokenisedPair


def pair(prompt: list[int], chosen: list[int], rejected: list[int]) -> TokenisedPair:
    return TokenisedPair(1, *(np.array(ids, dtype=np.int32) for ids in (prompt, chosen, rejected)))


def sized(prompt: int, chosen: int, rejected: int) -> TokenisedPair:
    return pair([7] * prompt, [7] * chosen, [7] * rejected)


PAIRS = [pair([11, 12, 13], [21, 22], [31, 32, 33]), pair([14], [23], []), pair([15, 16], [24], [34, 35])]


def test_the_prompt_lies_in_the_row_once_and_predicts_the_first_token_of_both():
    pack = pack_pairs(PAIRS, share_prompt=True, device="cpu")
    # The last token of a response is predicted only, so a response of one token takes no place.
    assert pack.input_ids_T.tolist() == [11, 12, 13, 21, 31, 32, 14, 15, 16, 34]
    assert pack.positions_T.tolist() == [0, 1, 2, 3, 3, 4, 0, 0, 1, 2]
    assert pack.stems == (Stem(0, 3, (1, 2)), Stem(6, 1, (0,)), Stem(7, 2, (0, 1)))
    assert pack.targets_N.tolist() == [21, 22, 31, 32, 33, 23, 24, 34, 35]
    assert pack.places_N.tolist() == [2, 3, 2, 4, 5, 6, 8, 8, 9]
    assert pack.responses_N.tolist() == [0, 0, 3, 3, 3, 1, 2, 5, 5]
    assert pack.pairs == 3


def test_without_sharing_each_response_follows_a_copy_of_its_prompt():
    pack = pack_pairs(PAIRS, share_prompt=False, device="cpu")
    assert pack.input_ids_T.tolist() == [11, 12, 13, 21, 11, 12, 13, 31, 32, 14, 15, 16, 15, 16, 34]
    assert pack.positions_T.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 4, 0, 0, 1, 0, 1, 2]
    assert pack.stems == (Stem(0, 3, (1,)), Stem(4, 3, (2,)), Stem(9, 1, (0,)), Stem(10, 2, (0,)), Stem(12, 2, (1,)))
    assert pack.targets_N.tolist() == [21, 22, 31, 32, 33, 23, 24, 34, 35]
    assert pack.places_N.tolist() == [2, 3, 6, 7, 8, 9, 11, 13, 14]
    assert pack.responses_N.tolist() == [0, 0, 3, 3, 3, 1, 2, 5, 5]


def test_tokens_that_the_model_reads_are_counted_as_they_lie():
    for share in (True, False):
        tokens = sum(packed_tokens(pair, share) for pair in PAIRS)
        assert tokens == len(pack_pairs(PAIRS, share, "cpu").input_ids_T)


@pytest.mark.parametrize("budget", [1, 60, 333, 10**6])
def test_every_pair_lies_in_one_row_and_rows_keep_the_budget(budget: int):
    draw = np.random.default_rng(budget)
    pairs = [sized(*draw.integers(1, 30, 3)) for _ in range(100)]
    groups = fill_packs(pairs, budget, share_prompt=True)
    assert sorted(index for group in groups for index in group) == list(range(100))
    tokens = [sum(packed_tokens(pairs[index]) for index in group) for group in groups]
    assert all(count <= budget or len(group) == 1 for count, group in zip(tokens, groups, strict=True))
    assert len(groups) == {1: 100, 10**6: 1}.get(budget, len(groups))
    if budget == 333:  # hardly more rows than the tokens need
        assert len(groups) <= 1.15 * sum(tokens) / budget + 1


def test_the_longest_come_first_and_equals_keep_their_order():
    pairs = [sized(2, 2, 2), sized(9, 3, 3), sized(2, 2, 2), sized(9, 1, 5)]
    assert fill_packs(pairs, 26, share_prompt=True) == [[1, 3], [0, 2]]
    assert fill_packs(pairs, 30, share_prompt=True) == [[1, 3, 0], [2]]
    assert fill_packs([], 26, share_prompt=True) == []
