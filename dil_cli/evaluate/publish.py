"""What was measured of a run's checkpoint, in the summary of its W&B run."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from dil_cli.config.identity import from_plain
from dil_cli.config.schema import TrackerConfig, WandbMode
from dil_cli.evaluate.target import Target


def publish(target: Target, records: Sequence[Mapping[str, Any]], say: Callable[[str], None]) -> None:
    """Put the records' metrics in the summary as `eval/<benchmark>/<metric>`, where the run was tracked.

    Those of a checkpoint that is not the run's last say its step: `eval/step-000050/<benchmark>/<metric>`.
    """
    if target.run is None or not records:
        return
    tracker = from_plain(TrackerConfig, target.run.config["tracker"])
    if tracker.mode is WandbMode.disabled:
        return
    from dil_cli.tracking.wandb_sink import add_to_summary

    step = Path(target.path).name
    last = Path(str((target.run.result or {}).get("checkpoint", ""))).name
    prefix = "eval" if step == last else f"eval/{step}"
    values = {
        f"{prefix}/{record['benchmark']}/{name}{ending}": value
        for record in records
        for ending, part in (("", "metrics"), ("_stderr", "stderr"))
        for name, value in record.get(part, {}).items()
    }
    add_to_summary(tracker, target.run.folder, target.run.name, target.run.config, values, say)
