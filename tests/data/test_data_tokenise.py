"""Ids by hand: `byte_tokenizer` has one token a byte, `<s>` is 0 and `</s>` is 1."""

from __future__ import annotations

import numpy as np
import pytest
from by_hand import BOS, CHATML, EOS, byte_tokenizer, ids, pair

from dil_cli.data.load import load_pairs
from dil_cli.data.template import effective_template, pair_text
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

QA = [pair("Q?", "yes", "no")]


def one(split):
    (only,) = split.pairs
    return only.prompt.tolist(), only.chosen.tolist(), only.rejected.tolist()


def test_plain_concatenation_ends_each_response_in_one_eos(config):
    split = tokenise_pairs(QA, byte_tokenizer(), config())
    assert one(split) == (ids("Q?"), [*ids("yes"), EOS], [*ids("no"), EOS])
    assert {side.dtype for side in (split.pairs[0].prompt, split.pairs[0].rejected)} == {np.dtype(np.int32)}
    assert split.describe() == ["1 pairs, 9 tokens, no BOS"]


def test_bos_is_added_where_the_tokenizer_adds_it(config):
    split = tokenise_pairs(QA, byte_tokenizer(adds_bos=True), config())
    assert one(split) == ([BOS, *ids("Q?")], [*ids("yes"), EOS], [*ids("no"), EOS])
    assert (split.counts.with_bos, split.counts.more_bos) == (1, 0)
    assert split.describe() == ["1 pairs, 10 tokens, a BOS"]


@pytest.mark.parametrize("adds_bos", [False, True])
def test_template_that_writes_bos_gives_one_bos(config, adds_bos):
    tokenizer = byte_tokenizer(adds_bos=adds_bos, chat_template="{{ bos_token }}" + CHATML)
    prompt, chosen, _ = one(tokenise_pairs(QA, tokenizer, config()))
    assert prompt == [BOS, *ids("[user]Q?"), EOS, *ids("\n[assistant]")]
    assert chosen == [*ids("yes"), EOS]


def test_eos_of_the_template_is_not_doubled_and_what_follows_is_dropped(config):
    split = tokenise_pairs(QA, byte_tokenizer(chat_template=CHATML), config())
    assert one(split) == (
        [*ids("[user]Q?"), EOS, *ids("\n[assistant]")], [*ids("yes"), EOS], [*ids("no"), EOS],
    )  # fmt: skip
    assert split.counts.eos_inside == 0


def test_template_with_another_end_gets_the_eos_as_well(config):
    template = "{% for m in messages %}<{{ m.content }}>\n{% endfor %}"
    split = tokenise_pairs(QA, byte_tokenizer(chat_template=template), config())
    # This template has no generation prompt: its opening sign belongs to the response.
    assert one(split)[1] == [*ids("<yes>\n"), EOS]


def test_template_of_the_tokenizer_goes_before_that_of_the_data(config):
    line = "{% for m in messages %}{{ m.content }}{{ '\n' if m.role == 'user' }}{% endfor %}"
    bare, own = byte_tokenizer(), byte_tokenizer(chat_template=CHATML)
    assert effective_template(bare, config()) is None
    assert effective_template(bare, config(template=line)) == line
    assert effective_template(own, config(template=line)) == CHATML
    assert one(tokenise_pairs(QA, bare, config(template=line))) == (
        ids("Q?\n"), [*ids("yes"), EOS], [*ids("no"), EOS],
    )  # fmt: skip


def test_turns_of_a_conversation_are_joined_without_a_template(config):
    turns = (Message("system", "S"), Message("user", "u"), Message("assistant", "a"), Message("user", "v"))
    split = tokenise_pairs([PreferencePair(1, turns, "yes", "no")], byte_tokenizer(), config())
    assert one(split)[0] == ids("Suav")


HH = (
    "{% for turn in messages %}{{ '\n\n' ~ ('Human' if turn.role == 'user' else 'Assistant') ~ ': ' "
    "~ turn.content }}{% endfor %}{% if add_generation_prompt %}{{ '\n\nAssistant:' }}{% endif %}"
)


def test_hh_template_gives_the_published_transcript(config):
    turns = (Message("user", "Hi"), Message("assistant", "Yes?"), Message("user", "Q"))
    text = pair_text(PreferencePair(1, turns, "good", None), byte_tokenizer(), HH, "row 1")
    assert text == ("\n\nHuman: Hi\n\nAssistant: Yes?\n\nHuman: Q\n\nAssistant:", " good", None)


def test_demonstration_has_an_empty_rejected_response(config):
    split = tokenise_pairs([pair("Q?", "yes", None)], byte_tokenizer(), config())
    assert one(split) == (ids("Q?"), [*ids("yes"), EOS], [])
    assert (split.counts.without_eos, split.counts.tokens) == (0, 6)


