"""What lm-eval found, as a record beside the checkpoint, its questions and answers, and a table of several."""

from __future__ import annotations

import gzip
import json
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeGuard

from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.evaluate.backend import Asked
from dil_cli.evaluate.target import Target
from dil_cli.evaluate.tasks import Loaded, spelled
from dil_cli.files import replacing

MISLEADING = ("exact_match_original",)
"""Too low beside Hydra's antlr 4.9, which reads LaTeX in another way; `exact_match` does not use it."""
TEST_QUESTIONS = {"gsm8k_pairs": "openai/gsm8k"}
"""Bundled pairs that are answers to a benchmark's own test questions, and its data."""
SHARES = ("acc", "acc_norm", "exact_match")
"""Metrics that a table shows in percent."""


def record_name(config: HarnessConfig, loaded: Loaded) -> str:
    """A benchmark's name; asked otherwise than the recipe has it, or in part, it is another benchmark."""
    changed = {
        f"{config.shots}shot": config.shots not in (None, loaded.recipe.shots),
        f"limit{config.limit}": config.limit is not None,
        f"length{config.max_length}": config.max_length is not None,
        "no_template": config.chat_template is False,
    }
    return "-".join([loaded.name, *(part for part, is_so in changed.items() if is_so)])


def make_record(
    config: HarnessConfig, target: Target, asked: Asked, loaded: Loaded, results: Mapping[str, Any]
) -> dict[str, Any]:
    """The record of one benchmark on one checkpoint."""
    import lm_eval

    tasks = {
        name: {
            **_scores(results["results"][name], loaded.recipe.metrics),
            "questions": results["n-samples"][name]["effective"],
            "shots": results["n-shot"].get(name, 0),
            "version": results["versions"].get(name),
        }
        for name in loaded.tasks["tasks"]
    }
    whole = _scores(results["results"].get(loaded.recipe.task, {}), loaded.recipe.metrics)
    if not whole["metrics"]:  # a tag, or a group without a mean of its own
        for kind in ("metrics", "stderr"):
            whole[kind] = {f"{name}/{key}": value for name, row in tasks.items() for key, value in row[kind].items()}
    counts = results["n-samples"].values()
    shots = sorted({row["shots"] for row in tasks.values()})
    return {
        "benchmark": record_name(config, loaded),
        "checkpoint": {"name": target.name, "loss": target.loss, **asked.facts},
        **whole,
        "scores": "raw, as lm-eval gives them; not normalised to chance as Open LLM Leaderboard v2 shows them",
        "task": loaded.recipe.task,
        "shots": shots[0] if len(shots) == 1 else shots,
        "limit": config.limit,
        "questions": {
            "scored": sum(count["effective"] for count in counts),
            "there": sum(count["original"] for count in counts),
            "whole": loaded.recipe.questions,
        },
        "chat_template": {
            "used": asked.template is not None,
            "shots": None if asked.template is None else "as turns of the conversation",
            "text": asked.template,
        },
        "data": loaded.data,
        "trained_on_its_questions": trained_on_questions(target, loaded.data),
        "lm_eval": lm_eval.__version__,
        "tasks": tasks,
    }


def trained_on_questions(target: Target, data: Mapping[str, Any]) -> bool:
    """Whether the checkpoint's run trained on answers to the benchmark's test questions; no other data is known to."""
    trained = {} if target.run is None else target.run.config["data"]
    return trained.get("source") == "bundled" and TEST_QUESTIONS.get(str(trained.get("path"))) in data


