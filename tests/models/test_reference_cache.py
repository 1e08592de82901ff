"""The reference column's files: found by content, never wrong, never in the way."""

from __future__ import annotations

import hashlib
import json
import struct
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import load, save
from transformers import AutoModelForCausalLM, Gemma2Config, MistralConfig

from dil_cli.config.schema import ModelConfig
from dil_cli.models import reference_cache
from dil_cli.models.load import weights_fingerprint
from dil_cli.models.reference_cache import (
    Reference,
    ReferenceCache,
    Scored,
    architecture,
    column_files,
    identify,
    read_column,
    response_keys,
)

HERE, ELSEWHERE = Reference("ab" * 16, {"compute": "fp32"}), Reference("cd" * 16, {"compute": "bf16"})
MODEL = ModelConfig(path="bundled:tiny", lr=1e-3, batch_size=4, max_length=64, max_prompt_length=32, token_budget=512)


def ids(*values: int) -> np.ndarray:
    return np.array(values, np.int32)


def scored(*numbers: int) -> list[Scored]:
    """Responses 'n, n + 1' to the prompt 'n', with log-prob -n / 3."""
    made = []
    for n in numbers:
        prompt, response = ids(n), ids(n, n + 1)
        (key,) = response_keys(prompt, response)
        made.append(Scored(key, -n / 3, prompt, response))
    return made


def values_of(responses: list[Scored]) -> dict[bytes, float]:
    return {one.key: float(np.float32(one.logp)) for one in responses}


def opened(root: Path, reference: Reference = HERE) -> ReferenceCache:
    return ReferenceCache(root, reference, MODEL, parameters=7)


def test_a_key_is_the_sha256_of_the_ids():
    text = struct.pack("<I2i", 2, 5, 6) + struct.pack("<3i", 7, 8, 2**31 - 1)
    assert response_keys(ids(5, 6), ids(7, 8, 2**31 - 1), ids()) == [hashlib.sha256(text).digest()[:16], None]


def test_prompt_and_response_are_told_apart():
    keys = [*response_keys(ids(1, 2), ids(3)), *response_keys(ids(1), ids(2, 3)), *response_keys(ids(1, 2, 3), ids(3))]
    assert len(set(keys)) == 3
    # Ids come as slices of a file and in other integer types.
    assert response_keys(np.arange(9)[1:6:2], np.array([3], np.int64)) == response_keys(ids(1, 3, 5), ids(3))


def test_what_was_stored_is_found_and_each_file_holds_only_what_is_new(tmp_path: Path):
    first = opened(tmp_path)
    assert (first.values, first.notices) == ({}, [])
    assert not first.folder.exists()
    first.store(scored(1, 2, 3))
    second = opened(tmp_path)
    assert second.values == values_of(scored(1, 2, 3))
    second.store(scored(4))
    assert opened(tmp_path).values == values_of(scored(1, 2, 3, 4))
    sizes = [len(read_column(path, HERE.key).logp_N) for path in column_files(first.folder)]
    assert sorted(sizes) == [1, 3]
    assert opened(tmp_path, ELSEWHERE).values == {}


def test_values_that_are_not_finite_are_not_kept(tmp_path: Path):
    cache = opened(tmp_path)
    bad = [one._replace(logp=value) for one, value in zip(scored(1, 2), (float("nan"), -float("inf")), strict=True)]
    cache.store(bad)
    assert not cache.folder.exists()
    cache.store([*bad, *scored(3)])
    assert cache.values.keys() == opened(tmp_path).values.keys() == {scored(3)[0].key}


