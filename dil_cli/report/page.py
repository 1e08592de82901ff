"""`index.html`: one file that needs nothing else, light or dark as the reader's system is."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape
from importlib.resources import files

from dil_cli.report.answer import Answer
from dil_cli.report.figure import Figure, swatch
from dil_cli.report.tables import Cell, Column, Table

LONG = 40
"""Characters from which on a column of words is given room to wrap in."""


@dataclass(frozen=True, eq=False)
class Section:
    """A heading, paragraphs, then tables and figures in their order."""

    ident: str
    title: str
    paragraphs: tuple[str, ...] = ()
    parts: tuple[Table | Figure, ...] = ()


def page(title: str, subtitle: str, answered: Answer, sections: Sequence[Section]) -> str:
    """The whole page."""
    css = files("dil_cli.report").joinpath("page.css").read_text(encoding="utf-8")
    contents = [("answer", "Question and answer"), *((section.ident, section.title) for section in sections)]
    links = "".join(f'<li><a href="#{ident}">{escape(name)}</a></li>' for ident, name in contents)
    body = [
        f"<header><h1>{escape(title)}</h1><p class='muted'>{escape(subtitle)}</p></header>",
        f'<nav aria-label="Contents"><ol>{links}</ol></nav>',
        "<main>",
        _answer(answered),
        *(_section(section) for section in sections),
        "</main>",
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>\n{css}</style>\n</head>\n<body>\n"
        + "\n".join(body)
        + "\n</body>\n</html>\n"
    )


def _answer(answered: Answer) -> str:
    findings = "".join(f"<li>{escape(sentence)}</li>" for sentence in answered.findings)
    limits = "".join(f"<li>{escape(sentence)}</li>" for sentence in answered.limits)
    return (
        '<section aria-labelledby="answer"><h2 id="answer">Question and answer</h2>'
        f'<p class="question">{escape(answered.question)}</p><ul>{findings}</ul>'
        f"<h3>What this does not show</h3><ul>{limits}</ul></section>"
    )


def _section(section: Section) -> str:
    parts = [_table(part) if isinstance(part, Table) else _figure(part) for part in section.parts]
    paragraphs = "".join(f"<p>{escape(text)}</p>" for text in section.paragraphs)
    return (
        f'<section aria-labelledby="{section.ident}"><h2 id="{section.ident}">{escape(section.title)}</h2>'
        f"{paragraphs}{''.join(parts)}</section>"
    )


def _table(table: Table) -> str:
    heads = "".join(_head(column, table, i) for i, column in enumerate(table.columns))
    rows = "".join(f"<tr>{_row(table, row)}</tr>" for row in table.rows)
    ident = f"table-{table.name}"
    note = f'<p class="note">{escape(table.note)}</p>' if table.note else ""
    return (
        f'<h3 id="{ident}">{escape(table.title)}</h3>'
        # A box that scrolls must be reachable by keyboard.
        f'<div class="scroll" tabindex="0" role="region" aria-labelledby="{ident}"><table>'
        f"<thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table></div>{note}"
    )


def _row(table: Table, row: Sequence[Cell]) -> Iterable[str]:
    cells = []
    for i, (cell, column) in enumerate(zip(row, table.columns, strict=True)):
        text = f"<strong>{escape(cell.text)}</strong>" if cell.bold else escape(cell.text)
        cells.append(f'<th scope="row">{text}</th>' if i == 0 else f'<td class="{_kind(column, table, i)}">{text}</td>')
    return "".join(cells)


def _head(column: Column, table: Table, at: int) -> str:
    return f'<th scope="col" class="{_kind(column, table, at)}">{escape(column.label)}</th>'


def _kind(column: Column, table: Table, at: int) -> str:
    if column.numeric:
        return "number"
    return "long" if any(len(row[at].text) > LONG for row in table.rows) else "words"


def _figure(figure: Figure) -> str:
    panels = "".join(figure.svg(i) for i in range(len(figure.panels)))
    legend = "".join(f"<li>{swatch(line)}{escape(name)}</li>" for name, line in figure.legend.items())
    return (
        f'<figure aria-labelledby="figure-{figure.name}"><h3 id="figure-{figure.name}">{escape(figure.title)}</h3>'
        + (f'<ul class="legend">{legend}</ul>' if legend else "")
        + f'<div class="panels">{panels}</div><figcaption>{escape(figure.caption)}</figcaption></figure>'
    )
