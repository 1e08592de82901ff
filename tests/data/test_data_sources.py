from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
import time
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dil_cli.config.schema import DataSource
from dil_cli.data.load import load_pairs
from dil_cli.data.sources import read_split
from dil_cli.errors import DilError


def rows(n, tag=""):
    return [{"prompt": f"q{tag}{i}", "chosen": "good", "rejected": "bad"} for i in range(n)]


def prompts(config, split):
    return [row.values["prompt"] for row in read_split(config, split)]


def test_saved_dataset_is_read_with_message_lists(tmp_path, config):
    said = [
        {"chosen": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "good"}],
         "rejected": [{"role": "user", "content": f"q{i}"}, {"role": "assistant", "content": "bad"}]}
        for i in range(10)
    ]  # fmt: skip
    datasets.Dataset.from_list(said).save_to_disk(tmp_path / "saved")
    splits = load_pairs(config(tmp_path / "saved"), 1, needs_rejected=True)
    assert (len(splits.train), len(splits.heldout)) == (9, 1)
    assert (splits.train[0].chosen, splits.train[0].rejected) == ("good", "bad")


def test_saved_dataset_without_splits_says_so(tmp_path, config):
    datasets.Dataset.from_list(rows(3)).save_to_disk(tmp_path / "saved")
    with pytest.raises(DilError) as caught:
        load_pairs(config(tmp_path / "saved", heldout_split="test"), 1, needs_rejected=True)
    assert str(caught.value).splitlines() == [
        "error: saved is one data set without splits, so data.heldout_split=test is not in it",
        f"where: data.path={tmp_path / 'saved'}",
        "fix:   data.heldout_split=null data.heldout_fraction=0.1",
    ]


def test_saved_dataset_dict_gives_its_splits(tmp_path, config):
    both = {"train": datasets.Dataset.from_list(rows(5)), "eval": datasets.Dataset.from_list(rows(2, "e"))}
    datasets.DatasetDict(both).save_to_disk(tmp_path / "saved")
    made = config(tmp_path / "saved", heldout_split="eval")
    assert prompts(made, "train") == ["q0", "q1", "q2", "q3", "q4"]
    assert prompts(made, "eval") == ["qe0", "qe1"]
    with pytest.raises(DilError, match=r"saved has no split test; it has train, eval\n"):
        prompts(made, "test")


def test_damaged_saved_dataset_is_an_error(tmp_path, config):
    datasets.Dataset.from_list(rows(3)).save_to_disk(tmp_path / "saved")
    next((tmp_path / "saved").glob("*.arrow")).write_bytes(b"nothing")
    with pytest.raises(DilError, match=r"the folder cannot be read as a saved data set: .+"):
        prompts(config(tmp_path / "saved"), "train")


