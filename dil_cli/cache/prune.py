"""`dil cache prune`: removes files that are the cache's own, and folders that are empty then."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from dil_cli.cache.contents import (
    BenchmarkEntry,
    Entry,
    ReferenceEntry,
    TokenEntry,
    benchmarks,
    find,
    leftovers,
    references,
    token_files,
)
from dil_cli.cache.listing import SHOWN_DIGITS, model_name
from dil_cli.errors import DilError
from dil_cli.train.sizes import size_text

DAY_S = 86_400
WRITING_S = 3_600
"""A temporary file younger than this may be one that a run is writing."""


def prune(
    cache: Path,
    key: str | None = None,
    older_than_days: float | None = None,
    damaged: bool = False,
    everything: bool = False,
    dry_run: bool = False,
) -> list[str]:
    """Remove what fits all that is asked for; returns a line for each thing and one for the sum.

    A run that reads at the same time misses what is gone and computes it.

    Args:
        cache: the cache folder.
        key: only the reference or tokenised split whose key begins so.
        older_than_days: only what no run has used for so long.
        damaged: only files that cannot be used, and temporary ones of runs that ended long ago.
        everything: no condition.
        dry_run: say it, do not do it.

    Raises:
        DilError: without a condition, with `everything` beside one, for an unknown key, or if the disk refuses.
    """
    conditions = key is not None or older_than_days is not None or damaged
    if conditions == everything:
        what = "--all takes nothing beside it" if everything else "say what to remove"
        raise DilError(what, "dil cache prune", "KEY, --older-than DAYS, --damaged, or --all")
    entries: list[Entry] = [*references(cache), *token_files(cache), *benchmarks(cache)]
    if key is not None:
        entries = [find(entries, key)]
    if older_than_days is not None:
        before = time.time() - older_than_days * DAY_S
        entries = [entry for entry in entries if entry.used < before]
    chosen = [(entry, _broken(entry) if damaged else entry.all_files) for entry in entries]
    lines, count, size = [], 0, 0
    verb = "would remove" if dry_run else "removed"
    for entry, files in chosen:
        if files or not (damaged or entry.files):
            lines.append(f"{verb} {_describe(entry, damaged)}")
            done, freed = _remove(files, dry_run)
            count, size = count + done, size + freed
            if not dry_run and entry.path.is_dir():
                for folder in [*sorted((p for p in entry.path.rglob("*") if p.is_dir()), reverse=True), entry.path]:
                    with suppress(OSError):  # holds something of the user's, or of a run that has begun to write again
                        folder.rmdir()
    if everything or (damaged and key is None):
        done, freed = _remove(_old(leftovers(cache / "tokens"), None if everything else WRITING_S), dry_run)
        count, size = count + done, size + freed
    return [*lines, f"{verb} {count} files, {size_text(size)}" if count else "nothing to remove"]


def _broken(entry: Entry) -> list[Path]:
    """What of an entry is of no use."""
    old = _old(leftovers(entry.path), WRITING_S)
    useless = [path for path in entry.extras if not entry.files and path not in leftovers(entry.path)]
    return [*entry.damaged, *old, *useless]


def _old(paths: Iterable[Path], seconds: float | None) -> list[Path]:
    before = time.time() - (seconds or 0)
    return [path for path in paths if path.exists() and path.stat().st_mtime <= before]


def _remove(paths: Iterable[Path], dry_run: bool) -> tuple[int, int]:
    """Number and bytes of the files."""
    count = size = 0
    for path in paths:
        try:
            size += path.stat().st_size
            if not dry_run:
                path.unlink()
            count += 1
        except FileNotFoundError:
            continue
        except OSError as error:
            raise DilError(
                f"{path.name} cannot be removed ({error.strerror or error})", str(path), "look at its permissions"
            ) from error
    return count, size


def _describe(entry: Entry, damaged: bool) -> str:
    what = "damaged files of " if damaged else ""
    if isinstance(entry, ReferenceEntry):
        holds = f"{model_name(entry)}, {entry.record.get('compute', '?')}, {entry.responses:,} responses"
        return f"{what}reference {entry.key[:SHOWN_DIGITS]} ({holds}, {size_text(entry.size)})"
    if isinstance(entry, BenchmarkEntry):
        return f"{entry.kind} {entry.key[:SHOWN_DIGITS]} ({len(entry.files)} files, {size_text(entry.size)})"
    pairs = f"{entry.pairs:,} pairs, " if isinstance(entry, TokenEntry) else ""
    return f"{what}tokenised split {entry.key[:SHOWN_DIGITS]} ({pairs}{size_text(entry.size)})"
