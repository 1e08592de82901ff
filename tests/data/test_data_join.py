"""`data.join_to` with `byte_tokenizer`: a token a byte, so every length is counted by hand."""

from __future__ import annotations

import pytest
from by_hand import CHATML, byte_tokenizer, pair

from dil_cli.data.join import join_pairs, join_splits
from dil_cli.data.load import Joined, load_pairs
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.errors import DilError
from dil_cli.types import Message

# Alone 4 + 4 + EOS = 9 tokens; n of them 4 n + 2 (n - 1) for the prompts, as many for the longer response, and EOS.
ROWS = [{"prompt": f"Q{i:02}?", "chosen": f"yes{i % 10}", "rejected": f"no{i % 10}"} for i in range(20)]
LENGTHS = {1: 9, 2: 21, 3: 33, 4: 45}


@pytest.fixture
def join(jsonl, config):
    def made(seed=1, rows=ROWS, tokenizer=None, needs_rejected=True, **fields):
        made = config(jsonl(rows), **{"heldout_fraction": 0.3, "max_length": 1000, **fields})
        loaded = load_pairs(made, seed, needs_rejected)
        return join_splits(loaded, tokenizer or byte_tokenizer(), made, seed), loaded, made

    return made


def lengths(splits, config, tokenizer=None):
    split = tokenise_pairs(splits.train, tokenizer or byte_tokenizer(), config)
    return [len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in split.pairs]


@pytest.mark.parametrize(("join_to", "size"), [(2, 1), (9, 1), (10, 2), (21, 2), (22, 3), (33, 3), (34, 4), (45, 4)])
def test_the_fewest_pairs_that_reach_the_length_to_the_token(join, join_to, size):
    splits, loaded, config = join(join_to=join_to)
    assert lengths(splits, config) == [LENGTHS[size]] * (14 // size)
    groups = [loaded.train[i * size : (i + 1) * size] for i in range(14 // size)]
    for made, group in zip(splits.train, groups, strict=True):
        assert made.row == group[0].row
        assert made.prompt == (Message("user", "\n\n".join(p.prompt[0].content for p in group)),)
        assert made.chosen == "\n\n".join(p.chosen for p in group)
        assert made.rejected == "\n\n".join(p.rejected for p in group)


def test_what_was_joined_and_what_was_left_is_counted_and_told(join):
    splits, _, _ = join(join_to=33)
    assert splits.counts.joined == (Joined(made=4, used=12, short=2), Joined(made=2, used=6, short=0))
    assert (splits.counts.train, splits.counts.heldout) == (len(splits.train), len(splits.heldout)) == (4, 2)
    assert splits.counts.describe() == [
        "train: 20 rows, 20 usable",
        "4 pairs to train on, 2 held out",
        "train: 12 pairs joined into 4 by data.join_to, the last 2 too few for another",
        "held out: 6 pairs joined into 2 by data.join_to",
    ]


def test_limit_and_noise_count_joined_pairs(join):
    splits, loaded, _ = join(join_to=33, limit=2, label_noise=0.5)
    assert len(loaded.train) == 14
    assert loaded.flipped == frozenset()
    assert len(splits.train) == 2
    assert len(splits.flipped) == splits.counts.flipped == 1
    assert splits.flipped < {p.row for p in splits.train}
    assert splits.counts.beyond_limit == 14 - 6
    assert splits.counts.joined == (Joined(made=2, used=6, short=0), Joined(made=2, used=6, short=0))
    assert splits.train == join(join_to=33)[0].train[:2]


def test_unequal_pairs_are_cut_to_exactly_the_length(join):
    rows = [
        {"prompt": "q" * (1 + i % 7), "chosen": "y" * (2 + i % 5), "rejected": "n" * (1 + i % 11)} for i in range(90)
    ]
    for tokenizer in (byte_tokenizer(), byte_tokenizer(adds_bos=True, chat_template=CHATML)):
        splits, loaded, config = join(rows=rows, tokenizer=tokenizer, join_to=80, max_length=80, max_prompt_length=40)
        assert set(lengths(splits, config, tokenizer)) == {80}
        # One pair fewer would not have done; found without the search that made them.
        sizes = [made.chosen.count("\n\n") + 1 for made in splits.train]
        assert len(set(sizes)) > 1
        places = [sum(sizes[:i]) for i in range(len(sizes))]
        for place, size in zip(places, sizes, strict=True):
            group = loaded.train[place : place + size - 1]
            less = pair(
                "\n\n".join(p.prompt[0].content for p in group), "\n\n".join(p.chosen for p in group),
                "\n\n".join(p.rejected for p in group),
            )  # fmt: skip
            assert group
            (short,) = tokenise_pairs([less], tokenizer, config).pairs
            assert len(short.prompt) + max(len(short.chosen), len(short.rejected)) < 80


def test_a_pair_that_is_long_enough_stays_as_it_is(config):
    pairs = [pair("Q", "y" * n, "n", row) for row, n in enumerate((30, 5, 5, 4, 4, 4, 30, 5), start=1)]
    made, counted = join_pairs(pairs, 12, lambda p: len(p.chosen), config())
    assert [(p.row, len(p.chosen)) for p in made] == [(1, 30), (2, 12), (4, 16), (7, 30)]
    assert (made[0], made[3]) == (pairs[0], pairs[6])
    assert counted == Joined(made=4, used=7, short=1)


def test_the_same_every_time_and_another_fingerprint_for_another_length(join):
    assert join(join_to=33)[0] == join(join_to=33)[0]
    assert join(seed=2, join_to=33)[0].train == join(join_to=33)[0].train
    assert join(join_to=33)[0].fingerprint != join(join_to=33)[1].fingerprint
    assert len({join(join_to=n)[0].fingerprint for n in (9, 21, 33)}) == 3


def test_demonstrations_are_joined_too(join):
    rows = [{"question": row["prompt"], "answer": row["chosen"]} for row in ROWS]
    splits, _, _ = join(rows=rows, needs_rejected=False, join_to=21)
    assert [p.rejected for p in splits.train] == [None] * 7
    assert splits.train[0].chosen.count("yes") == 2


def test_too_few_pairs_for_one(join):
    with pytest.raises(DilError) as caught:
        join(join_to=100)
    assert str(caught.value).splitlines() == [
        "error: all held-out pairs together do not reach 100 tokens",
        "where: data.join_to=100",
        "fix:   a smaller data.join_to, or data with more pairs",
    ]


def test_prompts_of_several_turns_are_refused(join):
    question, answer = {"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}
    several = {"prompt": [question, answer, question], "chosen": "a", "rejected": "b"}
    rows = [several | {"prompt": [question]}, several]
    with pytest.raises(DilError) as caught:
        join(rows=rows, join_to=33, heldout_fraction=0.5)
    first, second, third = str(caught.value).splitlines()
    assert first == "error: data.join_to joins prompts of one user turn, here the turns are user, assistant, user"
    assert second.startswith("where: data.path=")
    assert second.endswith("row 2")
    assert third == "fix:   data.join_to=null, or data whose prompts are single questions"


@pytest.mark.parametrize("join_to", [1, 0, -5, 1025])
def test_a_length_that_no_pair_can_have_is_refused(config, join_to):
    with pytest.raises(DilError) as caught:
        config(join_to=join_to)
    assert str(caught.value).splitlines() == [
        f"error: data.join_to is {join_to}, it must lie in 2 to data.max_length = 1024, or be null",
        "where: data.join_to",
        "fix:   data.join_to=1024",
    ]