# Boundary


def test_prompt_that_merges_with_a_response_is_an_error(config):
    tokenizer = byte_tokenizer(merges=[("Ċ", "Ċ"), ("t", "o")])
    pairs = [pair("fine", "yes", "no", row=1), pair("say\n", "yes", "\nno", row=4)]
    with pytest.raises(DilError) as caught:
        tokenise_pairs(pairs, tokenizer, config("mine.jsonl"))
    assert str(caught.value).splitlines() == [
        r"error: the prompt tokenises differently before its rejected response: ['\n'] becomes ['\n\n', 'n', 'o']",
        "where: data.path=mine.jsonl, row 4",
        "fix:   set a chat template (data.template, as in conf/data/hh.yaml), or strip the responses' first spaces",
    ]


def test_merges_inside_prompt_or_response_are_no_error(config):
    tokenizer = byte_tokenizer(merges=[("t", "o")])
    split = tokenise_pairs([pair("to", "to", "o")], tokenizer, config())
    to = tokenizer.convert_tokens_to_ids("to")
    assert one(split) == ([to], [to, EOS], [*ids("o"), EOS])


def test_template_that_rewrites_the_prompt_is_an_error(config):
    template = "{{ messages | length }}{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(DilError) as caught:
        tokenise_pairs(QA, byte_tokenizer(chat_template=template), config())
    assert str(caught.value).splitlines() == [
        "error: the chat template writes the prompt differently once a response follows: '1Q?' becomes '2Q?yes'",
        "where: data.path=pairs.jsonl, row 1",
        "fix:   mend the template: prompt with generation prompt must begin prompt with response",
    ]


def test_template_that_is_no_jinja_is_an_error(config):
    with pytest.raises(DilError, match="the chat template is no valid Jinja: ") as caught:
        tokenise_pairs(QA, byte_tokenizer(), config(template="{{ messages"))
    assert caught.value.where == "data.template"
    with pytest.raises(DilError) as caught:
        tokenise_pairs(QA, byte_tokenizer(chat_template="{% endfor %}"), config())
    assert caught.value.where == "the tokenizer's chat_template"


STRICT = "{% if messages[0].role != 'user' %}{{ raise_exception('No system turn') }}{% endif %}" + CHATML
WITH_SYSTEM = PreferencePair(2, (Message("system", "s"), Message("user", "Q?")), "yes", "no")


def test_turns_that_the_template_refuses_are_skipped_and_counted(config):
    split = tokenise_pairs([*QA, WITH_SYSTEM], byte_tokenizer(chat_template=STRICT), config())
    assert [p.row for p in split.pairs] == [1]
    assert split.counts.skipped == {"the chat template refuses their turns (No system turn)": 1}


def test_template_that_refuses_all_is_an_error(config):
    with pytest.raises(DilError) as caught:
        tokenise_pairs([WITH_SYSTEM], byte_tokenizer(chat_template=STRICT), config())
    assert caught.value.what == (
        "no pair is left once tokenised: 1 pairs skipped: the chat template refuses their turns (No system turn)"
    )


# Truncation


@pytest.mark.parametrize("adds_bos", [False, True])
def test_prompt_is_cut_from_the_left_then_response_from_the_right(config, adds_bos):
    made = config(max_prompt_length=4, max_length=7)
    split = tokenise_pairs([pair("abcdef", "uvwxyz", "no")], byte_tokenizer(adds_bos=adds_bos), made)
    prompt = [BOS, *ids("def")] if adds_bos else ids("cdef")
    assert one(split) == (prompt, ids("uvw"), [*ids("no"), EOS])
    counts = split.counts
    assert (counts.prompt_cut, counts.chosen_cut, counts.rejected_cut, counts.without_eos) == (1, 1, 0, 1)
    assert "cut: 1 prompts, 1 chosen, 0 rejected responses" in split.describe()
    assert "1 responses without EOS (cut before it)" in split.describe()


def test_bos_written_by_the_template_survives_the_cut(config):
    tokenizer = byte_tokenizer(chat_template="{{ bos_token }}{% for m in messages %}{{ m.content }}{% endfor %}")
    split = tokenise_pairs([pair("abcdef", "yes", "no")], tokenizer, config(max_prompt_length=3))
    assert one(split)[0] == [BOS, *ids("ef")]


def test_prompt_length_of_one_keeps_the_bos(config):
    split = tokenise_pairs(QA, byte_tokenizer(adds_bos=True), config(max_prompt_length=1))
    assert one(split)[0] == [BOS]


