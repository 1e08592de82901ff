"""`dil eval`: every checkpoint that is meant, one after the other, a record beside each, a table at the end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Protocol

from dil_cli.artifacts.manifest import environment
from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.config.identity import plain
from dil_cli.config.judging import WinrateConfig
from dil_cli.config.schema import EvalConfig, LikelihoodConfig
from dil_cli.errors import DilError
from dil_cli.evaluate.harness import Harness
from dil_cli.evaluate.likelihood import Likelihood
from dil_cli.evaluate.means import over_seeds
from dil_cli.evaluate.publish import publish
from dil_cli.evaluate.scores import show_scores
from dil_cli.evaluate.show import show
from dil_cli.evaluate.stage import staging
from dil_cli.evaluate.target import Target, find_targets
from dil_cli.evaluate.winrate import Winrate
from dil_cli.files import write_json
from dil_cli.tracking.console import ConsoleSink, make_console


class Measure(Protocol):
    """What is measured of checkpoints; one object for all of a command."""

    def evaluate(self, target: Target, against: Target | None = None) -> dict[str, Any]:
        """The record of one checkpoint."""


MEASURES: dict[type, Callable[[EvalConfig, ConsoleSink], Measure]] = {
    LikelihoodConfig: Likelihood,
    WinrateConfig: Winrate,
}
"""What measures a checkpoint, by the dataclass of `benchmark=`."""


def run(config: EvalConfig, chosen: Path | None = None) -> int:
    """Measure, and write `eval/<benchmark>.json` beside each checkpoint.

    Returns:
        0; 1 where not one verdict of a judge could be read.

    Raises:
        DilError: when a checkpoint cannot be found or read, or has drifted since its run.
    """
    if config.stage is not None:
        return _stage(config, config.stage)
    assert config.checkpoint is not None, "the config asks for one"
    targets = find_targets(config, config.checkpoint)
    console = make_console()
    measured: list[tuple[Target, dict[str, Any]]] = []
    try:
        for target, record in _measure(config, targets, console):
            record |= {"config": plain(config), "environment": environment()}
            path = target.folder / "eval" / f"{record['benchmark']}.json"
            write_json(path, record)
            console.note(f"record {path}")
            measured.append((target, record))
        for target in targets:
            publish(target, [record for of, record in measured if of is target], console.note)
    finally:
        console.close()
    records = [record for _, record in measured]
    (show_scores if isinstance(config.benchmark, HarnessConfig) else show)(records, over_seeds(measured))
    return int(any("judge" in record and "win_rate" not in record["metrics"] for record in records))


def _measure(
    config: EvalConfig, targets: list[Target], console: ConsoleSink
) -> Iterator[tuple[Target, dict[str, Any]]]:
    """Checkpoint and record, one after the other."""
    if isinstance(config.benchmark, HarnessConfig):
        harness = Harness(config, console)
        for target in targets:
            for record in harness.measure(target):
                yield target, record
        return
    others = [] if config.against is None else find_targets(config, config.against, "against")
    if len(others) > 1:
        raise DilError(
            f"{config.against} holds {len(others)} runs, and one is compared with", f"against={config.against}",
            f"against={others[0].path}",
        )  # fmt: skip
    measure = MEASURES[type(config.benchmark)](config, console)
    for target in targets:
        yield target, measure.evaluate(target, *others)


def _stage(config: EvalConfig, folder: str) -> int:
    models = []
    if config.checkpoint is not None:
        found = find_targets(config, config.checkpoint)
        models = [t.path for t in found if not t.path.startswith("bundled:") and not Path(t.path).expanduser().exists()]
    print(staging(config.benchmark, folder, models))
    return 0
