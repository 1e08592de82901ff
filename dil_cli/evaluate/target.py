"""From what the user names to the checkpoints that are meant, each with the run it came from."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.identity import from_plain
from dil_cli.config.schema import DataConfig, EvalConfig, ModelConfig
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import adapter_config, base_path
from dil_cli.report.runs import Run, find_runs, read_run


@dataclass(frozen=True, eq=False)
class Target:
    """A checkpoint: `path` is what loads it, `run` the one that wrote it, None for a model from elsewhere.

    `folder` is where its results lie: in the checkpoint, or under the output folder for a model from elsewhere.
    """

    name: str
    path: str
    folder: Path
    run: Run | None

    @property
    def reduction(self) -> str:
        """Sum or mean over tokens: the run's, else mean."""
        return "mean" if self.run is None else self.run.reduction

    @property
    def loss(self) -> str | None:
        """The run's."""
        return None if self.run is None else self.run.loss

    @property
    def step(self) -> int:
        """Optimiser steps behind a run's checkpoint; 0 for a model of no run."""
        digits = Path(self.path).name.removeprefix("step-")
        return int(digits) if self.run is not None and digits.isdigit() else 0


def find_targets(config: EvalConfig, checkpoint: str, key: str = "checkpoint") -> list[Target]:
    """The checkpoints behind a run, a checkpoint, a sweep, a folder that holds runs, a model folder or a hub id.

    Args:
        config: says where results of models from elsewhere lie.
        checkpoint: what the user named.
        key: by which it was named, for errors.

    Raises:
        DilError: when there is none, or a run named alone has not finished.
    """
    folder, where = Path(checkpoint).expanduser(), f"{key}={checkpoint}"
    if checkpoint.startswith("bundled:") or not folder.exists():
        if not hub.may_be_id(checkpoint) or folder.is_relative_to(config.output):
            raise DilError(f"there is no {checkpoint}", where, f"{key}=outputs/RUN, or a hub id")
        return [Target(checkpoint, checkpoint, _own_place(config, checkpoint), None)]
    if not folder.is_dir():
        raise DilError(f"{checkpoint} is a file", where, "name the folder that holds it")
    if (folder / "config.json").is_file() or adapter_config(str(folder)) is not None:
        return [_of_folder(config, folder)]
    if (folder / "manifest.json").is_file():
        return [_of_run(read_run(folder), where)]
    runs, _ = _runs_below(folder, where)
    done = [run for run in runs if run.status == "done"]
    if not done:
        raise DilError(
            f"none of {len(runs)} runs in {checkpoint} is finished", where,
            "finish them first: the command that began a run starts it again",
        )  # fmt: skip
    return [_of_run(run, where) for run in done]


def model_config(config: EvalConfig, target: Target) -> ModelConfig:
    """How the checkpoint is read: as its run read the model, or else as `model.*` says."""
    if target.run is not None:
        return recorded_model(config, target.run, {"path": target.path, "revision": None})
    read = config.model
    return ModelConfig(
        path=target.path, revision=read.revision, dtype=read.dtype, attention=read.attention,
        trust_remote_code=read.trust_remote_code, lr=1.0, batch_size=1, max_length=read.max_length,
        max_prompt_length=read.max_prompt_length, token_budget=read.token_budget,
    )  # fmt: skip


def recorded_model(config: EvalConfig, run: Run, changed: Mapping[str, Any]) -> ModelConfig:
    """How a run read its model; but anyone may have written its manifest, so trust counts on the command line only."""
    trust = {"trust_remote_code": config.model.trust_remote_code}
    return from_plain(ModelConfig, {**run.config["model"], **changed, **trust})


def start_config(config: EvalConfig, target: Target) -> ModelConfig | None:
    """The model that changes are relative to: the one named, the run's own, an adapter's base; else None."""
    if config.reference is not None:
        return replace(model_config(config, target), path=config.reference)
    if target.run is not None:
        return recorded_model(config, target.run, {})
    if adapter_config(target.path) is not None:
        return replace(model_config(config, target), path=base_path(target.path))
    return None


def data_config(config: EvalConfig, target: Target) -> DataConfig:
    """The pairs: those that the user chose, else those of the run.

    Raises:
        DilError: for a model of no run when none were chosen.
    """
    if config.data is not None:
        return config.data
    if target.run is None:
        raise DilError(
            f"{target.name} belongs to no run, so nothing says which pairs are meant", f"checkpoint={target.path}",
            "data=gsm8k_pairs, data=hh, data=local data.path=FILE (dil eval --help lists them)",
        )  # fmt: skip
    return from_plain(DataConfig, target.run.config["data"])


def _of_run(run: Run, where: str) -> Target:
    if run.status != "done":
        raise DilError(
            f"the run {run.folder.name} is {run.status}, and has no final checkpoint", where,
            f"{where.partition('=')[0]}={run.folder}/checkpoints/step-..., or finish it with the command that began it",
        )  # fmt: skip
    path = run.folder / str((run.result or {}).get("checkpoint"))
    if not path.resolve().is_relative_to(run.folder.resolve()):  # its results would be written there
        raise DilError(
            f"the checkpoint that {run.folder.name} names lies outside of it", str(run.folder / "result.json"),
            f"checkpoint={run.folder}/checkpoints/step-...",
        )  # fmt: skip
    if not (path / "config.json").is_file() and adapter_config(str(path)) is None:
        raise DilError(f"the checkpoint of {run.folder.name} is gone", str(path), "train it again")
    return Target(run.folder.name, str(path), path, run)


def _own_place(config: EvalConfig, path: str) -> Path:
    """A folder for the results of a model from elsewhere; two of one name have two."""
    name = path.rstrip("/").rpartition("/")[2].replace(":", "-")
    return Path(config.output) / "eval" / f"{name}-{hashlib.sha256(path.encode()).hexdigest()[:8]}"


def _of_folder(config: EvalConfig, folder: Path) -> Target:
    """A checkpoint of a run if it lies in one, else a model folder."""
    inside = folder.resolve().parent.name == "checkpoints"
    run_folder = folder.resolve().parents[1]
    if inside and RunFolder(run_folder).manifest.is_file():
        return Target(f"{run_folder.name} {folder.resolve().name}", str(folder), folder, read_run(run_folder))
    return Target(folder.resolve().name, str(folder), _own_place(config, str(folder.resolve())), None)


def _runs_below(folder: Path, where: str) -> tuple[list[Run], object]:
    try:
        return find_runs([folder])
    except DilError as error:
        raise DilError(
            f"{folder} holds neither a run nor a model: {error.what}", where,
            f"{where.partition('=')[0]}=outputs/RUN, or a folder with config.json and weights",
        ) from error  # fmt: skip
