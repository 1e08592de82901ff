from __future__ import annotations

import gzip
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from dil_cli.data.rows import read_file, read_files
from dil_cli.errors import DilError

ROWS = [{"prompt": f"q{i}", "chosen": "é", "rejected": "b\nc"} for i in range(3)]
NAMES = [
    "a.jsonl", "a.jsonl.gz", "a.jsonl.zst", "a.json", "a.json.gz", "a.json.zst", "lines.json", "a.parquet",
]  # fmt: skip


def compressed(content: bytes, name: str) -> bytes:
    if name.endswith(".zst"):
        return pa.compress(content, codec="zstd", asbytes=True)
    return gzip.compress(content) if name.endswith(".gz") else content


@pytest.mark.parametrize("name", NAMES)
def test_every_format_gives_the_same_rows(tmp_path, jsonl, name):
    path = tmp_path / name
    if name == "a.parquet":
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    elif name.startswith("a.json") and "jsonl" not in name:
        text = json.dumps(ROWS, indent=1).encode()
        path.write_bytes(compressed(text, name))
    elif name.endswith(".zst"):
        path.write_bytes(compressed(jsonl(ROWS, "plain.jsonl").read_bytes(), name))
    else:
        path = jsonl(ROWS, name)
    rows = list(read_file(path))
    assert [row.values for row in rows] == ROWS
    assert [row.number for row in rows] == [1, 2, 3]
    assert rows[2].where == f"{name}, row 3"


def test_blank_lines_are_passed_over_and_numbers_stay_line_numbers(jsonl):
    rows = list(read_file(jsonl([ROWS[0], "", "   ", ROWS[1]])))
    assert [(row.number, row.values["prompt"]) for row in rows] == [(1, "q0"), (4, "q1")]


def test_byte_order_mark_and_windows_line_ends_are_read(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_bytes(b"\xef\xbb\xbf" + b"".join(json.dumps(row).encode() + b"\r\n" for row in ROWS))
    assert [row.values for row in read_file(path)] == ROWS


def test_files_are_numbered_through_but_name_their_own_row(jsonl):
    rows = list(read_files([jsonl(ROWS, "a.jsonl"), jsonl(ROWS[:1], "b.jsonl"), jsonl(ROWS[:1], "c.jsonl")]))
    assert [row.number for row in rows] == [1, 2, 3, 4, 5]
    assert [row.where for row in rows[2:]] == ["a.jsonl, row 3", "b.jsonl, row 1", "c.jsonl, row 1"]


def test_empty_file_has_no_rows(jsonl):
    assert list(read_file(jsonl([]))) == []
    assert list(read_file(jsonl([], "a.json"))) == []


BAD_LINES = [
    ('{"prompt": "q"', "not valid JSON: Expecting ',' delimiter at character 15"),
    ("prompt,chosen", "not valid JSON: Expecting value at character 1"),
    ("[1, 2]", "the row is a list, it must be an object with columns"),
    ('"text"', "the row is text, it must be an object with columns"),
    ('{"a": ' + "9" * 5000 + "}", "not usable JSON: a number in it has too many digits"),
    ("[" * 200_000, "not usable JSON: it is nested too deeply"),
]  # fmt: skip


@pytest.mark.parametrize(("line", "what"), BAD_LINES)
def test_bad_line_is_an_error_with_its_number(jsonl, line, what):
    with pytest.raises(DilError) as caught:
        list(read_file(jsonl([ROWS[0], "", line])))
    assert str(caught.value).splitlines() == [
        f"error: {what}", "where: pairs.jsonl, row 3", "fix:   mend or remove it",
    ]  # fmt: skip


def test_wrong_encoding_names_byte_and_row(tmp_path):
    path = tmp_path / "latin.jsonl"
    path.write_bytes(b'{"a": "x"}\n' + '{"a": "é"}\n'.encode("latin-1"))
    with pytest.raises(DilError) as caught:
        list(read_file(path))
    assert (caught.value.what, caught.value.where) == ("not UTF-8 text: byte 8 is 0xe9", "latin.jsonl, row 2")


def test_bad_json_array_names_the_line(tmp_path):
    path = tmp_path / "a.json"
    path.write_text('[\n{"a": 1},\n{"a": }\n]')
    with pytest.raises(DilError) as caught:
        list(read_file(path))
    assert (caught.value.what, caught.value.where) == ("not valid JSON: Expecting value at line 3", "a.json")


def test_file_of_another_kind_is_refused(tmp_path):
    (tmp_path / "a.csv").write_text("prompt,chosen\n")
    with pytest.raises(DilError) as caught:
        list(read_file(tmp_path / "a.csv"))
    assert str(caught.value).splitlines() == [
        "error: a.csv is no data file dil can read",
        f"where: data.path={tmp_path / 'a.csv'}",
        "fix:   one of .jsonl, .json, .jsonl.gz, .json.gz, .jsonl.zst, .json.zst, .parquet, "
        "or a folder saved by `datasets`",
    ]


@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.parquet"])
@pytest.mark.parametrize("damage", ["cut", "plain"])
def test_damaged_file_is_refused(tmp_path, name, damage):
    path = tmp_path / name
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress(b"".join(json.dumps({"a": str(i)}).encode() + b"\n" for i in range(9999))))
    else:
        pq.write_table(pa.Table.from_pylist(ROWS), path)
    path.write_bytes(path.read_bytes()[:-100] if damage == "cut" else b'{"a": 1}\n' * 20)
    with pytest.raises(DilError, match=f"{name} cannot be read: .+") as caught:
        list(read_file(path))
    assert caught.value.where == f"data.path={path}"
