from __future__ import annotations

import json

import pytest
from by_hand import pair

from dil_cli.data.load import content_digest, flipped_rows, load_pairs, split_by_prompt
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair


def numbered(n, prompts=None):
    prompts = prompts or n
    return [{"prompt": f"q{i % prompts}", "chosen": f"good {i}", "rejected": f"bad {i}"} for i in range(n)]


def text(pairs):
    return [p.prompt[0].content for p in pairs]


def test_dirty_rows_are_skipped_and_counted_and_rows_keep_their_numbers(jsonl, config):
    rows = numbered(10)
    rows[2]["rejected"] = ""
    rows[5]["chosen"] = rows[5]["rejected"]
    rows[7]["chosen"] = " "
    splits = load_pairs(config(jsonl(rows)), seed=1, needs_rejected=True)
    (read,) = splits.counts.read
    assert (read.rows, read.usable) == (10, 7)
    assert read.skipped == {"empty response": 2, "identical responses": 1}
    assert sorted(p.row for p in splits.train + splits.heldout) == [1, 2, 4, 5, 7, 9, 10]
    assert splits.counts.describe() == [
        "train: 10 rows, 7 usable, 3 skipped (2 empty response, 1 identical responses)",
        "6 pairs to train on, 1 held out",
    ]


def test_heldout_fraction_splits_by_prompt_exactly(jsonl, config):
    splits = load_pairs(config(jsonl(numbered(100, prompts=40)), heldout_fraction=0.25), 1, needs_rejected=True)
    train, heldout = set(text(splits.train)), set(text(splits.heldout))
    assert (len(train), len(heldout), train & heldout) == (30, 10, set())
    assert len(splits.train) + len(splits.heldout) == 100
    assert [p.row for p in splits.train] == sorted(p.row for p in splits.train)


def test_heldout_prompts_do_not_depend_on_seed_or_row_order(jsonl, config):
    rows = numbered(60, prompts=30)
    forward = config(jsonl(rows), heldout_fraction=0.2)
    backward = config(jsonl(rows[::-1], "backward.jsonl"), heldout_fraction=0.2)
    held = [set(text(load_pairs(c, s, needs_rejected=True).heldout)) for c in (forward, backward) for s in (1, 2)]
    assert len(held[0]) == 6
    assert all(one == held[0] for one in held)


def test_at_least_one_prompt_is_held_out():
    train, heldout = split_by_prompt([pair(f"q{i}", "a", "b", i) for i in range(3)], 0.1)
    assert (len(train), len(heldout)) == (2, 1)


def test_prompts_differ_by_role_as_well():
    system = PreferencePair(1, (Message("system", "q"),), "a", "b")
    train, heldout = split_by_prompt([system, pair("q", "a", "b", 2)], 0.5)
    assert (len(train), len(heldout)) == (1, 1)


def test_one_prompt_cannot_be_split(jsonl, config):
    with pytest.raises(DilError) as caught:
        load_pairs(config(jsonl(numbered(5, prompts=1))), 1, needs_rejected=True)
    assert str(caught.value).splitlines() == [
        "error: holding out 0.1 of 1 prompts leaves no training pair",
        "where: data.heldout_fraction",
        "fix:   data with more prompts, or another fraction",
    ]


def test_limit_takes_the_first_usable_training_pairs_only(jsonl, config):
    rows = numbered(20)
    rows[0]["chosen"] = ""
    whole = load_pairs(config(jsonl(rows)), 1, needs_rejected=True)
    cut = load_pairs(config(jsonl(rows), limit=1), 1, needs_rejected=True)
    assert cut.train == whole.train[:1]
    assert cut.heldout == whole.heldout
    assert len(cut.heldout) == 2
    assert cut.counts.beyond_limit == len(whole.train) - 1 == 16
    assert "16 training pairs left out by data.limit" in cut.counts.describe()


@pytest.mark.parametrize(("noise", "flips"), [(0.0, 0), (0.1, 9), (0.25, 22), (0.5, 45), (1.0, 90)])
def test_noise_flips_exactly_its_fraction_of_the_training_pairs(jsonl, config, noise, flips):
    made = config(jsonl(numbered(100)), label_noise=noise)
    splits = load_pairs(made, seed=3, needs_rejected=True)
    assert len(splits.train) == 90
    assert len(splits.flipped) == splits.counts.flipped == flips
    assert splits.flipped <= {p.row for p in splits.train}
    assert splits.flipped == load_pairs(made, seed=3, needs_rejected=True).flipped
    if 0 < noise < 1:
        assert splits.flipped != load_pairs(made, seed=4, needs_rejected=True).flipped


def test_more_noise_flips_what_less_noise_flips():
    train = [pair(f"q{i}", "a", "b", i + 1) for i in range(200)]
    ten, half = flipped_rows(train, 0.1, 7), flipped_rows(train, 0.5, 7)
    assert ten < half
    # Spread over the file, not its first rows.
    assert 60 < sum(half) / len(half) < 140


