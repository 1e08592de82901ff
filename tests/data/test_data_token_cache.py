from __future__ import annotations

import pyarrow.parquet as pq
import pytest
from by_hand import CHATML, byte_tokenizer, pair

from dil_cli.data.token_cache import place, tokenizer_fingerprint
from dil_cli.data.tokenise import tokenise_pairs

PAIRS = [pair(f"Q{i}?", "y" * i, "no" if i % 3 else None, row=2 * i) for i in range(1, 40)]


def content(split):
    return [(p.row, p.prompt.tolist(), p.chosen.tolist(), p.rejected.tolist(), p.flipped) for p in split.pairs]


@pytest.fixture
def counted(monkeypatch):
    """A tokenizer, and a list that grows with each batch of texts it tokenises."""
    tokenizer, calls = byte_tokenizer(adds_bos=True), []
    whole = type(tokenizer)._encode_plus

    def spy(self, text, *args, **kwargs):
        calls.append(text)
        return whole(self, text, *args, **kwargs)

    monkeypatch.setattr(type(tokenizer), "_encode_plus", spy)
    return tokenizer, calls


def test_second_time_nothing_is_tokenised(tmp_path, config, counted):
    tokenizer, calls = counted
    made = config(max_prompt_length=3, max_length=12)
    first = tokenise_pairs(PAIRS, tokenizer, made, cache=tmp_path / "cache")
    assert calls
    calls.clear()
    second = tokenise_pairs(PAIRS, tokenizer, made, cache=tmp_path / "cache")
    assert calls == []
    assert content(second) == content(first) == content(tokenise_pairs(PAIRS, tokenizer, made))
    assert second.counts == first.counts
    assert second.counts.chosen_cut > 0
    assert second.pairs[0].chosen.dtype == "int32"
    assert second.notice is None


def test_noise_levels_share_one_file(tmp_path, config):
    pairs = [p for p in PAIRS if p.rejected]
    first = tokenise_pairs(pairs, byte_tokenizer(), config(), flipped={2, 4}, cache=tmp_path)
    second = tokenise_pairs(pairs, byte_tokenizer(), config(), flipped={4, 8}, cache=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    assert [p.row for p in first.pairs if p.flipped] == [2, 4]
    assert content(second) == content(tokenise_pairs(pairs, byte_tokenizer(), config(), flipped={4, 8}))


def test_everything_the_ids_depend_on_changes_the_file(tmp_path, config):
    def file(pairs=PAIRS, tokenizer=None, **fields):
        return place(tmp_path, pairs, tokenizer or byte_tokenizer(), config(**fields))[0]

    same = file()
    assert file(label_noise=0.5, limit=3, heldout_fraction=0.3) == same
    used = byte_tokenizer()
    used("abc", truncation=True, max_length=2)
    used.backend_tokenizer.enable_padding()
    assert used.backend_tokenizer.to_str() != byte_tokenizer().backend_tokenizer.to_str()
    assert file(tokenizer=used) == same
    other = [
        file(PAIRS[:-1]),
        file([pair("Q1?", "Y", None, row=2), *PAIRS[1:]]),
        file([pair("Q1?", "y", None, row=3), *PAIRS[1:]]),
        file(tokenizer=byte_tokenizer(adds_bos=True)),
        file(tokenizer=byte_tokenizer(merges=[("t", "o")])),
        file(tokenizer=byte_tokenizer(chat_template=CHATML)),
        file(template=CHATML + " "),
        file(max_length=1000),
        file(max_prompt_length=100),
        file(score_prompt=True),
    ]
    assert len({same, *other}) == len(other) + 1


def test_template_is_the_same_wherever_it_comes_from(tmp_path, config):
    own = place(tmp_path, PAIRS, byte_tokenizer(chat_template=CHATML), config())
    assert own == place(tmp_path, PAIRS, byte_tokenizer(), config(template=CHATML))


def test_special_tokens_are_part_of_the_fingerprint():
    renamed = byte_tokenizer()
    renamed.eos_token = "<s>"
    assert tokenizer_fingerprint(renamed) != tokenizer_fingerprint(byte_tokenizer())


def damage_bytes(path):
    path.write_bytes(path.read_bytes()[:-20])


def damage_values(path):
    table = pq.read_table(path)
    pq.write_table(table.slice(1).replace_schema_metadata(table.schema.metadata), path)


def damage_counts(path):
    table = pq.read_table(path)
    metadata = {b"dil": table.schema.metadata[b"dil"].replace(b'"chosen_cut": 0', b'"chosen_cut": 7')}
    assert metadata != table.schema.metadata
    pq.write_table(table.replace_schema_metadata(metadata), path)


def foreign_file(path):
    path.write_bytes(b"hello")


@pytest.mark.parametrize("damage", [damage_bytes, damage_values, damage_counts, foreign_file])
def test_damaged_file_is_reported_and_replaced(tmp_path, config, damage):
    first = tokenise_pairs(PAIRS, byte_tokenizer(), config(), cache=tmp_path)
    (path,) = tmp_path.iterdir()
    damage(path)
    second = tokenise_pairs(PAIRS, byte_tokenizer(), config(), cache=tmp_path)
    assert content(second) == content(first)
    assert second.counts == first.counts
    assert second.notice.startswith(f"the token cache {path} is damaged (")
    assert second.describe()[-1] == second.notice
    third = tokenise_pairs(PAIRS, byte_tokenizer(), config(), cache=tmp_path)
    assert (content(third), third.notice) == (content(first), None)


def test_folder_that_cannot_be_written_is_done_without(tmp_path, config):
    (tmp_path / "file").write_text("in the way")
    split = tokenise_pairs(PAIRS, byte_tokenizer(), config(), cache=tmp_path / "file")
    assert len(split.pairs) == len(PAIRS)
    assert "cannot be written (" in split.notice
    assert (tmp_path / "file").read_text() == "in the way"
