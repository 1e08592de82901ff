"""lm-eval's tasks: found by name, loaded with their questions, seen to be what was meant."""

from __future__ import annotations

import logging
import random
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from difflib import get_close_matches
from functools import cache
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.config.harness_schema import HarnessConfig, Recipe
from dil_cli.errors import DilError
from dil_cli.evaluate.data_root import check_root, data_sets, needed_data, words

INSTALL = "pip install 'dil[eval]'"
QUICK = ("leaderboard", "gsm8k", "arc")
"""Folders of lm-eval that hold the paper's benchmarks: their index takes 0.3 s, that of all tasks 6 s and more."""


@dataclass(frozen=True)
class Loaded:
    """A benchmark ready to be asked: lm-eval's tasks and groups, and the data they read.

    `data` is hub id to the sha256 of the files of `benchmark.root`; to None where the hub's were taken.
    """

    name: str
    recipe: Recipe
    tasks: dict[str, Any]
    data: dict[str, str | None] = field(default_factory=dict)


def import_lm_eval() -> Any:
    """lm-eval, which takes seconds to import.

    Raises:
        DilError: when the extra that has it is not installed.
    """
    try:
        import lm_eval
        import lm_eval.tasks
    except ImportError as error:
        raise DilError(
            f"the benchmarks need a package that is not installed: {error.name or 'lm_eval'}",
            "benchmark=", INSTALL,
        ) from error  # fmt: skip
    # Its warnings repeat with every question; what they say of cut prompts and templates is in the record.
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return lm_eval


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and complaints of other packages: dil has its own."""
    from tqdm.std import tqdm

    log = logging.getLogger("datasets")
    level = log.level
    log.setLevel(logging.CRITICAL)
    bar: Any = tqdm
    begin = bar.__init__

    def hidden(self: Any, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs | {"disable": True})

    bar.__init__ = hidden
    try:
        yield
    finally:
        bar.__init__ = begin
        log.setLevel(level)


def load_benchmarks(config: HarnessConfig, cache: Path) -> list[Loaded]:
    """Every benchmark with its questions.

    Args:
        config: which, and from where.
        cache: folder for data sets in the form that `datasets` reads.

    Raises:
        DilError: for a task that lm-eval does not have, and for data that is not there or cannot be read.
    """
    lm_eval = import_lm_eval()
    recipes = config.recipes()
    manager = find_tasks(lm_eval, recipes)
    if config.root is None and not hub.reachable():
        hub.work_offline()  # the hub's local cache may have them
    if config.root is not None:
        check_root(config, [path for recipe in recipes.values() for path in needed_data(manager, recipe.task)])
    loaded = []
    for name, recipe in recipes.items():
        data: dict[str, str | None] = {}
        random.seed(lm_eval.defaults.DEFAULT_RANDOM_SEED)  # some tasks shuffle their options as they are loaded
        try:
            with quiet(), data_sets(config.root, cache, data):
                tasks = manager.load([recipe.task])
        except DilError:
            raise
        except Exception as error:  # whatever a task's own code, the hub or a damaged file raises
            raise _load_error(error, config, recipe.task, sorted(data)) from error
        shots = recipe.shots if config.shots is None else config.shots
        for task in tasks["tasks"].values():
            _check_task(task, recipe.task)
            if shots is not None:
                _set_shots(task, shots)
            elif task.config.num_fewshot is None:
                task.set_config("num_fewshot", 0)
        _check_metrics(name, recipe, tasks["tasks"])
        loaded.append(Loaded(name, recipe, tasks, data))
    return loaded


def spelled(metric: str, filter_name: str) -> str:
    """A metric as recipes and records have it: lm-eval's `acc,none` is `acc`, `exact_match,strict-match` stays."""
    return metric if filter_name == "none" else f"{metric},{filter_name}"


def find_tasks(lm_eval: Any, recipes: Mapping[str, Recipe]) -> Any:
    """A TaskManager that knows the recipes' tasks.

    Raises:
        DilError: for one that lm-eval does not have.
    """
    names = [recipe.task for recipe in recipes.values()]
    manager = _manager(QUICK)
    if any(name not in manager.task_index for name in names):
        manager = _manager(None)
    for name in names:
        if name not in manager.task_index:
            close = get_close_matches(name, manager.all_tasks, n=1, cutoff=0.8)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DilError(
                f"lm-eval {lm_eval.__version__} has no task '{name}'{hint}",
                f"benchmark.task={name}", f"benchmark.task={close[0]}" if close else "lm-eval ls tasks lists them",
            )  # fmt: skip
    return manager


@cache
def _manager(folders: tuple[str, ...] | None) -> Any:
    """lm-eval's index of the tasks in some of its folders, or of all."""
    lm_eval = import_lm_eval()
    if folders is None:
        return lm_eval.tasks.TaskManager()
    home = Path(lm_eval.tasks.__file__).parent
    return lm_eval.tasks.TaskManager(include_defaults=False, include_path=[str(home / name) for name in folders])


def _load_error(error: Exception, config: HarnessConfig, task: str, data: list[str]) -> DilError:
    reason: BaseException = error
    while reason.__cause__ is not None:  # `datasets` says only that an error occurred
        reason = reason.__cause__
    first = next(iter(str(reason).strip().splitlines()), "") or type(reason).__name__
    if isinstance(error, ModuleNotFoundError):
        what = f"the task {task} needs a package that is not installed: {error.name or first}"
        return DilError(what, f"benchmark.task={task}", INSTALL if error.name is None else f"pip install {error.name}")
    named = ", ".join(data) or task
    if config.root is None and not hub.reachable():
        return DilError(
            f"the data of {task} ({named}) is not here and the hub cannot be reached (offline)",
            "benchmark.root=null", f"dil eval --stage DIR {words(config)}, then benchmark.root=DIR",
        )  # fmt: skip
    where = f"benchmark.root={config.root}" if config.root is not None else f"benchmark.task={task}"
    return DilError(f"the data of {task} ({named}) cannot be read: {first}", where, "download it again, whole")


def _check_task(task: Any, named: str) -> None:
    if getattr(task, "UNSAFE_CODE", False):
        raise DilError(
            f"{named} runs code that the model writes, and dil does not", f"benchmark.task={named}",
            "lm-eval's own command with --confirm_run_unsafe_code, in a sandbox",
        )  # fmt: skip
    if getattr(task, "MULTIMODAL", False):
        raise DilError(f"{named} asks about images or sound, dil reads text", f"benchmark.task={named}", "another task")


def _check_metrics(name: str, recipe: Recipe, tasks: Mapping[str, Any]) -> None:
    """A recipe's metrics must be there before hours are spent on them."""
    there = {
        spelled(metric, kind.name)
        for task in tasks.values()
        for metric in task.aggregation()
        for kind in getattr(task, "_filters", ())
    }
    for metric in recipe.metrics:
        if metric not in there:
            raise DilError(
                f"{recipe.task} has no metric {metric}; it has {', '.join(sorted(there))}",
                f"benchmark.tasks.{name}.metrics", f"metrics: [{min(there, default='...')}]",
            )  # fmt: skip


def _set_shots(task: Any, shots: int) -> None:
    examples = len(getattr(getattr(task, "sampler", None), "df", ()))
    if shots > examples:
        raise DilError(
            f"{task.config.task} has {examples} examples to put in a prompt, {shots} are wanted", "benchmark.shots",
            f"benchmark.shots={examples}",
        )  # fmt: skip
    task.set_config("num_fewshot", shots)