def test_lengths_that_just_fit_cut_nothing(config):
    split = tokenise_pairs([pair("abc", "xyz", "x")], byte_tokenizer(), config(max_prompt_length=3, max_length=7))
    assert one(split) == (ids("abc"), [*ids("xyz"), EOS], [*ids("x"), EOS])
    assert split.describe() == ["1 pairs, 9 tokens, no BOS"]
    cut = tokenise_pairs([pair("abc", "xyz", "x")], byte_tokenizer(), config(max_prompt_length=3, max_length=6))
    assert one(cut)[1] == ids("xyz")
    assert (cut.counts.chosen_cut, cut.counts.without_eos) == (1, 1)


def test_short_prompt_leaves_its_room_to_the_responses(config):
    split = tokenise_pairs([pair("a", "uvwxyz", "no")], byte_tokenizer(), config(max_prompt_length=4, max_length=6))
    assert one(split)[1] == ids("uvwxy")


def test_responses_the_same_once_cut_are_skipped(config):
    made = config(max_prompt_length=2, max_length=4)
    split = tokenise_pairs([pair("ab", "xyz1", "xyz2"), pair("ab", "yes", "no", row=2)], byte_tokenizer(), made)
    assert [p.row for p in split.pairs] == [2]
    assert split.counts.skipped == {"responses the same once cut": 1}
    assert "1 pairs skipped: responses the same once cut" in split.describe()


def test_empty_prompt_is_skipped_unless_a_bos_conditions_the_response(config):
    empty = [pair("", "yes", "no"), pair("Q?", "yes", "no", row=2)]
    split = tokenise_pairs(empty, byte_tokenizer(), config())
    assert (len(split.pairs), split.counts.skipped) == (1, {"empty prompt": 1})
    assert tokenise_pairs(empty, byte_tokenizer(adds_bos=True), config()).pairs[0].prompt.tolist() == [BOS]


def test_special_tokens_in_the_text_are_counted(config):
    pairs = [pair("<s>Q", "a</s>b", "no"), pair("Q<s><s>", "yes", "no</s>", row=2)]
    split = tokenise_pairs(pairs, byte_tokenizer(), config())
    assert (split.counts.with_bos, split.counts.more_bos, split.counts.eos_inside) == (1, 1, 1)
    assert split.pairs[1].rejected.tolist() == [*ids("no"), EOS]
    assert split.describe() == [
        "2 pairs, 19 tokens, 1 of them with a BOS",
        "1 responses with an EOS inside their text",
        "1 prompts with more than one BOS (their text holds it)",
    ]


# Scored prompts


@pytest.mark.parametrize("adds_bos", [False, True])
def test_scored_prompt_moves_to_the_response_but_for_its_first_token(config, adds_bos):
    made = config(score_prompt=True, max_prompt_length=4, max_length=8)
    split = tokenise_pairs([pair("abcdef", "xyz", None)], byte_tokenizer(adds_bos=adds_bos), made)
    first, moved = ([BOS], ids("def")) if adds_bos else (ids("c"), ids("def"))
    assert one(split) == (first, [*moved, *ids("xyz"), EOS], [])


# Flipped labels


def test_flipped_rows_are_swapped_and_marked(config):
    pairs = [pair("Q?", "yes", "no", row=3), pair("Q?", "yes", "no", row=8)]
    kept, flipped = tokenise_pairs(pairs, byte_tokenizer(), config(), flipped={8}).pairs
    assert (kept.flipped, flipped.flipped) == (False, True)
    assert kept.chosen.tolist() == flipped.rejected.tolist() == [*ids("yes"), EOS]
    assert kept.rejected.tolist() == flipped.chosen.tolist() == [*ids("no"), EOS]


def test_many_pairs_keep_their_order_across_chunks(config):
    pairs = [pair("Q?", f"yes {i}", None if i % 2 else f"no {i}", row=i + 1) for i in range(2500)]
    split = tokenise_pairs(pairs, byte_tokenizer(), config())
    assert [p.row for p in split.pairs] == list(range(1, 2501))
    assert all(p.chosen.tolist() == [*ids(f"yes {p.row - 1}"), EOS] for p in split.pairs)
    assert all(p.rejected.tolist() == ([*ids(f"no {p.row - 1}"), EOS] if p.row % 2 else []) for p in split.pairs)


def test_what_is_scored_decodes_to_the_bundled_responses(config):
    from dil_cli.config.schema import DataSource

    made = config("hh_sample", source=DataSource.bundled, heldout_split="test", template=HH)
    heldout = load_pairs(made, 0, needs_rejected=True).heldout
    tokenizer = byte_tokenizer(adds_bos=True)
    split = tokenise_pairs(heldout, tokenizer, made.__class__(**(vars(made) | {"max_length": 9000})))
    by_row = {p.row: p for p in heldout}
    assert len(split.pairs) == 80
    assert split.counts.with_bos == 80
    for tokens in split.pairs:
        for side in ("chosen", "rejected"):
            assert tokenizer.decode(getattr(tokens, side)) == " " + getattr(by_row[tokens.row], side) + "</s>"
