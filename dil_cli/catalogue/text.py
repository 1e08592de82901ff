"""The catalogue on a terminal: plain text of 118 columns."""

from __future__ import annotations

import textwrap
from itertools import groupby

from dil_cli.catalogue.entries import Entry, entries, entry_of
from dil_cli.config.presets import presets_of

WIDTH = 118
COUPLED = {"yes": "yes, its statistic is of the whole optimiser batch"}
NAME, FORMULA = 15, 61
"""Columns of the list; a name that is longer than the first takes its room from the second."""
SYMBOLS = (
    "s = log pi/pi_ref and p = log pi of a response, w the chosen and l the rejected one; r = e^s in DIL and Bregman, "
    "r = beta s elsewhere; softplus(x) = log(1 + e^x), sigma its slope."
)


def listing() -> str:
    """Every loss on a line or two, family by family."""
    found = entries()
    width = max(NAME, *(len(entry.name) + 3 for entry in found))
    room = max(FORMULA + NAME - width, 20)

    def row(name: str, formula: str, reference: str = "", reduction: str = "", source: str = "") -> str:
        return f"{name:<{width}}{formula:<{room + 1}}{reference:<13}{reduction:<13}{source}".rstrip()

    lines = [f"{len(found)} losses. dil losses NAME explains one, dil losses --plot NAME,NAME draws them.", ""]
    lines += [*textwrap.wrap(SYMBOLS, WIDTH), "", row("name", "loss", "reference", "reduction", "source")]
    for family, members in groupby(found, key=lambda entry: entry.family):
        lines += ["", family]
        for entry in members:
            first, *more = textwrap.wrap(entry.formula or entry.title, room) or [""]
            lines.append(row(f"  {entry.name}", first, entry.reference, entry.reduction, entry.source))
            lines += [row("", line) for line in more]
    return "\n".join(lines) + "\n"


def explanation(name: str) -> str:
    """One loss in full.

    Raises:
        DilError: when no loss has that name.
    """
    entry = entry_of(name)
    lines = [f"{entry.name}: {entry.title}", f"family: {entry.family}", ""]
    if entry.formula:
        lines += [
            *(f"    L = {line}" if not i else f"        {line}" for i, line in enumerate(_wrap(entry.formula, 100))),
            "",
        ]
    for paragraph in entry.symbols:
        lines += [*(paragraph.splitlines() if paragraph.startswith(" ") else _wrap(paragraph)), ""]
    lines += _facts(entry)
    for section, text in entry.sections.items():
        lines += _hanging(section, text)
    lines += _presets(name)
    lines += ["", f"dil train loss={name}", ""]
    return "\n".join(lines)


def _facts(entry: Entry) -> list[str]:
    lines = []
    if entry.settings:
        lines.append("Settings")
        width = max(len(setting.name) for setting in entry.settings)
        for s in entry.settings:
            lines.append(f"  loss.{s.name.ljust(width)} = {s.default.ljust(10)} {s.takes}".rstrip())
            lines += _wrap(f"      {s.about}", indent="      ") if s.about else []
        lines.append("")
    facts = {
        "Needs a reference": entry.reference,
        "Reduction": entry.reduction,
        "Couples the batch": COUPLED.get(entry.couples_batch, entry.couples_batch),
        "At policy = reference": entry.at_reference or "not said",
    }
    lines += [f"{key}: {value}" for key, value in facts.items()]
    return [*lines, ""]


def _presets(name: str) -> list[str]:
    found = presets_of(name)
    if not found:
        return []
    lines = ["Presets, taken with the model unless preset=none:"]
    for preset in found:
        values = " ".join(f"{key}={value}" for key, value in preset.values.items())
        lines += _wrap(f"  model={preset.model}: {values} ({preset.source})", indent="    ")
    return lines


def _wrap(text: str, width: int = WIDTH, indent: str = "") -> list[str]:
    return textwrap.wrap(text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False)


def _hanging(head: str, text: str) -> list[str]:
    return _wrap(f"{head}: {text}", indent="  ")