def test_fingerprint_follows_content_limit_noise_and_split(jsonl, config):
    rows = numbered(30)

    def fingerprint(given, seed=1, **fields):
        return load_pairs(config(jsonl(given), **fields), seed, needs_rejected=True).fingerprint

    same = fingerprint(rows)
    assert len(same) == 64
    assert fingerprint(rows, seed=2) == same
    assert fingerprint([{"extra": 1} | row for row in rows]) == same
    changed = [
        fingerprint([rows[0] | {"chosen": "Good 0"}, *rows[1:]]),
        fingerprint(rows, limit=20),
        fingerprint(rows, heldout_fraction=0.3),
        fingerprint(rows, label_noise=0.2),
        fingerprint(rows, label_noise=0.2, seed=2),
        fingerprint(rows[::-1]),
        fingerprint(rows[:-1]),
    ]
    assert len({same, *changed}) == len(changed) + 1


def test_digest_separates_the_parts_of_a_pair():
    one, other = [pair("ab", "c", "d")], [pair("a", "bc", "d")]
    assert content_digest(one) != content_digest(other)
    assert content_digest(one) != content_digest([pair("ab", "d", "c")])
    assert content_digest(one) != content_digest([pair("ab", "c", None)])
    assert content_digest(one) == content_digest([pair("ab", "c", "d", row=9)])


def test_own_heldout_split_and_prompts_in_both(tmp_path, config):
    rows = numbered(6)
    for name, part in (("train", rows[:4]), ("test", [rows[3], *rows[4:], rows[3]])):
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in part))
    splits = load_pairs(config(tmp_path, heldout_split="test"), 1, needs_rejected=True)
    assert (len(splits.train), len(splits.heldout)) == (4, 4)
    assert splits.counts.prompts_in_both == 1
    assert splits.counts.describe()[-1] == "1 held-out prompts also stand in the training split"


def test_no_usable_pair_says_why(jsonl, config):
    path = jsonl([{"chosen": "a", "rejected": "b"}, {"chosen": "a", "rejected": "c"}])
    with pytest.raises(DilError) as caught:
        load_pairs(config(path), 1, needs_rejected=True)
    assert str(caught.value).splitlines() == [
        "error: the data set has no usable pair: train: 2 rows, 0 usable, 2 skipped (2 no common prompt)",
        f"where: data.path={path}",
        "fix:   give each row a prompt and two different, non-empty responses",
    ]


def test_empty_file_is_no_data(jsonl, config):
    with pytest.raises(DilError, match="there is not one row"):
        load_pairs(config(jsonl([])), 1, needs_rejected=True)


def test_unparsable_row_is_named(jsonl, config):
    with pytest.raises(DilError) as caught:
        load_pairs(config(jsonl([*numbered(3), '{"prompt": "q3", "chosen"'])), 1, needs_rejected=True)
    assert caught.value.where == "pairs.jsonl, row 4"


DEMONSTRATIONS = [{"question": f"q{i}", "answer": "a"} for i in range(10)]


def test_demonstrations_are_refused_by_a_loss_that_compares(jsonl, config):
    path = jsonl(DEMONSTRATIONS)
    with pytest.raises(DilError) as caught:
        load_pairs(config(path), 1, needs_rejected=True)
    assert str(caught.value).splitlines() == [
        "error: the data set has demonstrations only, this loss needs a rejected response to each",
        f"where: data.path={path}",
        "fix:   loss=sft, or data with the columns prompt, chosen, rejected",
    ]
    splits = load_pairs(config(path), 1, needs_rejected=False)
    assert [p.rejected for p in splits.train] == [None] * 9


def test_demonstrations_have_no_labels_to_flip(jsonl, config):
    with pytest.raises(DilError, match="label noise swaps chosen and rejected") as caught:
        load_pairs(config(jsonl(DEMONSTRATIONS), label_noise=0.1), 1, needs_rejected=False)
    assert caught.value.fix == "data.label_noise=0"


def test_pairs_keep_their_rejected_response_for_sft(jsonl, config):
    splits = load_pairs(config(jsonl(numbered(10))), 1, needs_rejected=False)
    assert all(p.rejected for p in splits.train)


def test_the_prompt_of_a_pair_is_not_scored(jsonl, config):
    made = config(jsonl(numbered(10)), score_prompt=True)
    with pytest.raises(DilError) as caught:
        load_pairs(made, 1, needs_rejected=True)
    assert (caught.value.where, caught.value.fix) == (
        "data.score_prompt=true", "data.score_prompt=false, or loss=sft",
    )  # fmt: skip
    assert len(load_pairs(made, 1, needs_rejected=False).train) == 9
