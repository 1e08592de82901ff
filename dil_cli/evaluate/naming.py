"""Names of records: what changes the meaning of a number stands in it, so that no trial takes a record's place."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.config.data_name import data_name
from dil_cli.config.identity import from_plain
from dil_cli.config.judging import LocalJudge, OpenAIJudge, Opponent, WinrateConfig
from dil_cli.config.schema import DataConfig, EvalConfig, LikelihoodConfig
from dil_cli.evaluate.target import Target

LONGEST = 120
"""Characters of a record's name; a file system takes 255 bytes, `.json` and a temporary ending included."""

HOW_ASKED = ("name", "base_url", "key_env", "concurrency", "retries", "backoff", "timeout", "trust_remote_code")
"""Fields of a judge that leave its verdicts as they are."""


def likelihood_name(config: EvalConfig, target: Target, against: Target | None) -> str:
    """`likelihood` is of all pairs that the run held out, against its own start.

    With other pairs, fewer of them, another reference or an opponent it is `likelihood-hh_sample-pairs10-vs-NAME`.
    """
    benchmark: LikelihoodConfig = config.benchmark
    parts = ["likelihood", *_data(config, target)]
    parts += [] if benchmark.pairs is None else [f"pairs{benchmark.pairs}"]
    parts += [] if config.reference is None else [f"since-{short(config.reference)}"]
    parts += [] if against is None else [f"vs-{target_name(against)}"]
    return _joined(parts)


def winrate_name(config: EvalConfig, target: Target, against: Target | None) -> str:
    """`winrate-JUDGE-OPPONENT`, and what is not as the benchmark and the judge have it by themselves."""
    benchmark: WinrateConfig = config.benchmark
    parts = ["winrate", _judge(config.judge), _opponent(config, benchmark, against), *_data(config, target)]
    parts += _changed(benchmark, ("name", "opponent", "batch_size"))
    parts += [f"seed{config.seed}"] if benchmark.temperature > 0 and config.seed != EvalConfig.seed else []
    parts += [f"judge_{part}" for part in _changed(config.judge, (*HOW_ASKED, "model", "path"))]
    return _joined(parts)


def target_name(target: Target) -> str:
    """A checkpoint's: the run's folder, with the step where one was named; of no run, the folder of its results."""
    return short(target.name.replace(" ", "-")) if target.run is not None else target.folder.name


def short(text: str) -> str:
    """A model, folder or value as a part of a file name: a hub id `org--name`; of a folder its last part and a hash."""
    folder = not hub.may_be_id(text)
    name = text.rstrip("/").rpartition("/")[2] if folder else text.replace("/", "--").replace(":", "-")
    clean = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.")[:80]
    whole = str(Path(text).expanduser().resolve()) if folder else text
    return clean if clean and clean == name and not folder else f"{clean or 'x'}-{_digest(whole)}"


def _data(config: EvalConfig, target: Target) -> list[str]:
    """Nothing for the run's own pairs, named or not."""
    data = config.data
    if data is None or (target.run is not None and data == from_plain(DataConfig, target.run.config["data"])):
        return []
    read = type(config.model)
    lengths = [("length", data.max_length, read.max_length), ("prompt", data.max_prompt_length, read.max_prompt_length)]
    return [short(data_name(data)), *(f"{name}{value}" for name, value, usual in lengths if value != usual)]


def _judge(judge: Any) -> str:
    return short(judge.model) if isinstance(judge, OpenAIJudge) else f"{judge.name}-{short(judge.path)}"


def _opponent(config: EvalConfig, benchmark: WinrateConfig, against: Target | None) -> str:
    if against is not None:
        return f"vs-{target_name(against)}"
    if benchmark.opponent is Opponent.reference and config.reference is not None:
        return f"vs-{short(config.reference)}"
    return Opponent.chosen.value if benchmark.opponent is Opponent.auto else benchmark.opponent.value


def _changed(config: WinrateConfig | OpenAIJudge | LocalJudge, without: tuple[str, ...]) -> list[str]:
    """The fields that are not at their default, `prompts64`, each as a part of a name."""
    return [
        f"{field.name}{short('all' if field.name == 'prompts' and value is None else str(value))}"
        for field in dataclasses.fields(config)
        if field.name not in without and (value := getattr(config, field.name)) != field.default
    ]


def _joined(parts: list[str]) -> str:
    name = "-".join(parts)
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 7].rstrip('-.')}-{_digest(name)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:6]
