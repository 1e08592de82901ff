"""The one error a user sees: what is wrong, where, and how to mend it. Printed in `main.py` only."""

from __future__ import annotations

import math
import os
from pathlib import Path

LONGEST = 600
"""Characters of a line of an error; of a longer one the middle is left out."""


def shown(text: str) -> str:
    """Text that may hold anything as one line for a terminal: no control character, and no more than `LONGEST`."""
    line = " ".join(text.split("\n"))
    line = "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in line)
    if len(line) <= LONGEST:
        return line
    return f"{line[: LONGEST - 150]} ... ({len(line) - LONGEST:,} characters) ... {line[-150:]}"


class DilError(Exception):
    """Wrong input: ends the command with exit code 2 and at most three lines.

    Args:
        what: what is wrong, as one sentence without a full stop.
        where: the config key, file or row it was found in.
        fix: what to type or change.
    """

    exit_code = 2

    def __init__(self, what: str, where: str = "", fix: str = "") -> None:
        super().__init__(what)
        self.what, self.where, self.fix = what, where, fix

    def __str__(self) -> str:
        lines = [f"error: {shown(self.what)}"]
        lines += [f"where: {shown(self.where)}"] if self.where else []
        lines += [f"fix:   {shown(self.fix)}"] if self.fix else []
        return "\n".join(lines)

    def __reduce__(self) -> tuple[type[DilError], tuple[str, str, str]]:
        return type(self), (self.what, self.where, self.fix)


class RunFailed(DilError):
    """A run that started and could not go on (a non-finite loss, a failed preflight): exit code 1."""

    exit_code = 1


class Stopped(KeyboardInterrupt):
    """A run that was told to stop and has saved its state: 130 after Ctrl-C, 75 ("again") after another signal."""

    def __init__(self, told: str, exit_code: int) -> None:
        super().__init__(told)
        self.told, self.exit_code = told, exit_code

    def __str__(self) -> str:
        return self.told


class Told(SystemExit):
    """The end of one of several processes, of which the user was told by one of them."""


def speaks() -> bool:
    """Whether this process tells the user what all of a launcher's processes find wrong alike: the first of them."""
    return os.environ.get("RANK", "0") == "0"


def require(holds: bool, key: str, value: object, must: str, example: object) -> None:
    """Check one config value; `require(lr > 0, "optim.lr", lr, "be above 0", 5e-7)`.

    Raises:
        DilError: when `holds` is false, naming the key, its value and a value that works.
    """
    if not holds:
        raise DilError(f"{key} is {value}, it must {must}", where=key, fix=f"{key}={example}")


def require_positive(key: str, value: float, example: object) -> None:
    """`value` must be a finite number above zero."""
    require(math.isfinite(value) and value > 0, key, value, "be a finite number above 0", example)


def require_file_name(key: str, value: str, example: object) -> None:
    """`value` names a file or folder of dil's own: it must not lead to another place, and leave room for a hash."""
    ok = bool(value) and not set(value) & set("/\\\0") and value not in {".", ".."}
    require(ok, key, repr(value), "be a folder name without a slash", example)
    fits = len(value.encode(errors="replace")) <= 200 and value.isprintable()
    require(fits, key, repr(value), "be at most 200 printable characters", example)


def require_path(key: str, value: str, example: object) -> None:
    """`value` must be a path (or a hub id) that a file system takes: not empty, not overlong, no control character."""
    require(bool(value), key, repr(value), "name a file or a folder", example)
    # Halves of a character stand for bytes that are no UTF-8; the record of a run could not be written with them.
    plain = not any(c < " " or c == "\x7f" or "\ud800" <= c <= "\udfff" for c in value)
    require(plain, key, repr(value), "hold no control character", example)
    longest = max(len(part.encode()) for part in value.split("/"))
    require(len(value) <= 1000 and longest <= 255, key, value, "be a path of at most 1,000 characters", example)
    try:
        Path(value).expanduser()
    except RuntimeError as error:
        raise DilError(f"there is no user {value.partition('/')[0]}", f"{key}={value}", f"{key}={example}") from error


def require_not_negative(key: str, value: float, example: object) -> None:
    """`value` must be a finite number, zero or above."""
    require(math.isfinite(value) and value >= 0, key, value, "be a finite number, 0 or more", example)
