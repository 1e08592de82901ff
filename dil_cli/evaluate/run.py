"""`dil eval`: every checkpoint that is meant, one after the other, a record beside each, a table at the end."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from dil_cli.artifacts.manifest import environment
from dil_cli.config.identity import plain
from dil_cli.config.judging import WinrateConfig
from dil_cli.config.schema import EvalConfig, LikelihoodConfig
from dil_cli.errors import DilError
from dil_cli.evaluate.likelihood import Likelihood
from dil_cli.evaluate.show import show
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

    Raises:
        DilError: when a checkpoint cannot be found or read, or has drifted since its run.
    """
    targets = find_targets(config, config.checkpoint)
    others = [] if config.against is None else find_targets(config, config.against)
    if len(others) > 1:
        raise DilError(
            f"{config.against} holds {len(others)} runs, and one is compared with", f"against={config.against}",
            f"against={others[0].path}",
        )  # fmt: skip
    console = make_console()
    records = []
    try:
        measure = MEASURES[type(config.benchmark)](config, console)
        for target in targets:
            record = measure.evaluate(target, *others)
            record |= {"config": plain(config), "environment": environment()}
            path = target.folder / "eval" / f"{record['benchmark']}.json"
            write_json(path, record)
            console.note(f"record {path}")
            records.append(record)
    finally:
        console.close()
    show(records)
    return 0
