"""`dil cache list`: two tables, what is cached and when it was last of use."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from pathlib import Path

from dil_cli.cache.contents import (
    BenchmarkEntry,
    Entry,
    ReferenceEntry,
    TokenEntry,
    benchmarks,
    references,
    token_files,
)
from dil_cli.train.sizes import size_text

SHOWN_DIGITS = 12
REFERENCE_HEAD = ("key", "model", "compute", "parameters", "responses", "files", "size", "created", "last used", "")
BENCHMARK_HEAD = ("key", "what", "files", "size", "last used")
TOKEN_HEAD = ("key", "pairs", "tokens", "size", "last used", "")


def listing(cache: Path) -> str:
    """Everything in the cache folder, as text."""
    parts = []
    if known := references(cache):
        parts.append(f"reference log-probs in {cache / 'reference'}\n" + table(REFERENCE_HEAD, map(_reference, known)))
    if splits := token_files(cache):
        parts.append(f"tokenised pairs in {cache / 'tokens'}\n" + table(TOKEN_HEAD, map(_tokens, splits)))
    if asked := benchmarks(cache):
        parts.append(f"benchmarks in {cache}\n" + table(BENCHMARK_HEAD, map(_benchmark, asked)))
    return "\n".join(parts) or f"nothing is cached in {cache}\n"


def model_name(entry: ReferenceEntry) -> str:
    """The folder or hub id the reference was loaded from, with its revision."""
    source = entry.record.get("model")
    if not isinstance(source, dict):
        return "(not recorded)"
    revision = source.get("revision")
    return f"{source.get('path')}@{revision}" if revision else str(source.get("path"))


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Left-aligned columns, two spaces apart, indented by two."""
    lines = [head, *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
    texts = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in lines)
    return "".join(f"  {text.rstrip()}\n" for text in texts)


def _reference(entry: ReferenceEntry) -> tuple[str, ...]:
    parameters = entry.record.get("parameters")
    return (
        entry.key[:SHOWN_DIGITS],
        model_name(entry),
        str(entry.record.get("compute", "?")),
        f"{parameters:,}" if isinstance(parameters, int) else "?",
        f"{entry.responses:,}",
        f"{len(entry.files)}",
        size_text(entry.size),
        str(entry.record.get("created", "?"))[:10],
        day(entry.used),
        _fault(entry),
    )


def _tokens(entry: TokenEntry) -> tuple[str, ...]:
    return (
        entry.key[:SHOWN_DIGITS],
        f"{entry.pairs:,}",
        f"{entry.tokens:,}",
        size_text(entry.size),
        day(entry.used),
        _fault(entry),
    )


def _benchmark(entry: BenchmarkEntry) -> tuple[str, ...]:
    what = "answers of a model" if entry.kind == "answers" else "questions of a data set"
    return (entry.key[:SHOWN_DIGITS], what, f"{len(entry.files)}", size_text(entry.size), day(entry.used))


def day(seconds: float) -> str:
    """Local date of a file's time."""
    return datetime.fromtimestamp(seconds).strftime("%Y-%m-%d")


def _fault(entry: Entry) -> str:
    return f"{len(entry.damaged)} damaged: dil cache prune --damaged" if entry.damaged else ""
