"""The tables that several pages have: what was run and its cost, how the rates were chosen, how to rerun one cell."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from dil_cli.report import tables
from dil_cli.report.experiment import arrange
from dil_cli.report.intervals import Interval, paired_difference, t_interval
from dil_cli.report.record import Record
from dil_cli.report.tables import MINUS, Table
from results import rates
from results.chain import Chain


def rows(heads: Sequence[str], lines: Sequence[Sequence[str]], text: int = 1) -> str:
    """A Markdown table; the first columns are `text`, the others are numbers."""
    rule = [*["---"] * text, *["---:"] * (len(heads) - text)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads, rule, *lines))


def made(table: Table | None) -> str:
    """A table of the report without its heading."""
    assert table is not None
    return tables.markdown(table).split("\n", 2)[2].strip()


def final(records: Sequence[Record]) -> str:
    """The report's table of the last measurements."""
    return made(tables.final_table(arrange(records)))


def differences(records: Sequence[Record], baseline: str) -> str:
    """The report's paired differences from a baseline."""
    return made(tables.difference_table(arrange(records, baseline=baseline)))


def cost(chains: Sequence[Chain]) -> str:
    """How many runs the page is made of, and how long they took."""
    tried = {rate.record.run.hash: rate.record for chain in chains for rate in chain.rates()}
    there = {record.run.hash: record for chain in chains for record in chain.records()}
    hours = sum(float((record.run.result or {})["train_seconds"]) for record in [*tried.values(), *there.values()])
    chose = f", and {len(tried)} that chose the learning rates" if tried else ""
    return f"{len(there)} runs{chose}. Together {hours / 3600:.1f} hours of training and measuring, a thread each."


def rate_table(chains: Sequence[Chain]) -> str:
    """Validation: the accuracy of each rate, the chosen one in bold; with what it cost in chosen likelihood."""
    factors = sorted({rate.factor for chain in chains for rate in chain.rates()})
    lines = []
    for chain in chains:
        found = {rate.factor: rate for rate in chain.rates()}
        chosen = rates.best(list(found.values()))
        lines.append([chain.arm.label, *(_rate(found.get(factor), chosen) for factor in factors)])
    error = max(rate.standard_error for chain in chains for rate in chain.rates())
    note = (
        "Validation: accuracy under the run's own reduction, change of the chosen responses, margin gained, nats per "
        "token. Bold: the rate that was taken. One seed; the standard error of an accuracy is at most "
        f"{100 * error:.1f} points."
    )
    return rows(["", *(f"lr x {factor:g}" for factor in factors)], lines) + f"\n\n{note}"


def _rate(rate: rates.Rate | None, chosen: rates.Rate) -> str:
    if rate is None:
        return "not tried"
    chosen_change, margin = signed(rate.end("delta/chosen")), signed(rate.end("delta/margin"))
    shown = f"{100 * rate.end('accuracy'):.1f} %, {chosen_change}, {margin}"
    return f"**{shown}**" if rate is chosen else shown


def cells(chains: Sequence[Chain]) -> str:
    """A row a setting: the command of its first cell, and the hashes of all its runs, in the order of the cells."""
    lines: list[list[str]] = []
    for chain in chains:
        for grid in chain.grids():
            by_setting: dict[tuple[str, ...], list[str]] = {}
            first: dict[tuple[str, ...], tuple[str, ...]] = {}
            for cell, job in zip(grid.cells(), grid.jobs(), strict=True):
                setting = tuple(word for word in cell if not word.startswith("seed="))
                first.setdefault(setting, cell)
                by_setting.setdefault(setting, []).append(job.hash)
            for setting, hashes in by_setting.items():
                name = " ".join([chain.arm.label, *setting])
                line = [name, f"`{grid.cell(first[setting])}`", " ".join(f"`{h}`" for h in hashes)]
                if line not in lines:  # an arm whose own rate is the one of all stands in two chains
                    lines.append(line)
    return rows(["", "one cell; the others by `seed=`", "runs, by seed"], lines, text=3)


def validation_cells(chains: Sequence[Chain]) -> str:
    """The same of the runs that chose the rates."""
    lines = []
    for chain in chains:
        hashes = " ".join(f"`{rate.record.run.hash}`" for rate in chain.rates())
        grid = rates.grid(chain.arm, chain.words)
        lines.append([chain.arm.label, f"`{grid.cell([chain.rates()[0].word, 'seed=42'])}`", hashes])
    return rows(["", "one cell; the others by `optim.lr_factor=`", "runs, by rate"], lines, text=3)


def interval(values: Sequence[float], digits: int = 3, sign: bool = True) -> str:
    """Mean and 95 % t interval over the seeds; in how many there was a number where it is not in all of `of`."""
    return shown(t_interval(list(values)), digits, sign) if values else "-"


def gap(a: dict[int, float], b: dict[int, float], digits: int = 3) -> str:
    """a less b, seed by seed; bold where the interval excludes 0."""
    found = paired_difference(a, b)
    if found is None:
        return "-"
    text = shown(found, digits, True)
    return f"**{text}**" if found.above_0 or found.below_0 else text


def shown(found: Interval, digits: int, sign: bool) -> str:
    """`-0.129 [-0.140, -0.118]`."""
    number: Callable[[float], str] = lambda value: f"{value:{'+' if sign else ''}.{digits}f}".replace("-", MINUS)  # noqa: E731
    ends = f" [{number(found.low)}, {number(found.high)}]" if found.low is not None and found.high is not None else ""
    return number(found.mean) + ends


def signed(value: float) -> str:
    """A change."""
    return f"{value:+.3f}".replace("-", MINUS)
