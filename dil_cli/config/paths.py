"""Where the YAML lives: one answer for a checkout and for an installed wheel."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent.parent


def conf_dir() -> Path:
    """The folder of config groups: packaged in a wheel, else the repository's `conf/`."""
    packaged = PACKAGE / "conf"
    return packaged if packaged.is_dir() else PACKAGE.parent / "conf"


def pins_file() -> Path:
    """The file of the versions that the tests ran with, a pin a line: packaged in a wheel, else the repository's."""
    packaged = PACKAGE / "constraints.txt"
    return packaged if packaged.is_file() else PACKAGE.parent / "constraints.txt"


def config_dirs(argv: Sequence[str]) -> list[Path]:
    """The folders given as `--config-dir DIR`, `--config-dir=DIR` or `-cd DIR`."""
    dirs = []
    for i, word in enumerate(argv):
        flag, equals, value = word.partition("=")
        if flag in {"--config-dir", "-cd"}:
            dirs.append(Path(value if equals else "".join(argv[i + 1 : i + 2])))
    return dirs