def test_one_job_computes_while_others_wait_and_a_killed_one_lets_go(tmp_path: Path):
    cache, waited = opened(tmp_path), []
    hold = "import filelock, sys\nwith filelock.FileLock(sys.argv[1]):\n    print(flush=True)\n    sys.stdin.read()"
    owner = subprocess.Popen(
        [sys.executable, "-c", hold, str(cache.lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert owner.stdout is not None
    owner.stdout.readline()
    opened(tmp_path).store(scored(1))

    @contextmanager
    def wait():
        waited.append(dict(cache.values))
        owner.kill()
        yield

    with cache.alone(wait):
        assert cache.values == values_of(scored(1))
    with cache.alone(wait):
        pass
    assert waited == [{}]
    assert not cache.lock.exists()
    owner.communicate()


def test_a_sample_of_ids_is_in_the_file(tmp_path: Path):
    cache = opened(tmp_path)
    cache.store(scored(*range(1, 101)))
    (path,) = column_files(cache.folder)
    sample = read_column(path, HERE.key).sample_S
    assert len(sample) == 16
    everything = {one.key: one for one in scored(*range(1, 101))}
    for one in sample:
        original = everything[one.key]
        assert one.prompt.tolist() == original.prompt.tolist()
        assert one.response.tolist() == original.response.tolist()
        assert one.logp == pytest.approx(original.logp, rel=1e-7)
    assert max(int(one.prompt[0]) for one in sample) > 90


def truncated(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


def emptied(path: Path) -> None:
    path.write_bytes(b"")


def overwritten(path: Path) -> None:
    path.write_bytes(b"hello")


def one_bit_of_a_value_turned(path: Path) -> None:
    content = path.read_bytes()
    values = load(content)["logp"].tobytes()
    assert content.count(values) == 1
    path.write_bytes(content.replace(values, bytes([values[0] ^ 1]) + values[1:]))


def renamed_content(path: Path, content: bytes) -> None:
    """Content that is what its name says."""
    path.unlink()
    path.with_name(f"column-{hashlib.sha256(content).hexdigest()[:32]}.safetensors").write_bytes(content)


def garbage_under_a_good_name(path: Path) -> None:
    renamed_content(path, b"garbage")


def a_column_is_short(path: Path) -> None:
    tensors = load(path.read_bytes())
    renamed_content(path, save(tensors | {"logp": tensors["logp"][:-1]}))


def a_column_is_missing(path: Path) -> None:
    tensors = load(path.read_bytes())
    del tensors["tokens"]
    renamed_content(path, save(tensors))


def of_another_reference(path: Path) -> None:
    other = opened(path.parent.parent, ELSEWHERE)
    other.store([one._replace(logp=-1.0) for one in scored(1, 2)])
    (foreign,) = column_files(other.folder)
    path.unlink()
    path.with_name(foreign.name).write_bytes(foreign.read_bytes())


@pytest.mark.parametrize(
    "damage",
    [
        truncated, emptied, overwritten, one_bit_of_a_value_turned, garbage_under_a_good_name, a_column_is_short,
        a_column_is_missing, of_another_reference,
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used_is_said_once_and_computed_again(damage, tmp_path: Path):
    cache = opened(tmp_path)
    cache.store(scored(1, 2))
    (path,) = column_files(cache.folder)
    cache.store(scored(3))
    damage(path)

    again = opened(tmp_path)
    assert again.values == values_of(scored(3))
    (notice,) = again.notices
    assert notice.startswith(f"the reference cache {cache.folder}/column-")
    assert "cannot be used" in notice
    assert len(notice.splitlines()) == 1
    again.store(scored(1, 2))

    third = opened(tmp_path)
    assert (third.values, third.notices) == (values_of(scored(1, 2, 3)), [])
    assert len(list(cache.folder.glob("*.damaged"))) == 1


def test_several_damaged_files_are_one_notice(tmp_path: Path):
    cache = opened(tmp_path)
    for n in (1, 2, 3):
        cache.store(scored(n))
    for path in column_files(cache.folder):
        truncated(path)
    (notice,) = opened(tmp_path).notices
    assert "and 2 more files" in notice


def test_a_folder_that_cannot_be_written_is_done_without(tmp_path: Path):
    (tmp_path / "reference").write_text("in the way")
    cache = opened(tmp_path / "reference")
    for n in (1, 2):
        cache.store(scored(n))
    assert cache.values.keys() == values_of(scored(1, 2)).keys()
    (notice,) = cache.notices
    assert "cannot be written (" in notice
    assert (tmp_path / "reference").read_text() == "in the way"


def test_a_write_that_fails_leaves_nothing(tmp_path: Path, monkeypatch):
    cache = opened(tmp_path)
    cache.store(scored(1))

    def full(path: Path, content: bytes) -> None:
        with path.open("wb") as file:
            file.write(content[:10])
        raise OSError(28, "No space left on device")

    before = sorted(cache.folder.iterdir())
    monkeypatch.setattr(Path, "write_bytes", full)
    cache.store(scored(2))
    assert sorted(cache.folder.iterdir()) == before
    assert "No space left on device" in cache.notices[0]


def test_the_record_says_where_the_model_is(tmp_path: Path, monkeypatch):
    (tmp_path / "model").mkdir()
    monkeypatch.chdir(tmp_path)
    model = ModelConfig(path="model", lr=1, batch_size=1, max_length=2, max_prompt_length=1, token_budget=1)
    cache = ReferenceCache(tmp_path / "cache", HERE, model, parameters=7)
    cache.store(scored(1))
    record = json.loads((cache.folder / "reference.json").read_text())
    assert record["model"]["path"] == str(tmp_path / "model")
    assert (record["compute"], record["parameters"]) == ("fp32", 7)
    # Lost, it is written again, even if nothing is computed.
    (cache.folder / "reference.json").unlink()
    opened(tmp_path / "cache")
    assert json.loads((cache.folder / "reference.json").read_text())["model"]["path"] == "bundled:tiny"


@pytest.fixture
def model(model_folder: Path):
    return AutoModelForCausalLM.from_pretrained(model_folder)


def key_of(model, compute: str = "fp32") -> str:
    return identify(model, weights_fingerprint(model), compute).key


def test_another_place_or_attention_is_the_same_reference(model, model_folder: Path, tmp_path: Path):
    same = key_of(model)
    model.save_pretrained(tmp_path / "copy")
    path = tmp_path / "copy" / "config.json"
    config = json.loads(path.read_text()) | {"transformers_version": "4.0", "use_cache": False, "dtype": "bfloat16"}
    path.write_text(json.dumps(config))
    copy = AutoModelForCausalLM.from_pretrained(tmp_path / "copy", attn_implementation="eager", dtype=torch.float32)
    assert key_of(copy) == same
    copy.activation_checkpointing_enable()
    copy.train()
    assert key_of(copy) == same


def test_one_weight_precision_type_or_fact_is_another_reference(model, model_folder: Path):
    keys = {key_of(model), key_of(model, "bf16"), key_of(model.bfloat16())}
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight[3, 5] += 1e-7
    keys.add(key_of(model))
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.config.rope_parameters = model.config.rope_parameters | {"rope_theta": 5e5}
    keys.add(key_of(model))
    model = AutoModelForCausalLM.from_pretrained(model_folder)
    model.register_buffer("router_bias", torch.zeros(2))
    keys.add(key_of(model))
    model.router_bias[1] = 1
    keys.add(key_of(model))
    assert len(keys) == 7


def test_facts_of_an_architecture():
    mistral, gemma = architecture(MistralConfig(sliding_window=77)), architecture(Gemma2Config())
    assert mistral["sliding_window"] == 77
    assert gemma["final_logit_softcapping"] == 30.0
    assert not {"_name_or_path", "transformers_version", "dtype", "use_cache"} & (mistral.keys() | gemma.keys())
    json.dumps([mistral, gemma])


def test_a_look_up_of_50_000_pairs_reads_each_file_once(tmp_path: Path, monkeypatch):
    from dil_cli.train.reference import look_up
    from dil_cli.types import TokenisedPair

    ids_NT = np.random.default_rng(0).integers(0, 32_000, (50_000, 30), dtype=np.int32)
    pairs = [TokenisedPair(row, x_T[:10], x_T[10:18], x_T[18:]) for row, x_T in enumerate(ids_NT)]
    cache = opened(tmp_path)
    for start in range(0, 50_000, 10_000):
        part = pairs[start : start + 10_000]
        keys = [response_keys(pair.prompt, pair.chosen, pair.rejected) for pair in part]
        sides = [(pair.chosen, pair.rejected) for pair in part]
        cache.store([
            Scored(key, -1.5, pair.prompt, response)
            for pair, both, responses in zip(part, keys, sides, strict=True)
            for key, response in zip(both, responses, strict=True)
        ])  # fmt: skip

    read: list[Path] = []
    digests: list[int] = []
    read_bytes, sha256 = Path.read_bytes, hashlib.sha256

    def count_read(path: Path) -> bytes:
        read.append(path)
        return read_bytes(path)

    def count_digest(content: bytes):
        digests.append(len(content))
        return sha256(content)

    monkeypatch.setattr(Path, "read_bytes", count_read)
    monkeypatch.setattr(reference_cache.hashlib, "sha256", count_digest)
    found = look_up(pairs, opened(tmp_path))
    assert (found.hits, found.missing) == (50_000, [])
    assert sorted(read) == column_files(cache.folder)
    # One of each file, of each sample, of each prompt; that of a response goes on from its prompt's.
    assert len(digests) == 5 + 5 * 16 + 50_000
    assert found.describe() == "50,000 of 50,000 pairs from the cache"
