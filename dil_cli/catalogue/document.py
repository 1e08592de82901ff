"""docs/losses.md, made from the dataclasses: `dil losses --markdown > docs/losses.md`."""

from __future__ import annotations

from itertools import groupby

from dil_cli.catalogue.entries import Entry, entries
from dil_cli.catalogue.text import SYMBOLS
from dil_cli.config.presets import presets_of

HEAD = f"""# Losses

Made from the dataclasses in `dil_cli/losses/` by `dil losses --markdown`; change it there.

{SYMBOLS}
"Reduction" is the default one: log-probs per token (mean) or per response (sum).

`dil losses` prints the table, `dil losses NAME` one entry. A loss of your own: [custom_loss.md](custom_loss.md).

![How hard losses pull the chosen and push the rejected response, against their log-ratios](images/losses.png)

*`dil losses --plot lsif,ukl,bce,dpo,simpo,slic,sft`: which losses let go of the rejected response, and which
push it for as long as they pull the chosen one.*
"""


def markdown() -> str:
    """The whole document."""
    found = entries()
    parts = [HEAD, _table(found)]
    for family, members in groupby(found, key=lambda entry: entry.family):
        group = list(members)
        parts.append(f"## {family}\n")
        parts += [_paragraph(paragraph) for paragraph in group[0].family_text]
        parts += [_section(entry) for entry in group]
    return "\n".join(parts)


def _table(found: list[Entry]) -> str:
    lines = ["| Loss | L | Reference | Reduction | Source |", "|---|---|---|---|---|"]
    lines += [
        f"| [`{e.name}`](#{e.name}) | {_code(e.formula)} | {e.reference} | {e.reduction} | {e.source} |" for e in found
    ]
    return "\n".join(lines) + "\n"


def _section(entry: Entry) -> str:
    lines = [f"### {entry.name}", "", f"{entry.title}.", "", "```", f"L = {entry.formula}", "```", ""]
    lines += [_paragraph(paragraph) for paragraph in entry.symbols]
    for section in ("Gradient", "Ranges", "Neighbours"):
        if section in entry.sections:
            lines += [f"**{section}:** {_escaped(entry.sections[section])}", ""]
    if entry.settings:
        lines += ["| Setting | Default | Takes |", "|---|---|---|"]
        for setting in entry.settings:
            takes = setting.takes.replace("|", ", ")
            about = f" ({_escaped(setting.about).rstrip('.')})" if setting.about else ""
            lines.append(f"| `loss.{setting.name}` | `{setting.default}` | {takes}{about} |")
        lines.append("")
    for preset in presets_of(entry.name):
        values = ", ".join(f"`{key}={value}`" for key, value in preset.values.items())
        lines.append(f"- With `model={preset.model}`: {values} ({preset.source}).")
    if lines[-1]:
        lines.append("")
    facts = f"Needs a reference: {entry.reference}. Couples the batch: {entry.couples_batch}."
    lines += [f"{facts} At policy = reference: {_escaped(entry.at_reference)}.", ""]
    lines += [f"Source: {entry.sections['Source']}", ""] if "Source" in entry.sections else []
    return "\n".join(lines)


def _paragraph(text: str) -> str:
    """A paragraph and the empty line after it; an indented one is code."""
    if text.startswith(" "):
        return "\n".join(["```", *(line.removeprefix("    ") for line in text.splitlines()), "```", ""])
    return f"{_escaped(text)}\n"


def _code(formula: str) -> str:
    return f"`{formula}`".replace("|", "\\|") if formula else ""


def _escaped(text: str) -> str:
    """Text in which Markdown would take `_` and `*` for emphasis."""
    pieces = text.split("`")
    return "`".join(piece if i % 2 else piece.replace("_", "\\_").replace("*", "\\*") for i, piece in enumerate(pieces))
