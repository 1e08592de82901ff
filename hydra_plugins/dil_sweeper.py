"""Where Hydra looks for plugins: `hydra/sweeper: dil`. What happens in a sweep is in `dil_cli/sweep/`.

No `__init__.py` beside it: `hydra_plugins` is a namespace that other packages share. No postponed annotations: Hydra
executes this file before it is a known module, and a dataclass would look them up there.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.utils import JobReturn

if TYPE_CHECKING:  # Hydra imports this file for every command
    from dil_cli.sweep.plan import Job
    from dil_cli.sweep.run import Launch, Outcome


@dataclass
class DilSweeperConf:
    """`hydra.sweeper` of an experiment: its grid, and what a report says and draws of it.

    question: the sentence at the head of the report. baseline: the group that the others are compared with, as
    in "loss=dpo". x: the key on the horizontal axis of the curves.
    """

    _target_: str = "hydra_plugins.dil_sweeper.DilSweeper"
    max_batch_size: int | None = None
    params: dict[str, str] | None = None
    question: str | None = None
    baseline: str | None = None
    x: str | None = None
    dry_run: bool = False


ConfigStore.instance().store(group="hydra/sweeper", name="dil", node=DilSweeperConf, provider="dil")


class DilSweeper(BasicSweeper):
    """Hydra's grid of overrides, composed and handed to `dil_cli.sweep.run`."""

    def __init__(
        self,
        max_batch_size: int | None,
        params: dict[str, str] | None,
        question: str | None,
        baseline: str | None,
        x: str | None,
        dry_run: bool,
    ) -> None:
        super().__init__(max_batch_size, params)
        self.question, self.baseline, self.x, self.dry_run = question, baseline, x, dry_run

    def sweep(self, arguments: list[str]) -> Any:
        """Every job of the grid that is not done yet.

        Raises:
            DilError: when a job is wrong, before any of them starts.
            RunFailed: at the end, when a job failed.
        """
        from dil_cli.config.compose import chosen_folder, compose_job
        from dil_cli.errors import DilError
        from dil_cli.sweep.folder import About
        from dil_cli.sweep.plan import naming
        from dil_cli.sweep.run import run_sweep

        assert self.hydra_context is not None
        assert self.config is not None
        parser = OverridesParser.create(self.hydra_context.config_loader)
        # The command line comes last, so that its values take the place of the experiment's.
        parsed = parser.parse_overrides([*self._parse_config(), *arguments])
        grid = [tuple(words) for batch in self.split_arguments(parsed, None) for words in batch]
        if not grid:
            raise DilError("there is nothing to run: a list is empty", "dil sweep", "seed=range(0,3) is 0,1,2")
        if chosen_folder(str(self.config.hydra.run.dir)) is not None:
            raise DilError(
                f"one folder for {len(grid)} runs", f"hydra.run.dir={self.config.hydra.run.dir}",
                "output=DIR, in which every run has a folder of its own",
            )  # fmt: skip
        swept = tuple(word.partition("=")[0] for i, word in enumerate(grid[0]) if len({words[i] for words in grid}) > 1)
        experiment = self.config.hydra.runtime.choices.get("experiment")
        about = About(
            name=(experiment or "-".join(key.rpartition(".")[2] for key in swept) or "single").replace("/", "-"),
            swept=swept, question=self.question, baseline=self.baseline, x=self.x,
        )  # fmt: skip
        configs = []
        for number, words in enumerate(grid, start=1):
            with naming(number, len(grid), words, swept):
                configs.append((words, compose_job(self.hydra_context.config_loader, self.config, words)))
        run_sweep(configs, about, self._launch, self.dry_run)

    def _launch(self, sweep: str) -> "Launch":
        from dil_cli.sweep.run import Launch

        name = str(self.config.hydra.runtime.choices["hydra/launcher"])  # type: ignore[union-attr]
        return Launch(lambda jobs: self._start(jobs, sweep), isinstance(self.launcher, BasicLauncher), name)

    def _start(self, jobs: Sequence["Job"], sweep: str) -> "list[Outcome]":
        assert self.launcher is not None
        group = (
            [] if any(word.startswith("tracker.group=") for word in jobs[0].overrides) else [f"tracker.group={sweep}"]
        )
        returns = self.launcher.launch([[*job.overrides, *group] for job in jobs], initial_job_idx=0)
        return [_outcome(job_return) for job_return in returns]


def _outcome(job_return: JobReturn) -> "Outcome":
    """The job's exit code, or its exception."""
    try:
        return int(job_return.return_value)
    except Exception as error:
        return error
