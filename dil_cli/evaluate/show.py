"""Records of `dil eval` for a person at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from dil_cli.report.intervals import FLIPS

COLUMNS = {
    "logps/chosen": "chosen", "logps/rejected": "rejected", "prefers_chosen": "prefers chosen",
    "delta/chosen": "chosen change", "delta/rejected": "rejected change", "delta/margin": "margin change",
    "accuracy_mean": "margin grew", "chosen_cost": "chosen_cost",
    "win_rate": "win rate", "tie_rate": "ties", "unparsed": "no verdict", "length_policy": "tokens",
    "length_opponent": "opponent's",
}  # fmt: skip
WITH_INTERVAL = ("delta/chosen", "delta/margin", "accuracy_mean", "win_rate")
"""Columns that show theirs; the record has all."""

SHARES = ("prefers_chosen", "accuracy_mean", "win_rate", "tie_rate", "unparsed")

PARTIAL = 0.2
"""A judge this far from choosing each place half of the time is said to be partial to one."""


def show(records: Sequence[Mapping[str, Any]], over_seeds: Sequence[Mapping[str, Any]] = ()) -> None:
    """A row a checkpoint, a column a metric; by length and against another where there is one checkpoint.

    Args:
        records: of the checkpoints.
        over_seeds: means of them (`means.py`), which get rows below.
    """
    from rich.console import Console

    console = Console(highlight=False, width=None if sys.stdout.isatty() else 200)
    console.print()
    console.print(_table([(record["checkpoint"]["name"], record) for record in [*records, *over_seeds]], "checkpoint"))
    if over_seeds:
        console.print("Means over seeds: brackets are 95 % t intervals over the seeds.", soft_wrap=True)
    if "judge" in records[0]:
        for line in _of_winrate(records):
            console.print(line, soft_wrap=True, markup=False)
        return
    if len(records) == 1 and len(records[0]["by_length"]) > 1:
        rows = [(f"{b['tokens'][0]} to {b['tokens'][1]}", b) for b in records[0]["by_length"]]
        console.print()
        console.print(_table(rows, "tokens of chosen"))
    for record in records:
        for name, gap in record.get("against", {"gaps": {}})["gaps"].items():
            ends = "" if gap["interval"] is None else f" [{gap['interval'][0]:+.3f}, {gap['interval'][1]:+.3f}]"
            both = f"{record['checkpoint']['name']} less {record['against']['name']}"
            console.print(f"{both}, {name}: {gap['mean']:+.3f}{ends} nats per token, {_p(gap['p'])}", soft_wrap=True)
    console.print(
        "Nats per token on held-out pairs; changes since the starting model. Brackets: 95 % bootstrap over the pairs.",
        soft_wrap=True,
    )


def _of_winrate(records: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Who played and who judged, and what would make the rates worth little."""
    judge = records[0]["judge"]
    by = f"{judge['name']} {judge.get('model', judge.get('path'))}"
    yield f"Against {records[0]['opponent']['name']}, judged by {by}. Brackets: 95 % (Wilson) over the prompts."
    for record in records:
        name, more = record["checkpoint"]["name"], record["more"]
        if more["unparsed"]:
            first = f", the first: {more['first_unread']!r}" if more.get("first_unread") else ""
            yield f"{name}: {more['unparsed']} of {record['pairs']} prompts have no verdict and do not count{first}"
        if judge.get("weights_sha256") == record["checkpoint"]["weights_sha256"]:
            yield f"{name}: the judge has the weights of this very checkpoint, and will like its own responses"
        if more["cut_replies"]:
            yield f"{name}: {more['cut_replies']} replies of the judge were cut at judge.max_tokens"
        first = more.get("first_shown_wins", 0.5)
        if abs(first - 0.5) > PARTIAL:
            yield f"{name}: the judge names the response shown first in {100 * first:.0f}% of its choices"
        if more["cut_policy"] > 0:
            yield f"{name}: {100 * more['cut_policy']:.0f}% of the responses were cut at benchmark.max_new_tokens"


def _p(value: float) -> str:
    """Of flips that all fell short of what was seen no more is known than their number."""
    return f"p <= {1 / FLIPS:g}" if value <= 1 / FLIPS else f"p {value:.2g}"


def _table(rows: Sequence[tuple[str, Mapping[str, Any]]], head: str) -> Any:
    from rich import box
    from rich.table import Table

    there = [name for name in COLUMNS if any(name in row["metrics"] for _, row in rows)]
    table = Table(box=box.ASCII2, show_edge=False, pad_edge=False)
    losses = any((row.get("checkpoint") or {}).get("loss") for _, row in rows)
    table.add_column(head)
    if losses:
        table.add_column("loss")
    table.add_column(
        "prompts" if any("length_policy" in row["metrics"] for _, row in rows) else "pairs", justify="right"
    )
    for name in there:
        table.add_column(COLUMNS[name], justify="right")
    for label, row in rows:
        cells = [_cell(name, row["metrics"].get(name), row.get("intervals", {}).get(name)) for name in there]
        loss = [str(row["checkpoint"]["loss"] or "-")] if losses else []
        table.add_row(label, *loss, str(row["pairs"]), *cells)
    return table


def _cell(name: str, value: float | None, interval: Sequence[float] | None) -> str:
    if value is None:
        return "-"
    ends = (
        ""
        if interval is None or name not in WITH_INTERVAL
        else f" [{_number(name, interval[0])}, {_number(name, interval[1])}]"
    )
    return f"{_number(name, value)}{ends}"


def _number(name: str, value: float) -> str:
    if name in SHARES:
        return f"{100 * value:.0f}%"
    if name.startswith("length_"):
        return f"{value:.0f}"
    return f"{value:+.3f}" if name.startswith("delta/") else f"{value:.2f}" if name == "chosen_cost" else f"{value:.3f}"
