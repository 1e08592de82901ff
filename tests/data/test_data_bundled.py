"""What ships with the package: the files, their licences, the YAML that names them."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from dil_cli.config.schema import DataConfig, DataSource
from dil_cli.data.gsm8k import ANNOTATION, rewrite_answer
from dil_cli.data.load import load_pairs
from dil_cli.data.sources import BUNDLED
from dil_cli.errors import DilError

CONF = Path(__file__).resolve().parents[2] / "conf" / "data"


def from_yaml(name: str, **fields: object) -> DataConfig:
    model = {"max_length": 1024, "max_prompt_length": 512}
    group = OmegaConf.load(CONF / f"{name}.yaml")
    del group["defaults"]
    merged = OmegaConf.merge(OmegaConf.structured(DataConfig), group, fields)
    return OmegaConf.to_object(OmegaConf.create({"model": model, "data": merged}).data)


def test_every_yaml_fits_the_schema_and_begins_with_its_description():
    names = {path.stem for path in CONF.glob("*.yaml")}
    assert names == {"gsm8k_pairs", "gsm8k", "hh_sample", "ultrafeedback", "hh", "tldr", "local"}
    for name in names:
        config = from_yaml(name, **({"path": "pairs.jsonl"} if name == "local" else {}))
        assert (config.max_length, config.max_prompt_length) == (1024, 512)
        first = (CONF / f"{name}.yaml").read_text().splitlines()[0]
        assert re.fullmatch(r"# \S.{20,110}", first)


def test_hub_ids_splits_and_notices():
    uf, hh, tldr = from_yaml("ultrafeedback"), from_yaml("hh"), from_yaml("tldr")
    assert (uf.path, uf.train_split, uf.heldout_split) == (
        "HuggingFaceH4/ultrafeedback_binarized", "train_prefs", "test_prefs",
    )  # fmt: skip
    assert (hh.path, hh.train_split, hh.heldout_split) == ("Anthropic/hh-rlhf", "train", "test")
    assert (tldr.path, tldr.subset, tldr.train_split, tldr.heldout_split) == (
        "openai/summarize_from_feedback", "comparisons", "train", "validation",
    )  # fmt: skip
    assert from_yaml("hh_sample").notice == hh.notice == "the HH conversations hold offensive and upsetting text"


@pytest.mark.parametrize(
    ("name", "described"),
    [
        ("gsm8k_pairs", [
            "train: 1,693 rows, 1,693 usable", "test: 370 rows, 370 usable", "1,693 pairs to train on, 370 held out",
        ]),
        ("gsm8k", [
            "train: 7,473 rows, 7,473 usable", "test: 1,319 rows, 1,319 usable",
            "7,473 pairs to train on, 1,319 held out",
        ]),
        ("hh_sample", [
            "train: 320 rows, 319 usable, 1 skipped (1 empty response)", "test: 80 rows, 80 usable",
            "319 pairs to train on, 80 held out",
        ]),
    ],
)  # fmt: skip
def test_bundled_counts(name, described):
    splits = load_pairs(from_yaml(name), seed=42, needs_rejected=name != "gsm8k")
    assert splits.counts.describe() == described
    assert splits.counts.prompts_in_both == 0
    assert (len(splits.train), len(splits.heldout)) == (splits.counts.train, splits.counts.heldout)


def test_licences_and_warning_stand_beside_the_data():
    assert "Copyright (c) 2021 OpenAI" in (BUNDLED / "LICENSE-grade-school-math").read_text()
    assert "Copyright (c) 2022 Anthropic" in (BUNDLED / "LICENSE-hh-rlhf").read_text()
    readme = (BUNDLED / "README.md").read_text()
    assert "Content warning" in readme
    for path in BUNDLED.glob("*.jsonl.gz"):
        assert re.sub("_(train|test)", "_{train,test}", path.name) in readme


def test_unknown_bundled_name_lists_what_there_is():
    config = from_yaml("gsm8k_pairs", path="gsm9k")
    with pytest.raises(DilError) as caught:
        load_pairs(config, seed=0, needs_rejected=True)
    names = "gsm8k_pairs_test, gsm8k_pairs_train, gsm8k_test, gsm8k_train, hh_sample_test, hh_sample_train"
    assert str(caught.value).splitlines() == [
        "error: no bundled data set gsm9k with a split train", "where: data.path=gsm9k", f"fix:   bundled are {names}",
    ]  # fmt: skip


@pytest.mark.parametrize(("key", "value"), [("subset", "main"), ("revision", "abc")])
def test_hub_settings_are_refused_without_the_hub(key, value):
    with pytest.raises(DilError, match=rf"data.{key} is {value}, it must stay null unless data.source=hub"):
        DataConfig(
            source=DataSource.bundled, path="gsm8k", heldout_split="test", max_length=9, max_prompt_length=4,
            **{key: value},
        )  # fmt: skip


REWRITES = [
    ("She sold 48/2 = <<48/2=24>>24 clips.\n#### 72", "She sold 48/2 = <<48/2=24.0>>24 clips.\nA: 72"),
    ("<<48+24=72>>72\n#### 1,080", "<<48+24=72>>72\nA: 1080"),
    ("<<2/10=.2>>.2 <<144*.5=72>> <<.5*4=2.00>>\n#### -3", "<<2/10=0.2>>.2 <<144*.5=72.0>> <<.5*4=2.0>>\nA: -3"),
    ("<<9000/3=3,000>>3,000\n#### 7.5", "<<9000/3=3000.0>>3,000\nA: 7.5"),
    ("<<560//10=56>> <<8*18=144.00>> <<1/3=1/3>> <<1=1=1/1>>\n#### 5",
     "<<560//10=56>> <<8*18=144.00>> <<1/3=1/3>> <<1=1=1/1>>\nA: 5"),
]  # fmt: skip


@pytest.mark.parametrize(("published", "rewritten"), REWRITES)
def test_gsm8k_answer_is_rewritten(published, rewritten):
    assert rewrite_answer(published) == rewritten


def float_share(texts: list[str]) -> tuple[float, int]:
    """Of the calculations with a division or decimal point, the part whose result is a Python float."""
    results = [m[2] for text in texts for m in ANNOTATION.finditer(text) if re.search(r"[/.]", m[1])]
    return sum(bool(re.fullmatch(r"-?\d+\.\d+(e[+-]\d+)?", result)) for result in results) / len(results), len(results)


def test_rewritten_answers_look_like_the_pairs():
    problems = [pair.chosen for pair in load_pairs(from_yaml("gsm8k"), 0, needs_rejected=False).train]
    pairs = [pair.chosen for pair in load_pairs(from_yaml("gsm8k_pairs"), 0, needs_rejected=True).train]
    for texts in (problems, pairs):
        share, calculations = float_share(texts)
        assert share > 0.98
        assert calculations > 1500
    assert all(re.search(r"\nA: -?[\d.]+$", text) for text in problems)
    assert not any("####" in text for text in problems)
