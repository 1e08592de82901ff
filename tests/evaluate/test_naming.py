"""Names of records: what changes a number's meaning is in them, and nothing that a file system refuses."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dil_cli.config.compose import compose
from dil_cli.config.data_name import data_name
from dil_cli.config.identity import plain
from dil_cli.config.paths import conf_dir
from dil_cli.evaluate.naming import LONGEST, likelihood_name, short, winrate_name
from dil_cli.evaluate.target import Target, find_targets

LOGPROB = ["benchmark=winrate", "judge=logprob"]
OPENAI = ["benchmark=winrate", "judge=openai", "judge.base_url=http://x/v1"]
RUN: Any = SimpleNamespace(config={"data": plain(compose("eval", ["checkpoint=x", "data=hh_sample"]).data)})
OWN = Target("tiny-dpo-1a2b3c4d", "x", Path("x"), RUN)


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ([], "likelihood"), (["data=hh_sample"], "likelihood"), (["benchmark.buckets=2"], "likelihood"),
        (["data=gsm8k_pairs"], "likelihood-gsm8k_pairs"), (["benchmark.pairs=10"], "likelihood-pairs10"),
        (["data=hh_sample", "data.max_length=700"], "likelihood-hh_sample-length700"),
        (["data=gsm8k_pairs", "data.limit=5", "data.label_noise=0.5"], "likelihood-gsm8k_pairs"),
        (["data=gsm8k_pairs", "data.join_to=512"], r"likelihood-gsm8k_pairs-[0-9a-f]{6}"),
        (["reference=org/base", "benchmark.pairs=3"], "likelihood-pairs3-since-org--base"),
        (["reference=bundled:tiny"], "likelihood-since-bundled-tiny"),
        (["against=bundled:tiny"], r"likelihood-vs-bundled-tiny-[0-9a-f]{8}"),
        ([*LOGPROB, "judge.path=m"], "winrate-logprob-m-chosen"),
        ([*LOGPROB, "judge.path=m", "benchmark.batch_size=3"], "winrate-logprob-m-chosen"),
        ([*LOGPROB, "judge.path=m", "benchmark.prompts=null"], "winrate-logprob-m-chosen-promptsall"),
        ([*LOGPROB, "judge.path=m", "judge.reduction=sum", "judge.tie=0.5"],
         "winrate-logprob-m-chosen-judge_tie0.5-judge_reductionsum"),
        ([*OPENAI, "judge.model=gpt-4.1", "benchmark.opponent=rejected", "benchmark.prompts=4"],
         "winrate-gpt-4.1-rejected-prompts4"),
        ([*OPENAI, "judge.model=gpt-4.1", "judge.timeout=9", "data=gsm8k_pairs"], "winrate-gpt-4.1-chosen-gsm8k_pairs"),
        ([*OPENAI, "judge.model=m", "benchmark.temperature=0.7", "seed=7"], "winrate-m-chosen-temperature0.7-seed7"),
        ([*OPENAI, "judge.model=m", "against=bundled:tiny"], r"winrate-m-vs-bundled-tiny-[0-9a-f]{8}"),
        ([*OPENAI, "judge.model=m", "reference=org/b", "benchmark.opponent=reference"],
         "winrate-m-vs-org--b"),
    ],
)  # fmt: skip
def test_a_name_says_what_is_not_as_usual(words: list[str], name: str):
    config = compose("eval", ["checkpoint=x", *words])
    against = None if config.against is None else find_targets(config, config.against)[0]
    of = winrate_name if "benchmark=winrate" in words else likelihood_name
    assert re.fullmatch(name, of(config, OWN, against)), of(config, OWN, against)
    assert of(config, OWN, against) == of(compose("eval", ["checkpoint=x", *words]), OWN, against)


def test_two_files_of_one_name_and_a_model_of_no_run(tmp_path: Path):
    names = set()
    for folder in ("a", "b"):
        words = ["checkpoint=x", "data=local", f"data.path={tmp_path / folder / 'pairs.v2.jsonl'}"]
        names.add(likelihood_name(compose("eval", words), Target("m", "m", tmp_path, None), None))
    assert len(names) == 2
    assert all(re.fullmatch(r"likelihood-pairs-[0-9a-f]{6}", name) for name in names)


@pytest.mark.parametrize("choice", [path.stem for path in (conf_dir() / "data").glob("*.yaml") if path.stem != "local"])
def test_every_choice_of_data_has_its_own_name(choice: str):
    assert data_name(compose("eval", ["checkpoint=x", f"data={choice}"]).data) == choice


@pytest.mark.parametrize(
    "text", ["", "/", "..", "../../x", "a b", "a/b", "a:b", "é", "a" * 500, "*", "/models/x", "x\n", "~", "-.-"]
)
def test_any_text_is_safe_in_a_file_name(text: str):
    assert re.fullmatch(r"[A-Za-z0-9._][A-Za-z0-9._-]*", short(text))
    assert short(text) not in {".", ".."}
    assert "/models" not in short(text)
    config = compose("eval", ["checkpoint=x", *OPENAI, "judge.model=m"])
    config.judge.model = text
    assert len(winrate_name(config, OWN, None)) <= LONGEST


def test_different_texts_have_different_names():
    texts = ["a/b", "a-b", "/x/a-b", "/y/a-b", "a b", "é", "è", "a" * 100, "a" * 101]
    assert len({short(text) for text in texts}) == len(texts)
