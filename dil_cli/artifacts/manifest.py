"""What a run's numbers depend on, written down: versions, revision, machine."""

from __future__ import annotations

import platform
import shlex
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from dil_cli import __version__

PACKAGES = ("torch", "transformers", "tokenizers", "datasets", "hydra-core", "omegaconf", "numpy", "wandb")


def environment() -> dict[str, Any]:
    """Versions of dil, Python and the packages that decide a number."""
    return {
        "dil": __version__,
        "git": git_revision(),
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "packages": {name: _version(name) for name in PACKAGES},
        "command": command(),
    }


def command() -> str | None:
    """The command, to be pasted into a shell; None in a process that was started otherwise, as a launcher's worker."""
    program, *words = sys.argv  # `dil train` and what follows, once the config is composed
    return f"{program} {shlex.join(words)}".rstrip() if program.startswith("dil ") else None


def git_revision() -> str | None:
    """Commit of the checkout that dil runs from, with `+` when it has changes; None in an installed wheel."""
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        return None
    try:
        head = _git(root, "rev-parse", "HEAD")
        dirty = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return head + ("+" if dirty else "")


def _git(root: Path, *args: str) -> str:
    done = subprocess.run(["git", *args], cwd=root, capture_output=True, text=True, timeout=5, check=True)
    return done.stdout.strip()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None
