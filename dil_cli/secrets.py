"""Keys and tokens: what the environment holds of them stays out of every text that dil shows or writes."""

from __future__ import annotations

import os
import re

NAMES = re.compile(r"(KEY|TOKEN|SECRET|PASSWORD|CREDENTIALS?)$", re.IGNORECASE)
SHORTEST = 8
"""Characters; what is shorter is no key, and may stand in any text."""

GIVEN = re.compile(r"([\w.]*(?:api_?key|_key|token|secret|password))=(?!\.\.\.|\*)[^\s'\"]+", re.IGNORECASE)
"""A key that was typed as a value, as in tracker.api_key=..."""


def name_of_secret(text: str) -> str | None:
    """The environment variable whose secret `text` holds; None where it holds none."""
    return next((name for name, value in _secrets() if value in text), None)


def hidden(text: str) -> str:
    """`text` with every secret of the environment, and every value that was given to a key's name, as ***."""
    for _, value in _secrets():
        text = text.replace(value, "***")
    return GIVEN.sub(r"\1=***", text)


def _secrets() -> list[tuple[str, str]]:
    found = [(name, value.strip()) for name, value in os.environ.items() if NAMES.search(name)]
    # The longest first: one may be a part of another.
    return sorted(((n, v) for n, v in found if len(v) >= SHORTEST), key=lambda pair: -len(pair[1]))
