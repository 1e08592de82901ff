"""`dil eval --stage DIR`: what to download where, for a machine without a network."""

from __future__ import annotations

import shlex
from pathlib import Path

from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.evaluate.data_root import needed_data, words
from dil_cli.evaluate.tasks import find_tasks, import_lm_eval


def staging(config: HarnessConfig, folder: str, models: list[str]) -> str:
    """Shell lines that download all that the benchmarks need into `folder`; what is there already is left out.

    Args:
        config: which benchmarks.
        folder: the data root to be, laid out by hub id.
        models: hub ids of models that are needed too.

    Raises:
        DilError: for a task that lm-eval does not have.
    """
    lm_eval = import_lm_eval()
    recipes = config.recipes()
    manager = find_tasks(lm_eval, recipes)
    by_set: dict[str, list[str]] = {}
    for name, recipe in recipes.items():
        for path in needed_data(manager, recipe.task):
            by_set.setdefault(path, []).append(name)
    root = folder.rstrip("/")
    lines = [f"# For benchmark={config.name}, lm-eval {lm_eval.__version__}. Where there is a network:"]
    for path, names in by_set.items():
        there = Path(f"{root}/{path}").expanduser().is_dir()
        command = f"hf download {path} --repo-type dataset --local-dir {_quoted(f'{root}/{path}')}"
        lines.append(f"# {path} is there ({', '.join(names)})" if there else f"{command}  # {', '.join(names)}")
    lines += [f"hf download {model} --local-dir {_quoted(f'{root}/{model}')}  # the model" for model in models]
    checkpoint = f"{root}/{models[0]}" if models else "..."
    lines.append(f"# Then, without one: dil eval checkpoint={checkpoint} {words(config)} benchmark.root={folder}")
    return "\n".join(lines)


def _quoted(path: str) -> str:
    """For the shell; a home folder stays `~`, which the shell must see."""
    return f"~/{shlex.quote(path[2:])}" if path.startswith("~/") else shlex.quote(path)
