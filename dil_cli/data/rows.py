"""The rows of a data file, each with its number and place, so that an error can name it."""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterable, Iterator
from io import BufferedReader
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, cast

from dil_cli.errors import DilError

READABLE = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".jsonl.zst", ".json.zst", ".parquet")
BATCH_ROWS = 1000
BLANK = b"\xef\xbb\xbf \t\r\n"


class Row(NamedTuple):
    """One row: its 1-based number in its split, the place an error names, and its columns."""

    number: int
    where: str
    values: dict[str, Any]


def is_readable(path: Path) -> bool:
    """Whether the file's name ends as one of `READABLE`."""
    return path.name.endswith(READABLE)


def read_files(paths: Iterable[Path]) -> Iterator[Row]:
    """The rows of several files, numbered through; `where` keeps each file's own number."""
    number = 0
    for path in paths:
        last = 0
        for row in read_file(path):
            last = row.number
            yield row._replace(number=number + last)
        number += last


def read_file(path: Path) -> Iterator[Row]:
    """The rows of one .jsonl, .json (a list of objects, or lines), or .parquet file; JSON also as .gz or .zst.

    In a file of lines the row's number is its line number; blank lines are passed over.

    Raises:
        DilError: if the file cannot be read, or a row is not a JSON object (its number named).
    """
    if not is_readable(path):
        raise DilError(
            f"{path.name} is no data file dil can read",
            where=f"data.path={path}",
            fix=f"one of {', '.join(READABLE)}, or a folder saved by `datasets`",
        )
    try:
        if path.name.endswith(".parquet"):
            yield from _parquet_rows(path)
        else:
            with _opened(path) as file:
                yield from _json_rows(file, path)
    except (OSError, EOFError, zlib.error) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise DilError(
            f"{path.name} cannot be read: {reason}",
            where=f"data.path={path}",
            fix="check that the file is whole, and that its name ends in what it is",
        ) from error


def _opened(path: Path) -> BinaryIO:
    """The bytes of a file, out of what compresses them."""
    if path.suffix == ".zst":
        import pyarrow as pa

        return cast(BinaryIO, BufferedReader(pa.input_stream(str(path), compression="zstd")))
    return cast(BinaryIO, gzip.open(path) if path.suffix == ".gz" else path.open("rb"))


def table_rows(batches: Iterable[Any], name: str) -> Iterator[Row]:
    """Rows of Arrow tables or record batches, numbered from 1."""
    number = 0
    for batch in batches:
        for values in batch.to_pylist():
            number += 1
            yield Row(number, f"{name}, row {number}", values)


def kind(value: Any) -> str:
    """What a value is, in the words of an error."""
    names = {
        "NoneType": "null", "bool": "true or false", "int": "a number", "float": "a number",
        "str": "text", "list": "a list", "dict": "an object",
    }  # fmt: skip
    return names.get(type(value).__name__, f"a {type(value).__name__}")


def _parquet_rows(path: Path) -> Iterator[Row]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        with pq.ParquetFile(path) as file:
            yield from table_rows(file.iter_batches(batch_size=BATCH_ROWS), path.name)
    except (pa.ArrowException, UnicodeDecodeError) as error:
        raise OSError(str(error).splitlines()[0]) from error


def _json_rows(file: BinaryIO, path: Path) -> Iterator[Row]:
    lines: Iterable[bytes] = file
    if path.name.removesuffix(".gz").removesuffix(".zst").endswith(".json"):
        document = file.read()
        if document.lstrip(BLANK).startswith(b"["):
            for number, values in enumerate(_parse(document, path.name), start=1):
                yield _object_row(values, number, path)
            return
        lines = document.splitlines()
    for number, line in enumerate(lines, start=1):
        if line.strip(BLANK):
            yield _object_row(_parse(line.rstrip(), f"{path.name}, row {number}"), number, path)


def _parse(text: bytes, where: str) -> Any:
    try:
        return json.loads(text.decode("utf-8-sig"))
    except json.JSONDecodeError as error:
        place = f"character {error.pos + 1}" if error.lineno == 1 else f"line {error.lineno}"
        what = f"not valid JSON: {error.msg} at {place}"
    except UnicodeDecodeError as error:
        what = f"not UTF-8 text: byte {error.start + 1} is 0x{text[error.start]:02x}"
    except RecursionError:
        what = "not usable JSON: it is nested too deeply"
    except ValueError:  # Python's limit on the digits of an integer
        what = "not usable JSON: a number in it has too many digits"
    raise DilError(what, where=where, fix="mend or remove it")


def _object_row(values: Any, number: int, path: Path) -> Row:
    where = f"{path.name}, row {number}"
    if not isinstance(values, dict):
        raise DilError(f"the row is {kind(values)}, it must be an object with columns", where, "mend or remove it")
    return Row(number, where, values)