@pytest.mark.parametrize("layout", ["flat", "data", "folders", "subset"])
def test_folder_as_the_hub_lays_it_out(tmp_path, config, layout):
    names = {
        "flat": ("train.jsonl.gz", "test.jsonl.gz"),
        "data": ("data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        "folders": ("train/0000.parquet", "test/0000.parquet"),
        "subset": ("comparisons/train/0000.parquet", "comparisons/test/0000.parquet"),
    }[layout]
    # Another split whose name begins the same, hidden files and another subset must not be mixed in.
    decoys = ["train_gen.jsonl", ".cache/train.jsonl"] + ["axis/train/0000.jsonl"] * (layout == "subset")
    for name, part in (*zip(names, (rows(3), rows(2, "t")), strict=True), *((d, rows(1, "no")) for d in decoys)):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name.endswith(".parquet"):
            pq.write_table(pa.Table.from_pylist(part), path)
        else:
            lines = "".join(json.dumps(row) + "\n" for row in part).encode()
            path.write_bytes(gzip.compress(lines) if name.endswith(".gz") else lines)
    subset = {"subset": "comparisons", "source": DataSource.hub} if layout == "subset" else {}
    made = config(tmp_path, heldout_split="test", **subset)
    assert prompts(made, "train") == ["q0", "q1", "q2"]
    assert prompts(made, "test") == ["qt0", "qt1"]


def test_shards_are_read_in_order_and_numbered_through(tmp_path, config):
    for shard, part in enumerate((rows(2, "a"), rows(2, "b"))):
        pq.write_table(pa.Table.from_pylist(part), tmp_path / f"train-0000{shard}-of-00002.parquet")
    read = list(read_split(config(tmp_path), "train"))
    assert [(row.number, row.values["prompt"]) for row in read] == [(1, "qa0"), (2, "qa1"), (3, "qb0"), (4, "qb1")]
    assert read[3].where == "train-00001-of-00002.parquet, row 2"


def test_folder_without_the_split_lists_its_files(tmp_path, config):
    (tmp_path / "validation.jsonl").write_text("{}\n")
    with pytest.raises(DilError) as caught:
        prompts(config(tmp_path), "train")
    assert str(caught.value).splitlines() == [
        f"error: {tmp_path} has no split train; data files in it: validation.jsonl",
        "where: data.path, data.train_split, data.heldout_split",
        "fix:   name the splits it has, or one file with data.heldout_split=null data.heldout_fraction=0.1",
    ]


def test_missing_file_is_an_error(config):
    with pytest.raises(DilError) as caught:
        prompts(config("nowhere/pairs.jsonl"), "train")
    assert str(caught.value).splitlines() == [
        "error: there is no file or folder nowhere/pairs.jsonl",
        "where: data.path",
        "fix:   data.path=/path/to/pairs.jsonl",
    ]


def test_a_file_has_no_splits(jsonl, config):
    path = jsonl(rows(3))
    with pytest.raises(DilError, match=r"pairs.jsonl is one file and has no splits, so data.heldout_split=test"):
        prompts(config(path, heldout_split="test"), "train")
    with pytest.raises(DilError, match=r"pairs.jsonl is one file and has no splits") as caught:
        prompts(config(path, train_split="train_prefs"), "train_prefs")
    assert caught.value.where == "data.train_split=train_prefs"


def test_repository_with_a_loading_script_is_read_from_its_parquet_export(monkeypatch, config):
    calls = []

    def load_dataset(path, name=None, **options):
        calls.append((path, name, options))
        if "data_files" not in options:
            raise RuntimeError("Dataset scripts are no longer supported, but found summarize_from_feedback.py")
        return datasets.Dataset.from_list(rows(2))

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("dil_cli.hub.reachable", lambda: True)
    made = config("some-org/posts", source=DataSource.hub, subset="comparisons", heldout_split="validation")
    assert prompts(made, "validation") == ["q0", "q1"]
    options = {
        "data_files": {"validation": "comparisons/validation/*.parquet"}, "revision": "refs/convert/parquet",
        "split": "validation",
    }  # fmt: skip
    assert calls[1] == ("some-org/posts", None, options)


def test_what_the_hub_refuses_is_said_in_one_line(monkeypatch, config):
    def load_dataset(*_, **__):
        raise ValueError("Unknown split 'dev'.\nShould be one of ['train'].")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr("dil_cli.hub.reachable", lambda: True)
    with pytest.raises(DilError) as caught:
        prompts(config("some-org/posts", source=DataSource.hub, heldout_split="dev"), "dev")
    assert str(caught.value).splitlines() == [
        "error: the data set cannot be loaded from the hub: Unknown split 'dev'.",
        "where: data.path=some-org/posts split dev",
        "fix:   check the names; for a gated data set log in with `hf auth login`",
    ]


SCRIPT = """
{imports}
from dil_cli.config.schema import DataConfig, DataSource
from dil_cli.data.load import load_pairs
from dil_cli.errors import DilError
config = DataConfig(source=DataSource.hub, path="some-org/some-pairs", heldout_split="test",
                    max_length=64, max_prompt_length=32)
try:
    print(*load_pairs(config, 1, needs_rejected=True).counts.describe(), sep="\\n")
except DilError as error:
    print(error)
"""


def load_from_hub(hf_home: Path, imports: str = "") -> list[str]:
    """What is printed of a hub data set where the hub's address refuses every connection."""
    hidden = ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HTTPS_PROXY", "https_proxy")
    env = {key: value for key, value in os.environ.items() if key not in hidden}
    env |= {"HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": str(hf_home)}
    env["PYTHONPATH"] = str(Path(__file__).resolve().parents[2])
    command = [sys.executable, "-c", SCRIPT.format(imports=imports)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("imports", ["", "import datasets, huggingface_hub"])
def test_hub_out_of_reach_is_said_at_once(tmp_path, imports):
    start = time.monotonic()
    assert load_from_hub(tmp_path / "hf", imports) == [
        "error: the data set some-org/some-pairs is not on this machine and the hub cannot be reached (offline)",
        "where: data.path=some-org/some-pairs",
        "fix:   download it where there is a network, then data.path=/path/to/folder",
    ]
    assert time.monotonic() - start < 10


def test_hub_data_set_in_the_local_cache_is_used_offline(tmp_path):
    folder = tmp_path / "hf/datasets/some-org___some-pairs/default/0.0.0" / ("0" * 40)
    folder.mkdir(parents=True)
    splits = {"train": rows(3), "test": rows(2, "t")}
    for split, part in splits.items():
        datasets.Dataset.from_list(part).save_to_disk(tmp_path / split)
        next((tmp_path / split).glob("*.arrow")).rename(folder / f"some-pairs-{split}.arrow")
    info = {
        "builder_name": "json", "dataset_name": "some-pairs", "config_name": "default",
        "version": {"version_str": "0.0.0", "major": 0, "minor": 0, "patch": 0},
        "features": {c: {"dtype": "string", "_type": "Value"} for c in ("prompt", "chosen", "rejected")},
        "splits": {s: {"name": s, "num_bytes": 1, "num_examples": len(p)} for s, p in splits.items()},
    }  # fmt: skip
    (folder / "dataset_info.json").write_text(json.dumps(info))
    assert load_from_hub(tmp_path / "hf") == [
        "train: 3 rows, 3 usable", "test: 2 rows, 2 usable", "3 pairs to train on, 2 held out",
    ]  # fmt: skip
