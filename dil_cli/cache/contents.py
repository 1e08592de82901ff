"""What is in a cache folder: references and tokenised splits, each file read and checked; and what benchmarks left."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from dil_cli.data import token_cache
from dil_cli.errors import DilError
from dil_cli.models.reference_cache import (
    COLUMN,
    DAMAGED,
    RECORD,
    Column,
    DamagedFile,
    column_files,
    read_column,
)

TOKENS = "tokens-*.parquet"


@dataclass(frozen=True)
class Entry:
    """One reference or one tokenised split.

    Attributes:
        key: 32 hex digits.
        files: what can be used.
        damaged: what cannot, with the reason.
        extras: `reference.json`, and temporary files of a run that was killed or is still writing.
        used: when a run last found something in it, seconds since 1970; its own time if none did.
    """

    key: str
    path: Path
    files: tuple[Path, ...]
    damaged: dict[Path, str]
    extras: tuple[Path, ...] = ()
    used: float = 0.0

    @property
    def all_files(self) -> list[Path]:
        """Everything that is known to be the cache's."""
        return [*self.files, *self.damaged, *self.extras]

    @property
    def size(self) -> int:
        """Bytes on the disk."""
        return sum(path.stat().st_size for path in self.all_files if path.is_file())


E = TypeVar("E", bound=Entry)


@dataclass(frozen=True)
class ReferenceEntry(Entry):
    """A reference: `record` is its `reference.json`, empty where that is missing or damaged."""

    record: dict[str, Any] = field(default_factory=dict)
    columns: tuple[Column, ...] = ()

    @property
    def responses(self) -> int:
        """How many different responses have a value."""
        return len({key for column in self.columns for key, _ in column.items()})


@dataclass(frozen=True)
class TokenEntry(Entry):
    """A tokenised split: numbers of pairs and of tokens."""

    pairs: int = 0
    tokens: int = 0


@dataclass(frozen=True)
class BenchmarkEntry(Entry):
    """A model's answers (`kind` "answers", a file a benchmark), or a data set of questions as `datasets` made it."""

    kind: str = "answers"


def references(cache: Path) -> list[ReferenceEntry]:
    """The references of a cache folder, in the order of their keys."""
    root = cache / "reference"
    folders = sorted(path for path in root.iterdir() if path.is_dir()) if root.is_dir() else []
    return [_reference(folder) for folder in folders if _is_key(folder.name)]


def token_files(cache: Path) -> list[TokenEntry]:
    """The tokenised splits of a cache folder, in the order of their keys."""
    root = cache / "tokens"
    return [_tokens(path) for path in sorted(root.glob(TOKENS))] if root.is_dir() else []


def benchmarks(cache: Path) -> list[BenchmarkEntry]:
    """What `dil eval` keeps of benchmarks: answers first, then questions, each in the order of their keys."""
    found = []
    for kind in ("answers", "questions"):
        root = cache / kind
        for folder in sorted(root.iterdir()) if root.is_dir() else []:
            if folder.is_dir() and _is_key(folder.name):
                files = tuple(sorted(path for path in folder.rglob("*") if path.is_file()))
                used = max(path.stat().st_mtime for path in (folder, *files))
                found.append(BenchmarkEntry(folder.name, folder, files, {}, used=used, kind=kind))
    return found


def leftovers(folder: Path) -> list[Path]:
    """Temporary files (`dil_cli.files.replacing`) of a run that was killed, or is writing at this moment."""
    return sorted(folder.glob(".*.tmp")) if folder.is_dir() else []


def find(entries: Sequence[E], key: str) -> E:
    """The entry whose key begins with `key`.

    Raises:
        DilError: when none does, or more than one.
    """
    matching = [entry for entry in entries if entry.key.startswith(key)]
    if len(matching) == 1:
        return matching[0]
    if not matching:
        raise DilError(f"nothing in the cache has a key that begins with {key}", f"KEY {key}", "dil cache list")
    known = ", ".join(entry.key[:12] for entry in matching[:4])
    raise DilError(f"{len(matching)} keys begin with {key}: {known}", f"KEY {key}", "add more digits")


def _reference(folder: Path) -> ReferenceEntry:
    columns: dict[Path, Column] = {}
    damaged = dict.fromkeys(sorted(folder.glob(COLUMN + DAMAGED)), "set aside by a run")
    for path in column_files(folder):
        try:
            columns[path] = read_column(path, folder.name)
        except FileNotFoundError:
            continue  # removed since it was listed
        except (DamagedFile, OSError) as error:
            damaged[path] = str(error)
    record: dict[str, Any] = {}
    path = folder / RECORD
    if path.is_file():
        try:
            record = dict(json.loads(path.read_text(encoding="utf-8")))
        except (OSError, ValueError) as error:
            damaged[path] = f"it is no JSON object: {error}"
    extras = [] if path in damaged or not path.is_file() else [path]
    times = [file.stat().st_mtime for file in [*extras, *columns] if file.is_file()]
    return ReferenceEntry(
        folder.name, folder, tuple(columns), damaged, (*extras, *leftovers(folder)),
        max(times, default=folder.stat().st_mtime), record, tuple(columns.values()),
    )  # fmt: skip


def _tokens(path: Path) -> TokenEntry:
    import pyarrow.parquet as pq

    key, used = path.stem.removeprefix("tokens-"), path.stat().st_mtime
    try:
        whole = json.loads(pq.read_schema(path).metadata[b"dil"])["key"]
        pairs, counts = token_cache.read(path, whole)
        if not whole.startswith(key):
            return TokenEntry(key, path, (), {path: "its name is another's"}, used=used)
        return TokenEntry(key, path, (path,), {}, used=used, pairs=len(pairs), tokens=int(counts["tokens"]))
    except Exception as error:  # whatever a damaged file makes pyarrow or json raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return TokenEntry(key, path, (), {path: reason}, used=used)


def _is_key(name: str) -> bool:
    return len(name) == 32 and set(name) <= set("0123456789abcdef")
