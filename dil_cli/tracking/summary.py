"""What the console says about a run, as plain ASCII text: header, probe line, final table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking.sink import Row, RunInfo

if TYPE_CHECKING:
    from rich.table import Table

MUCH_WAITING = 0.05
"""Part of a step's time without data from which on the console says so."""


@dataclass
class Journey:
    """What a console must remember of a run to sum it up."""

    run: RunInfo
    first: Row = field(default_factory=dict)
    last: Row = field(default_factory=dict)
    alarms: list[Alarm] = field(default_factory=list)

    def went_on(self, rows: Sequence[dict[str, Any]]) -> None:
        """Keep what an earlier process of this run has recorded."""
        for row in rows:
            if "alarm" in row:
                self.alarms.append(Alarm.of_row(row))
            elif "probe/loss" in row:
                self.probed(row)

    def probed(self, row: Row) -> None:
        """Keep a measurement of the probe set."""
        self.first = self.first or row
        self.last = row

    def measured(self, row: Row) -> str:
        """A measurement in one line."""
        label = "" if row["step"] == 0 else "since step 0: "
        return f"probe {row['step']}/{self.run.total_steps}  {label}{since_start(row)}"

    def header(self) -> list[str]:
        """The run in a few lines."""
        run = self.run
        return [
            f"{run.name}: {run.loss} ({run.reduction} of log-probs), model {run.model}, data {run.data}",
            f"{run.total_steps} steps over {run.n_train} pairs, measured on {run.n_probe} held-out pairs",
            f"folder {run.folder}",
        ]

    def ending(self) -> list[str]:
        """The lines under the final table."""
        lines = [alarm_line(alarm) for alarm in self.alarms] or ["no alarm"]
        return [*lines, f"folder {self.run.folder}"]

    def table(self) -> Table:
        """Start, end and change of the held-out likelihoods."""
        from rich import box
        from rich.table import Table

        table = Table(box=box.ASCII2, show_edge=False, title=None, pad_edge=False)
        table.add_column("held-out pairs", no_wrap=True)
        for name in ("start", "end", "change"):
            table.add_column(name, justify="right", no_wrap=True)
        for label, start, end in (
            ("chosen, nats per token", _get(self.first, "logps/chosen"), _get(self.last, "logps/chosen")),
            ("rejected", _get(self.first, "logps/rejected"), _get(self.last, "logps/rejected")),
            ("chosen - rejected", _likelihood_margin(self.first), _likelihood_margin(self.last)),
        ):
            if start is not None and end is not None:
                table.add_row(label, f"{start:.3f}", f"{end:.3f}", f"{end - start:+.3f}")
        accuracy, cost = _get(self.last, "accuracy"), _get(self.last, "chosen_cost")
        if accuracy is not None:
            table.add_row("pairs whose margin grew", "", f"{accuracy:.0%}", "")
        if _get(self.last, "logps/rejected") is not None:
            table.add_row("chosen_cost", "", "-" if cost is None else f"{cost:.2f}", "")
        return table


def alarm_line(alarm: Alarm) -> str:
    """An alarm in one line."""
    return f"ALARM at step {alarm.step}: {alarm.message}"


def since_start(row: Row) -> str:
    """A measurement in one line: what changed since step 0; at step 0, where it starts."""
    if row.get("step") == 0:
        sides = ("chosen", "rejected")
        values = [f"{side} {_get(row, f'logps/{side}'):.3f}" for side in sides if _has(row, f"logps/{side}")]
        return "  ".join([*values, "nats per token"])
    names = ("chosen", "rejected", "margin")
    values = [f"{name} {_get(row, f'delta/{name}'):+.3f}" for name in names if _has(row, f"delta/{name}")]
    cost = _get(row, "chosen_cost")
    return "  ".join([*values, *([] if cost is None else [f"cost {cost:.2f}"])])


def step_numbers(row: Row) -> str:
    """Loss and throughput of a step, as far as its row has them; what waits for data is said where it matters."""
    parts = (
        ("loss", "loss {:.4f}"), ("pairs_per_s", "{:.3g} pairs/s"), ("tokens_per_s", "{:.0f} tokens/s"),
        ("mfu", "{:.0%} of peak"), ("communication", "{:.0%} communication"),
    )  # fmt: skip
    waits = (("data_wait", "{:.0%} waiting for data"),) if (row.get("data_wait") or 0) >= MUCH_WAITING else ()
    return "  ".join(text.format(row[key]) for key, text in (*parts, *waits) if row.get(key) is not None)


def clock(seconds: float) -> str:
    """Seconds as 0:07, 12:34 or 1:02:03."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _get(row: Row, name: str) -> Any:
    return row.get(f"probe/{name}")


def _has(row: Mapping[str, Any], name: str) -> bool:
    return row.get(f"probe/{name}") is not None


def _likelihood_margin(row: Row) -> float | None:
    """Chosen minus rejected likelihood; its change is `delta/margin` whether or not there is a reference."""
    chosen, rejected = _get(row, "logps/chosen"), _get(row, "logps/rejected")
    return None if chosen is None or rejected is None else chosen - rejected
