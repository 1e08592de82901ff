"""Benchmarks through lm-eval: questions once, then each checkpoint, a record a benchmark as soon as it is there."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.config.schema import EvalConfig
from dil_cli.errors import DilError, RunFailed
from dil_cli.evaluate.backend import Asked, ask_checkpoint
from dil_cli.evaluate.remember import Answers, Remembering
from dil_cli.evaluate.scores import make_record, record_name, write_samples
from dil_cli.evaluate.target import Target
from dil_cli.evaluate.tasks import Loaded, import_lm_eval, load_benchmarks, quiet
from dil_cli.tracking.console import ConsoleSink


class Harness:
    """The measurement of one or more checkpoints; their questions are loaded once."""

    def __init__(self, config: EvalConfig, console: ConsoleSink) -> None:
        self.config, self.console = config, console
        self._benchmarks: list[Loaded] = []

    def measure(self, target: Target) -> Iterator[dict[str, Any]]:
        """The record of each benchmark; its questions and answers are then in `eval/<benchmark>/` beside it.

        Raises:
            DilError: when tasks, data or checkpoint cannot be had.
        """
        benchmark: HarnessConfig = self.config.benchmark
        cache = Path(self.config.output) / "cache"
        if not self._benchmarks:
            with self.console.phase("loading the questions", None):
                self._benchmarks = load_benchmarks(benchmark, cache / "questions")
        asked = ask_checkpoint(self.config, target, self.console)
        for loaded in self._benchmarks:
            _check_room(asked, loaded)
        for loaded in self._benchmarks:
            path = cache / "answers" / asked.key / f"{loaded.name.replace('/', '-')}.jsonl"
            began = time.monotonic()
            results, lm = self._ask(target, asked, loaded, path)
            record = make_record(benchmark, target, asked, loaded, results)
            record["accepted"] = list(self.config.accept)
            record["answers"] = {"known": lm.known, "computed": lm.computed, "cache": str(path)}
            record["prompts"] = {"number": lm.prompts, "cut": lm.cut}
            record["seconds"] = round(time.monotonic() - began, 1)
            name = record_name(benchmark, loaded)
            write_samples(target.folder / "eval" / name / "samples.jsonl.gz", results)
            yield record

    def _ask(self, target: Target, asked: Asked, loaded: Loaded, path: Path) -> tuple[dict[str, Any], Remembering]:
        lm_eval = import_lm_eval()
        import torch
        from lm_eval.evaluator import evaluate

        benchmark: HarnessConfig = self.config.benchmark
        # The seeds of lm-eval's own command line, so that its prompts are ours.
        random.seed(lm_eval.defaults.DEFAULT_RANDOM_SEED)
        np.random.seed(lm_eval.defaults.DEFAULT_OTHER_SEED)
        torch.manual_seed(lm_eval.defaults.DEFAULT_OTHER_SEED)
        for task in loaded.tasks["tasks"].values():
            task.set_fewshot_seed(seed=lm_eval.defaults.DEFAULT_OTHER_SEED)
        answers = Answers(path)
        lm = Remembering(asked.lm, answers, self.console, f"{target.name}: {loaded.name}")
        try:
            with quiet():
                results = evaluate(
                    lm=lm, task_dict=loaded.tasks, limit=benchmark.limit,
                    apply_chat_template=asked.template is not None, fewshot_as_multiturn=asked.template is not None,
                )  # fmt: skip
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"{loaded.name} does not fit in the device's memory", f"benchmark.batch_size={benchmark.batch_size}",
                "a smaller one, or auto; what is answered is kept",
            ) from error  # fmt: skip
        finally:
            answers.close()
        return results, lm


def _check_room(asked: Asked, loaded: Loaded) -> None:
    """A prompt must have room beside the answer."""
    for name, task in loaded.tasks["tasks"].items():
        if task.OUTPUT_TYPE != "generate_until":
            continue
        wanted = (task.config.generation_kwargs or {}).get("max_gen_toks", asked.lm.max_gen_toks)
        if wanted >= asked.lm.max_length:
            raise DilError(
                f"{name} lets the model write {wanted} tokens, it has {asked.lm.max_length} for prompt and answer",
                f"benchmark.tasks.{loaded.name}",
                "the other benchmarks by name; benchmark.max_length if its config says too little",
            )  # fmt: skip
