"""`dil eval --stage DIR`: what to download where, for a machine without a network."""

from __future__ import annotations

from pathlib import Path

from dil_cli.config.schema import HarnessConfig
from dil_cli.evaluate.data_root import needed_data
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
    lines = [f"# For benchmark={config.name}, lm-eval {lm_eval.__version__}. Where there is a network:"]
    for path, names in by_set.items():
        place = f"{folder.rstrip('/')}/{path}"
        there = Path(place).expanduser().is_dir()
        command = f"hf download {path} --repo-type dataset --local-dir {place}"
        lines.append(f"# {path} is there ({', '.join(names)})" if there else f"{command}  # {', '.join(names)}")
    lines += [f"hf download {model} --local-dir {folder.rstrip('/')}/{model}  # the model" for model in models]
    here = "".join(f" checkpoint={folder.rstrip('/')}/{model}" for model in models[:1]) or " checkpoint=..."
    task = f" benchmark.task={config.task}" if config.task else ""
    lines.append(f"# Then, without one: dil eval{here} benchmark={config.name}{task} benchmark.root={folder}")
    return "\n".join(lines)
