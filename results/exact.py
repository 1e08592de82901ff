"""Exact match: greedy solutions to GSM8K test problems that no training pair is about. Q problems."""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch

from dil_cli.config.compose import compose
from dil_cli.config.schema import EvalConfig
from dil_cli.data.load import fingerprint, load_pairs
from dil_cli.dynamics.probe import choose_probe
from dil_cli.evaluate.answers import answer
from dil_cli.evaluate.target import find_targets, model_config
from dil_cli.files import parse_json, write_json
from dil_cli.tracking.console import make_console
from dil_cli.types import PreferencePair
from results.grid import NotRun

FINAL = re.compile(r"^A: *\$?(-?\d+(?:\.\d+)?)[^\d\n]*$", re.MULTILINE)
"""The last line of a solution, as the tiny model's texts write it (`dil_cli/data/gsm8k.py`)."""

PROBLEMS = 256
"""That are asked where a page says nothing else."""

SOLUTION = 0.27
"""Seconds of a greedy solution of the tiny model on 2 cores (docs/results/README.md)."""


@dataclass(frozen=True)
class Exact:
    """Of each problem, (Q,): whether the final answer is the right one, and whether there is one at all."""

    right: list[bool]
    answered: list[bool]


def measure_all(checkpoints: Sequence[str], number: int, at_once: int) -> None:
    """What is missing of each, `number` problems, so many checkpoints at a time, a core each."""
    missing = [checkpoint for checkpoint in checkpoints if not _file(checkpoint, number).is_file()]
    with ProcessPoolExecutor(at_once, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        for done, _ in enumerate(pool.map(partial(measure, number=number), missing), 1):
            print(f"exact match: {done} of {len(missing)} checkpoints", flush=True)


def measure(checkpoint: str, number: int) -> None:
    """Generate what is missing of a checkpoint's solutions, and keep what became of them beside it.

    Args:
        checkpoint: a run's folder or a model, as `dil eval` takes it.
        number: of problems.
    """
    config, file = _config(checkpoint), _file(checkpoint, number)
    if file.is_file():
        return
    (target,) = find_targets(config, checkpoint)
    assert config.data is not None
    found = answer(
        config, target, model_config(config, target), config.data, config.seed, make_console(), problems(number)
    )
    given = [final_number(found.responses[pair.row].text) for pair in found.pairs]
    wanted = [final_number(pair.chosen) for pair in found.pairs]
    right = [a is not None and a == b for a, b in zip(given, wanted, strict=True)]
    write_json(file, {"right": right, "answered": [number is not None for number in given]})


def measured(checkpoint: str, number: int) -> Exact:
    """What `measure` found.

    Raises:
        NotRun: when it was not measured.
    """
    if not (file := _file(checkpoint, number)).is_file():
        raise NotRun(f"no exact match of {checkpoint}: {file} is missing")
    return Exact(**parse_json(file.read_text(encoding="utf-8")))


@cache
def problems(number: int) -> Sequence[PreferencePair]:
    """Of GSM8K's test problems, spread evenly, less those of the training pairs, whose questions come from there."""
    taught = load_pairs(compose("train", ["data=gsm8k_pairs"]).data, seed=0, needs_rejected=True).train
    asked = load_pairs(compose("train", ["data=gsm8k", "loss=sft"]).data, seed=0, needs_rejected=False).heldout
    seen = {_words(pair.prompt[-1].content) for pair in taught}
    left = [pair for pair in asked if _words(pair.prompt[-1].content) not in seen]
    return [left[i] for i in choose_probe(len(left), number)]


def final_number(solution: str) -> float | None:
    """The number of the last final line; None where there is no such line."""
    found = FINAL.findall(solution.replace(",", ""))
    return float(found[-1]) if found else None


def _words(question: str) -> str:
    """A question whatever its white space."""
    return " ".join(question.split())


def _file(checkpoint: str, number: int) -> Path:
    (target,) = find_targets(_config(checkpoint), checkpoint)
    # Named by the problems: what was measured on others is not taken for this.
    # Not in eval/, where reports look for evaluations.
    return target.folder / f"exact-{fingerprint(problems(number), (), frozenset())[:8]}.json"


@cache
def _config(checkpoint: str) -> EvalConfig:
    # The judge is not asked; `answer` is what a win rate begins with.
    words = ["data=gsm8k", "benchmark=winrate", "benchmark.batch_size=256", "judge=logprob", "judge.path=bundled:tiny"]
    config: Any = compose("eval", [f"checkpoint={checkpoint}", *words])
    assert isinstance(config, EvalConfig)
    return config
