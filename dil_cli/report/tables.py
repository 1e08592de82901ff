"""Tables as data, in Markdown, CSV and LaTeX; the final table and the differences from the baseline.

```
runs, damaged = find_runs([Path("outputs/sweeps/noise-1a2b3c4d")])
records, more_damaged = read_records(runs)
experiment = arrange(records, sweeps=[read_sweep(folder)])
print(markdown(final_table(experiment)))
```
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from dil_cli.report.estimates import METRICS, Estimate, Metric, best, difference, estimate
from dil_cli.report.experiment import Experiment, Group, lookup, short, text

MINUS = "\N{MINUS SIGN}"
Number = str | int | float | bool | None


@dataclass(frozen=True)
class Column:
    """A column; in CSV it becomes one for each of `parts`, appended to the key."""

    key: str
    label: str
    numeric: bool = True
    parts: tuple[str, ...] = ("",)


@dataclass(frozen=True)
class Cell:
    """A cell as it is read and, for CSV, as it is computed with: a value for each part of its column."""

    text: str
    data: tuple[Number, ...] = ()
    bold: bool = False


@dataclass(frozen=True)
class Table:
    """A table; `name` is its file's, `note` what one must know to read it."""

    name: str
    title: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    note: str = ""


WITH_INTERVAL = ("", "_low", "_high", "_n", "_over")


def final_table(experiment: Experiment) -> Table:
    """The held-out metrics at the end of training: a row a group, mean and 95 % interval, the best in bold."""
    winners = {metric.key: best(experiment.groups, metric) for metric in METRICS}
    told = "loss.reduction" in experiment.keys  # by a column of its own
    columns = [
        *_key_columns(experiment),
        *([] if told else [Column("reduction", "loss.reduction", numeric=False)]),
        Column("seeds", "seeds"),
        *(Column(metric.key, metric.label, parts=WITH_INTERVAL) for metric in METRICS),
    ]
    rows = []
    for group in experiment.groups:
        reduction = [] if told else [Cell(group.reduction)]
        cells = [*_key_cells(experiment, group), *reduction, _count(len(group.records))]
        for metric in METRICS:
            cells.append(estimate_cell(estimate(group, metric), metric, bold=winners[metric.key] is group))
        rows.append(tuple(cells))
    return Table("final", "Held-out metrics after training", tuple(columns), tuple(rows), _final_note(experiment))


def difference_table(experiment: Experiment) -> Table | None:
    """Each group less its baseline, paired by seed; None without a baseline."""
    rows = []
    for group in experiment.groups:
        other = experiment.partner(group)
        if other is None:
            continue
        gaps = [difference(group, other, metric) for metric in METRICS]
        cells = [Cell(group.label), Cell(other.label), Cell(f"{group.reduction}, {other.reduction}")]
        cells += [
            estimate_cell(gap, metric, bold=gap is not None and gap.sign() != 0, signed=True)
            for gap, metric in zip(gaps, METRICS, strict=True)
        ]
        rows.append(tuple(cells))
    if not rows:
        return None
    columns = (
        Column("group", "group", numeric=False),
        Column("baseline", "less", numeric=False),
        Column("reduction", "loss.reduction", numeric=False),
        *(Column(metric.key, metric.label, parts=WITH_INTERVAL) for metric in METRICS),
    )
    note = "Paired by seed: each seed's value less the baseline's of the same seed. Bold: the interval excludes 0."
    return Table("differences", "Paired differences from the baseline", columns, tuple(rows), note)


def estimate_cell(found: Estimate | None, metric: Metric, bold: bool = False, signed: bool = False) -> Cell:
    """`0.129 [0.118, 0.140]`; a dash where there is no number."""
    if found is None:
        return Cell("-", (None,) * len(WITH_INTERVAL))
    interval = found.interval
    shown = number(interval.mean, metric, signed)
    if interval.low is not None and interval.high is not None:
        ends = (number(end, metric, signed).partition(" ")[0] for end in (interval.low, interval.high))
        shown += f" [{', '.join(ends)}]"
    return Cell(shown, (interval.mean, interval.low, interval.high, interval.n, found.over), bold)


def number(value: float, metric: Metric, signed: bool = False) -> str:
    """A metric's value; changes and differences carry their sign, a difference of shares is in points of percent."""
    sign = "+" if signed or metric.key.startswith("delta/") else ""
    unit = "pp" if signed else "%"
    shown = f"{100 * value:{sign}.1f} {unit}" if metric.percent else f"{value:{sign}.{metric.digits}f}"
    return shown.replace("-", MINUS)


