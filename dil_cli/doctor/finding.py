"""What an examination finds, and how it is kept free of secrets. Standard library only."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dil_cli.errors import DilError

SECRET_NAME = re.compile("KEY|TOKEN|SECRET|PASSW|CREDENTIAL", re.IGNORECASE)
"""Environment variables whose values are shown nowhere."""
SHORTEST_SECRET = 6
"""Shorter values, such as 1 and true, are no secrets, and would blot out half of the text."""
LOGIN_IN_URL = re.compile(r"//[^/@\s]+@")


class Status(str, Enum):
    """`error` would stop a run, `warning` makes it slower, less well recorded or untested."""

    ok = "ok"
    warning = "warning"
    error = "error"


@dataclass(frozen=True)
class Finding:
    """One line of the report: what was looked at, how it is, and what to do unless it is ok.

    `facts` are the same as numbers and names, for `--json`.
    """

    name: str
    status: Status
    text: str
    fix: str = ""
    facts: dict[str, Any] = field(default_factory=dict)


def ok(name: str, text: str, **facts: Any) -> Finding:
    """A finding that needs nothing done."""
    return Finding(name, Status.ok, text, facts=facts)


def warning(name: str, text: str, fix: str, **facts: Any) -> Finding:
    """A finding that a run works with."""
    return Finding(name, Status.warning, text, fix, facts)


def error(name: str, text: str, fix: str, **facts: Any) -> Finding:
    """A finding that stops a run."""
    return Finding(name, Status.error, text, fix, facts)


def guarded(name: str, findings: Iterable[Finding]) -> Iterator[Finding]:
    """The findings; what looking for them raises is one more, so that one broken part hides no other."""
    try:
        yield from findings
    except DilError as wrong:
        yield error(name, wrong.what, wrong.fix)
    except Exception as wrong:  # whatever a broken library raises
        first = next(iter(str(wrong).strip().splitlines()), "")
        yield error(name, f"{type(wrong).__name__}: {first}", "install the tested versions, see packages above")


def without_secrets(value: Any) -> Any:
    """`value`, of strings, numbers, lists and dicts, without what variables such as WANDB_API_KEY hold."""
    if isinstance(value, dict):
        return {key: without_secrets(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [without_secrets(item) for item in value]
    if not isinstance(value, str):
        return value
    for name, secret in os.environ.items():
        if SECRET_NAME.search(name) and len(secret) >= SHORTEST_SECRET:
            value = value.replace(secret, "***")
    return LOGIN_IN_URL.sub("//***@", value)
