"""Code of a user's own: the Python files beside the YAML in `--config-dir`, run only with `allow_custom=true`.

`DIR/loss/mine.py` holds a loss under `@register`, `DIR/loss/mine.yaml` configures it, `loss=mine` trains with it.
The files run before the config is composed, since the YAML names their dataclass as its schema; so the permission
counts on the command line alone, and no file can give it to itself.
"""

from __future__ import annotations

import hashlib
import linecache
import os
import re
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import ModuleType

from dil_cli.config.paths import config_dirs
from dil_cli.errors import DilError
from dil_cli.losses import registry
from dil_cli.losses.any_convex import FUNCTIONS
from dil_cli.losses.check import raised_in

MODULES = "dil_cli.own."
"""Prefix of the modules that the files become."""

FOLDERS = "DIL_OWN_CODE"
"""Environment variable in which the processes of a parallel sweep find their folders (`dil_cli/own`)."""

LOADED: dict[str, str] = {}
"""File, as loss/mine.py, to the sha256 of its text; a run with these files is another run once they change."""


def files(argv: Sequence[str]) -> list[Path]:
    """The Python files that `--config-dir` offers, allowed or not; names with a leading underscore are left out."""
    found = [path for folder in config_dirs(argv) for path in sorted((folder / "loss").glob("*.py"))]
    return [path for path in found if not path.name.startswith("_")]


def allowed(argv: Sequence[str]) -> bool:
    """Whether the command line says `allow_custom=true`."""
    return any(re.fullmatch(r"allow_custom=(true|yes|on|1)", word, re.IGNORECASE) for word in argv)


def load(argv: Sequence[str]) -> None:
    """Forget the files of an earlier command; run those of this one if it allows that, and say so in one line.

    Raises:
        DilError: for a file that cannot be run or registers nothing, and when there is nothing to allow.
    """
    LOADED.clear()
    os.environ.pop(FOLDERS, None)
    for names in (registry.LOSSES, FUNCTIONS):
        for name in [name for name, thing in names.items() if thing.__module__.startswith(MODULES)]:
            del names[name]
    if not allowed(argv):
        return
    gone = next((folder for folder in config_dirs(argv) if not folder.is_dir()), None)
    if gone is not None:
        raise DilError(f"there is no folder {gone}", f"--config-dir {gone}", "--config-dir ./myconf")
    found = files(argv)
    if not found:
        raise DilError(
            "allow_custom=true allows nothing, there is no Python file to run",
            where="DIR/loss/*.py of --config-dir DIR",
            fix="--config-dir ./myconf, which holds loss/mine.py; or leave allow_custom out",
        )
    print(f"notice: code from outside the package runs: {', '.join(map(str, found))}", file=sys.stderr)
    for path in found:
        _run(path)
    os.environ[FOLDERS] = os.pathsep.join(dict.fromkeys(str(path.resolve().parent) for path in found))


def adopt(loaded: Mapping[str, str]) -> None:
    """Run what the sweep that started this process has run; nothing where that is this process.

    Raises:
        DilError: when a file has changed in between.
    """
    for name, digest in loaded.items():
        if name in LOADED:
            continue
        file = Path(str(import_module(MODULES + Path(name).stem).__file__))
        if hashlib.sha256(file.read_bytes()).hexdigest() != digest:
            raise DilError(f"{name} has changed since the sweep began", str(file), "give the sweep's command again")
        LOADED[name] = digest


def refusal(name: str, argv: Sequence[str]) -> DilError | None:
    """The error for a loss that is known to no one and looks like one of the files that may not run."""
    if allowed(argv):
        return None
    for path in files(argv):
        text = path.read_text(encoding="utf-8", errors="replace")
        if path.stem == name or re.search(rf"[\"']{re.escape(name)}[\"']", text):
            return DilError(
                f"{name} is code from outside the package, and it runs only if you allow it",
                where=str(path),
                fix="read the file, then add allow_custom=true",
            )
    return None


def _run(path: Path) -> None:
    """Run one file as a module; no bytecode is written beside it."""
    module = ModuleType(MODULES + path.stem)
    module.__file__ = str(path)
    sys.modules[module.__name__] = module
    linecache.checkcache(str(path))
    try:
        text = path.read_text(encoding="utf-8")
        exec(compile(text, str(path), "exec"), module.__dict__)
    except DilError:
        raise
    except (SyntaxError, UnicodeDecodeError) as error:
        line = getattr(error, "lineno", None)
        where = f"{path}, line {line}" if line else str(path)
        raise DilError(f"{path.name} is not Python: {getattr(error, 'msg', error)}", where, "mend this line") from error
    except (Exception, SystemExit) as error:
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise DilError(
            f"{path.name} fails when it is read: {reason}",
            raised_in(error, str(path)) or str(path),
            "mend this line (DIL_TRACEBACK=1 shows how it was reached)",
        ) from error
    mine = [thing for names in (registry.LOSSES, FUNCTIONS) for thing in names.values()]
    if not any(thing.__module__ == module.__name__ for thing in mine):
        raise DilError(
            f"{path.name} registers neither a loss nor a convex function",
            where=str(path),
            fix="put @register above the loss's class, or @convex above the function",
        )
    LOADED[f"{path.parent.name}/{path.name}"] = hashlib.sha256(path.read_bytes()).hexdigest()