def write_samples(path: Path, results: Mapping[str, Any]) -> None:
    """Every question with its prompt, answers and score, a JSON object a line; one more for each other filter."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary, gzip.GzipFile(temporary, "wb", compresslevel=6, mtime=0) as file:
        for task, samples in results["samples"].items():
            for sample in samples:
                file.write(json.dumps(_sample(task, sample), ensure_ascii=False, default=_plain).encode() + b"\n")


def show_scores(records: Sequence[Mapping[str, Any]], over_seeds: Sequence[Mapping[str, Any]] = ()) -> None:
    """A row a checkpoint, a column a benchmark, with standard errors; below it what the numbers are not.

    Args:
        records: of the checkpoints.
        over_seeds: means of them (`means.py`), which get rows below.
    """
    from rich import box
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    rows, means = _by_checkpoint(records), _by_checkpoint(over_seeds)
    benchmarks = list(dict.fromkeys(record["benchmark"] for record in records))
    losses = {str(record["checkpoint"]["loss"] or "") for record in records}
    table.add_column("checkpoint")
    if losses != {""}:
        table.add_column("loss")
    for name in benchmarks:
        table.add_column(name, justify="right")
    for label, row in (rows | means).items():
        loss = [str(next(iter(row.values()))["checkpoint"]["loss"] or "-")] if losses != {""} else []
        table.add_row(label, *loss, *(_cell(row.get(name)) for name in benchmarks))
    console.print()
    console.print(table)
    for line in _notes(records):
        console.print(line, soft_wrap=True, markup=False)
    if over_seeds:
        console.print("Means over seeds: +- standard error of the seeds' mean.", soft_wrap=True)


def _by_checkpoint(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Mapping[str, Any]]]:
    """Name of the checkpoint to benchmark to record."""
    rows: dict[str, dict[str, Mapping[str, Any]]] = {}
    for record in records:
        rows.setdefault(str(record["checkpoint"]["name"]), {})[record["benchmark"]] = record
    return rows


def _notes(records: Sequence[Mapping[str, Any]]) -> list[str]:
    shown = list({record["benchmark"]: _headline(record) for record in records}.items())
    lines = [
        "Metrics: " + ", ".join(f"{name} {metric}" for name, metric in shown) + ". Percent, raw, +- standard error."
    ]
    seen: dict[str, None] = {}
    for record in records:
        questions, prompts = record["questions"], record["prompts"]
        whole = questions["whole"] or questions["there"]
        if questions["scored"] < whole:
            lack = f", the data has {questions['there']:,}" if questions["there"] < whole else ""
            part = f"{questions['scored']:,} of {whole:,} questions{lack}"
            seen[f"{record['benchmark']}: {part}; not comparable with scores on all."] = None
        if record["trained_on_its_questions"]:
            seen[f"{record['benchmark']}: {record['checkpoint']['name']} was trained on answers to its questions."] = (
                None
            )
        if prompts["cut"]:
            beside = f"{prompts['cut']:,} of {prompts['number']:,} prompts lost their beginning"
            seen[f"{record['benchmark']}: {beside}, longer than {record['checkpoint']['max_length']} tokens."] = None
    used = {record["chat_template"]["used"] for record in records}
    how = {True: "the checkpoint's, shots as turns", False: "none"}
    template = how[used.pop()] if len(used) == 1 else "by checkpoint, see the records"
    return [*lines, f"Chat template: {template}.", *seen]


def _headline(record: Mapping[str, Any]) -> str:
    return next(iter(record["metrics"]), "-")


def _cell(record: Mapping[str, Any] | None) -> str:
    name = "-" if record is None else _headline(record)
    if record is None or name == "-":
        return "-"
    value, stderr = record["metrics"][name], record["stderr"].get(name)
    share = name.rpartition("/")[2].partition(",")[0] in SHARES
    text = f"{100 * value:.2f}" if share else f"{value:.4g}"
    if not stderr:  # of one question, or where all have the same score: nothing is known of others
        return f"{text} +- -"
    return f"{text} +- {100 * stderr:.2f}" if share else f"{text} +- {stderr:.2g}"


def _scores(row: Mapping[str, Any], wanted: Sequence[str]) -> dict[str, dict[str, float]]:
    """Metrics and their standard errors from a row of lm-eval's, the wanted ones in their order; none: all."""
    metrics: dict[str, float] = {}
    stderr: dict[str, float] = {}
    for key, value in row.items():
        metric, comma, kind = key.partition(",")
        if not comma or metric.endswith("_stderr") or metric in MISLEADING or not _is_number(value):
            continue
        metrics[spelled(metric, kind)] = float(value)
        error = row.get(f"{metric}_stderr,{kind}")
        if _is_number(error):  # of a single question there is none, and lm-eval writes a word
            stderr[spelled(metric, kind)] = float(error)
    names = [name for name in wanted if name in metrics] if wanted else list(metrics)
    return {
        "metrics": {name: metrics[name] for name in names},
        "stderr": {name: stderr[name] for name in names if name in stderr},
    }


def _sample(task: str, sample: Mapping[str, Any]) -> dict[str, Any]:
    prompts = list(dict.fromkeys(str(arguments[0]) for arguments in sample["arguments"]))
    # A prompt of 25 shots is not written once for each choice.
    asked = (
        {"prompt": prompts[0], "asked": [list(arguments[1:]) for arguments in sample["arguments"]]}
        if len(prompts) == 1
        else {"arguments": sample["arguments"]}
    )
    return {
        "task": task,
        "question": sample["doc_id"],
        "filter": sample["filter"],
        "doc": sample["doc"],
        **asked,
        "target": sample["target"],
        "answers": sample["resps"],
        "filtered": sample["filtered_resps"],
        "metrics": {name: sample[name] for name in sample["metrics"] if name not in MISLEADING},
    }


def _is_number(value: object) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _plain(value: Any) -> Any:
    """Numpy scalars as numbers, what else JSON does not know as text."""
    return value.item() if hasattr(value, "item") else str(value)
