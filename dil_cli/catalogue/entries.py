"""What a loss says of itself, read from its dataclass: nothing is written twice.

The docstring is made of paragraphs: `Title: formula.`, then the symbols, then `Gradient:`, `Ranges:`, `Neighbours:`
and `Source:`. Fields, defaults and class variables tell the rest.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import sys
from dataclasses import dataclass
from enum import Enum
from typing import Any, get_args, get_type_hints

from dil_cli.errors import DilError
from dil_cli.losses import LOSSES, PreferenceLoss, Reduction, loss_class

SECTIONS = ("Gradient", "Ranges", "Neighbours", "Source")
FAMILIES = ("DIL", "Bregman", "DPO", "Margin", "Absolute", "Reference-free", "SFT", "Sums")
"""The order of families; others, a user's own among them, come after."""


@dataclass(frozen=True)
class Setting:
    """One field: what it takes and its default, as on the command line; `about` is what its Enum says of it."""

    name: str
    takes: str
    default: str
    about: str


@dataclass(frozen=True)
class Entry:
    """A loss as the catalogue shows it.

    `symbols` are the paragraphs between formula and sections; one that is indented is an example and keeps its lines.
    `reference` and `couples_batch` are yes, no or "as its terms"; `reduction` is the default one, with "only" where
    no other is accepted.
    """

    name: str
    family: str
    family_text: tuple[str, ...]
    title: str
    formula: str
    symbols: tuple[str, ...]
    sections: dict[str, str]
    settings: tuple[Setting, ...]
    reference: str
    reduction: str
    couples_batch: str
    at_reference: str

    @property
    def source(self) -> str:
        """The source in a few words: its arXiv number, or author and year."""
        text = self.sections.get("Source", "")
        number = re.search(r"arXiv \d{4}\.\d{4,5}", text)
        year = re.search(r"\b(19|20)\d\d\b", text)
        author = re.split(r"[,;(]", text)[0].strip().rstrip(".")
        return number.group() if number else f"{author}, {year.group()}" if year else author


def entry_of(name: str) -> Entry:
    """The catalogue's entry for a loss.

    Raises:
        DilError: when no loss has that name.
    """
    loss = loss_class(name, place="dil losses {}")
    doc = inspect.cleandoc(loss.__doc__ or "")
    if doc.startswith(f"{loss.__name__}("):  # what a dataclass writes where its author wrote nothing
        doc = ""
    first, *paragraphs = re.split(r"\n\s*\n", doc)
    family, *family_text = family_of(loss)
    title, _, formula = _joined(first).rstrip(".").partition(": ")
    sections = {}
    symbols = []
    for paragraph in paragraphs:
        head, colon, body = paragraph.partition(":")
        if colon and head in SECTIONS:
            sections[head] = _joined(body)
        else:
            symbols.append(_kept(paragraph))
    return Entry(
        name=name,
        family=family,
        family_text=tuple(family_text),
        title=title or name,
        formula=formula,
        symbols=tuple(symbols),
        sections=sections,
        settings=settings_of(loss),
        reference=_flag(loss, "needs_reference"),
        reduction=_reduction(loss),
        couples_batch=_flag(loss, "couples_batch"),
        at_reference=_joined(loss.at_reference.__doc__ or "").rstrip(".").removeprefix("None: "),
    )


def entries() -> list[Entry]:
    """All losses, family by family."""
    known = {family: i for i, family in enumerate(FAMILIES)}
    found = [entry_of(name) for name in LOSSES]
    return sorted(found, key=lambda entry: (known.get(entry.family.partition(",")[0], len(known)), entry.family))


def family_of(loss: type[PreferenceLoss]) -> tuple[str, ...]:
    """The family a loss belongs to and what its members share: the docstring of its file.

    The name is the first line up to a colon or full stop; the rest of it and the other paragraphs follow.
    """
    doc = inspect.cleandoc(getattr(sys.modules.get(loss.__module__), "__doc__", None) or "Your own")
    first, *paragraphs = re.split(r"\n\s*\n", doc)
    name, _, rest = _joined(first).rstrip(".").partition(": ")
    shared = [f"{rest[0].upper()}{rest[1:]}." if rest else "", *map(_kept, paragraphs)]
    return (name, *(paragraph for paragraph in shared if paragraph))


def settings_of(loss: type[PreferenceLoss]) -> tuple[Setting, ...]:
    """The fields of a loss, with what they take and their defaults."""
    hints = get_type_hints(loss)
    found = []
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        default = field.default
        if field.default_factory is not dataclasses.MISSING:
            default = field.default_factory()
        hint = hints[field.name]
        only = _reduction(loss).partition(" ")
        takes = only[0] if field.name == "reduction" and only[2] == "only" else _takes(hint)
        about = _joined(hint.__doc__ or "") if isinstance(hint, type) and issubclass(hint, Enum) else ""
        found.append(Setting(field.name, takes, plain_value(default), about))
    return tuple(found)


def plain_value(value: Any) -> str:
    """A value as a config writes it."""
    if value is dataclasses.MISSING:
        return "must be set"
    if isinstance(value, Enum):
        return str(value.value)
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def _takes(hint: Any) -> str:
    """What a field of this type takes, as `number|null` or the values of an Enum."""
    words = {float: "number", int: "whole number", bool: "true|false", str: "text", type(None): "null", Any: "name"}

    def word(kind: Any) -> str:
        if isinstance(kind, type) and issubclass(kind, Enum):
            return "|".join(member.value for member in kind)
        return words.get(kind, "name: value")

    kinds = get_args(hint) if type(None) in get_args(hint) else (hint,)
    return "|".join(word(kind) for kind in kinds)


def _flag(loss: type[PreferenceLoss], name: str) -> str:
    value = getattr(loss, name)
    return "as its terms" if isinstance(value, property) else "yes" if value else "no"


def _reduction(loss: type[PreferenceLoss]) -> str:
    default = {field.name: field.default for field in dataclasses.fields(loss)}.get("reduction")  # type: ignore[arg-type]
    if not isinstance(default, Reduction):
        return "as its terms"
    try:
        for reduction in Reduction:
            loss(reduction=reduction)  # type: ignore[call-arg]
    except DilError:
        return f"{default.value} only"
    return default.value


def _kept(paragraph: str) -> str:
    """A paragraph on one line; an indented one, which is code, as it is."""
    return paragraph if paragraph.startswith(" ") else _joined(paragraph)


def _joined(text: str) -> str:
    return " ".join(text.split())
