"""The jobs of a sweep, checked before the first one starts: their data is read, their model and folder looked at."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.identity import plain, run_hash
from dil_cli.config.schema import TrainConfig
from dil_cli.data.load import load_pairs
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import base_config, check_start
from dil_cli.models.load import resolve_source
from dil_cli.train.ready import pick_device, stay_offline_if_local


@dataclass(frozen=True)
class Job:
    """One run of a sweep: `label` tells it from the others, `work` is its number of pairs times its epochs."""

    label: str
    overrides: tuple[str, ...]
    config: TrainConfig
    hash: str
    work: float

    @cached_property
    def folder(self) -> RunFolder:
        """Where the run is or will be."""
        return RunFolder(Path(self.config.output).resolve() / f"{self.config.name}-{self.hash}")

    @property
    def finished(self) -> bool:
        """Whether its result is there."""
        return self.folder.finished(self.hash)

    @property
    def state(self) -> str:
        """done, failed, stopped (it began and said nothing of its end), or to do."""
        if self.finished:
            return "done"
        if self.folder.failure.is_file():
            return "failed"
        return "stopped" if self.folder.manifest.is_file() else "to do"


def plan(configs: Sequence[tuple[tuple[str, ...], TrainConfig]], swept: Sequence[str]) -> list[Job]:
    """Overrides and config of every job as jobs that can start; of jobs that are the same run, the first.

    Args:
        configs: a pair for each job.
        swept: the keys whose values differ between jobs.

    Raises:
        DilError: for the first job that cannot start, naming it; and how many others cannot.
    """
    jobs: dict[str, Job] = {}
    wrong: list[tuple[int, DilError]] = []
    content: dict[str, tuple[str, int]] = {}
    for number, (overrides, config) in enumerate(configs, start=1):
        try:
            job = _checked(_label(overrides, swept), overrides, config, content)
        except DilError as error:
            wrong.append((number, error))
            continue
        jobs.setdefault(job.hash, job)
    if wrong:
        number, first = wrong[0]
        others = f"; {len(wrong) - 1} more jobs cannot start either" if len(wrong) > 1 else ""
        with naming(number, len(configs), configs[number - 1][0], swept):
            raise DilError(f"{first.what}{others}", first.where, first.fix) from first
    return list(jobs.values())


@contextmanager
def naming(number: int, jobs: int, overrides: Sequence[str], swept: Sequence[str]) -> Iterator[None]:
    """Let an error say in which job of a sweep it is."""
    try:
        yield
    except DilError as error:
        job = f"job {number} of {jobs}: {_label(overrides, swept)}"
        raise DilError(error.what, f"{error.where} ({job})".strip(), error.fix) from error


def _label(overrides: Sequence[str], swept: Sequence[str]) -> str:
    return " ".join(word for word in overrides if word.partition("=")[0] in swept) or "the only one"


def _checked(label: str, overrides: tuple[str, ...], config: TrainConfig, content: dict[str, tuple[str, int]]) -> Job:
    """The job, or the error that `dil train` would end in; `content` keeps fingerprint and size of data once read."""
    stay_offline_if_local(config.model.path, config.data)
    check_start(config.model, config.peft)
    resolve_source(base_config(config.model))
    pick_device(config.device)
    key = repr((plain(config.data), config.seed, config.loss.needs_rejected))
    if key not in content:
        pairs = load_pairs(config.data, config.seed, config.loss.needs_rejected)
        content[key] = pairs.fingerprint, pairs.counts.train
    fingerprint, number = content[key]
    job = Job(label, overrides, config, run_hash(config, fingerprint), number * config.optim.epochs)
    if not job.finished:
        job.folder.check_writable()
    return job