def markdown(table: Table) -> str:
    """A GitHub table under its title, with the note below."""
    heads = [_md(column.label) for column in table.columns]
    rule = ["---:" if column.numeric else "---" for column in table.columns]
    lines = [f"## {table.title}", "", _md_row(heads), _md_row(rule)]
    for row in table.rows:
        lines.append(_md_row([f"**{_md(cell.text)}**" if cell.bold else _md(cell.text) for cell in row]))
    lines += ["", *([_md(table.note), ""] if table.note else [])]
    return "\n".join(lines)


def csv_text(table: Table) -> str:
    """Full precision, a column each for mean, ends of the interval, what it is over and of how many."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([column.key + part for column in table.columns for part in column.parts])
    for row in table.rows:
        values: list[Number] = []
        for cell in row:
            values.extend(cell.data or (cell.text,))
        writer.writerow(["" if value is None else value for value in values])
    return out.getvalue()


def latex(table: Table) -> str:
    """A booktabs table."""
    align = "".join("r" if column.numeric else "l" for column in table.columns)
    lines = ["% needs the package booktabs", "\\begin{table}", "\\centering", f"\\caption{{{_tex(table.title)}. "]
    lines[-1] += f"{_tex(table.note)}}}"
    lines += [f"\\begin{{tabular}}{{{align}}}", "\\toprule"]
    lines.append(" & ".join(_tex(column.label) for column in table.columns) + " \\\\")
    lines.append("\\midrule")
    for row in table.rows:
        cells = [f"\\textbf{{{_tex(cell.text)}}}" if cell.bold else _tex(cell.text) for cell in row]
        lines.append(" & ".join(cells) + " \\\\")
    return "\n".join([*lines, "\\bottomrule", "\\end{tabular}", "\\end{table}", ""])


def plain(table: Table) -> str:
    """Aligned text for a terminal."""
    texts = [[column.label for column in table.columns], *([cell.text for cell in row] for row in table.rows)]
    widths = [max(len(row[i]) for row in texts) for i in range(len(table.columns))]
    lines = [table.title]
    for row in texts:
        cells = (
            value.rjust(width) if column.numeric else value.ljust(width)
            for value, width, column in zip(row, widths, table.columns, strict=True)
        )
        lines.append(f"  {'  '.join(cells)}".rstrip())
    return "\n".join([*lines, ""])


FORMATS: dict[str, Callable[[Table], str]] = {"md": markdown, "csv": csv_text, "tex": latex}


def _key_columns(experiment: Experiment) -> list[Column]:
    """`loss` always, then the other keys."""
    others = [key for key in experiment.keys if key != "loss.name"]
    return [Column("loss", "loss", numeric=False), *(Column(key, short(key), numeric=False) for key in others)]


def _key_cells(experiment: Experiment, group: Group) -> list[Cell]:
    others = [key for key in experiment.keys if key != "loss.name"]
    values = [lookup(group.records[0], key) for key in others]
    return [Cell(group.loss), *(Cell(text(value), (value,)) for value in values)]


def _final_note(experiment: Experiment) -> str:
    sizes = {len(group.records) for group in experiment.groups}
    pairs = " or ".join(map(str, sorted({len(group.records[0].pairs.row) for group in experiment.groups})))
    over_pairs = (
        f"a 95 % bootstrap interval over the {pairs} probe pairs of one seed, which says nothing of other seeds"
    )
    over_seeds = "a 95 % interval, Student's t over seeds"
    if sizes == {1}:
        kind = over_pairs
    elif 1 in sizes:
        kind = f"{over_seeds}; in rows with one seed {over_pairs}"
    else:
        kind = over_seeds
    return (
        f"Brackets: {kind}. Changes are nats per token since step 0 on held-out pairs. Bold: better than every other "
        "row, each paired difference excluding 0. accuracy: share of pairs whose margin grew, per token and of whole "
        "responses."
    )


def _count(value: int) -> Cell:
    return Cell(str(value), (value,))


def _md_row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _md(value: str) -> str:
    return value.replace("\\", "\\\\").replace("|", "\\|").replace("*", "\\*").replace("\n", " ")


def _tex(value: str) -> str:
    marks = {"\\": "\\textbackslash{}", "~": "\\textasciitilde{}", "^": "\\textasciicircum{}", MINUS: "$-$"}
    marks |= {mark: f"\\{mark}" for mark in "&%$#_{}"}
    return "".join(marks.get(mark, mark) for mark in value.replace("\n", " "))
