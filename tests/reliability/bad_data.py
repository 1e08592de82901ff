"""Data files that no run can learn from: name and content of each, and what the error must say."""

from __future__ import annotations

import gzip
import json
from typing import Any

import pyarrow as pa

GOOD = [{"prompt": f"q{i}", "chosen": f"a{i}", "rejected": f"b{i}"} for i in range(12)]
USER, ANSWER, OTHER = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "a"), ("assistant", "b")))
POST = {"post": "I ran.", "title": "Run", "subreddit": "running"}
TWO = [{"text": "one"}, {"text": "two"}]


def lines(*rows: Any) -> bytes:
    """Rows, or text to be put in as it is, as JSON lines."""
    return "".join((row if isinstance(row, str) else json.dumps(row)) + "\n" for row in rows).encode()


def each(**values: Any) -> bytes:
    """The good rows with these values in all of them."""
    return lines(*(row | values for row in GOOD))


def conversation(*turns: Any) -> bytes:
    """A pair whose chosen side is these turns."""
    return lines({"chosen": list(turns), "rejected": [USER, OTHER]})


LINES = lines(*GOOD)
FILES = {
    "empty": ("d.jsonl", b"", "there is not one row"),
    "blank lines": ("d.jsonl", b"\n  \n\r\n", "there is not one row"),
    "an empty list": ("d.json", b"[]", "there is not one row"),
    "an empty gzip": ("d.jsonl.gz", gzip.compress(b""), "there is not one row"),
    "one pair": ("d.jsonl", lines(GOOD[0]), "holding out 0.1 of 1 prompts leaves no training pair"),
    "one prompt": ("d.jsonl", each(prompt="same"), "holding out 0.1 of 1 prompts leaves no training pair"),
    "binary": ("d.jsonl", bytes(range(256)) * 40, "d.jsonl, row 1"),
    "zeros": ("d.jsonl", b"\0" * 4096, "d.jsonl, row 1"),
    "zeros after a crash": ("d.jsonl", LINES + b"\0" * 4096, "d.jsonl, row 13"),
    "UTF-16": ("d.jsonl", LINES.decode().encode("utf-16"), "not UTF-8 text: byte 1 is 0xff"),
    "UTF-32": ("d.jsonl", LINES.decode().encode("utf-32"), "not UTF-8 text"),
    "Latin-1": ("d.jsonl", '{"prompt": "é"}'.encode("latin-1"), "not UTF-8 text: byte 13 is 0xe9"),
    "an open line of 10 MB": ("d.jsonl", b'{"prompt": "' + b"x" * 10_000_000, "Unterminated string"),
    "a line cut short": ("d.jsonl", LINES[:-9], "d.jsonl, row 12"),
    "nested too deep": ("d.jsonl", b'{"prompt":' + b"[" * 100_000, "nested too deeply"),
    "a number of 5,000 digits": ("d.jsonl", b'{"prompt":' + b"9" * 5000 + b"}", "too many digits"),
    "no column rejected": ("d.jsonl", lines({"prompt": "q", "chosen": "a"}), "no column rejected"),
    "no column in a later row": ("d.jsonl", LINES + lines({"prompt": "q", "chosen": "a"}), "d.jsonl, row 13"),
    "unknown columns": ("d.jsonl", lines({"text": "a"}), "the columns are text"),
    "3,000 characters of column": ("d.jsonl", lines({"y" * 3000: 1}), "no column chosen or rejected"),
    "a colour as a column": ("d.jsonl", lines({"\x1b[31m": 1}), r"the columns are \x1b[31m"),
    "a row without columns": ("d.jsonl", b"{}\n", "the columns are none"),
    "a list as a row": ("d.jsonl", b"[1, 2]\n", "the row is a list"),
    "a number as a row": ("d.jsonl", b"5\n", "the row is a number"),
    "null as a row": ("d.jsonl", b"null\n", "the row is null"),
    "lists in a list": ("d.json", b"[[1]]", "the row is a list"),
    "columns of lists": ("d.json", b'{"prompt":["a"],"chosen":["b"],"rejected":["c"]}', "prompt, message 1 must be"),
    "rows below a key": ("d.json", json.dumps({"data": GOOD}).encode(), "the columns are data"),
    "more after the list": ("d.json", b"[{}] x", "Extra data"),
    "null": ("d.jsonl", LINES + lines(GOOD[0] | {"chosen": None}), "chosen is null"),
    "a number": ("d.jsonl", each(chosen=5), "chosen is a number"),
    "NaN": ("d.jsonl", b'{"prompt": NaN, "chosen": "a", "rejected": "b"}\n', "prompt is a number"),
    "a boolean": ("d.jsonl", each(prompt=True), "prompt is true or false"),
    "an object": ("d.jsonl", each(rejected={"text": "a"}), "rejected is an object"),
    "a list of texts": ("d.jsonl", each(chosen=["a"]), "chosen, message 1 must be an object"),
    "a list of lists": ("d.jsonl", each(chosen=[[ANSWER]]), "chosen, message 1 must be an object"),
    "a message without content": ("d.jsonl", conversation(USER, {"role": "assistant"}), "with role and content"),
    "content null": ("d.jsonl", conversation(USER, ANSWER | {"content": None}), "content is null"),
    "content in parts": ("d.jsonl", conversation(USER, ANSWER | {"content": [{"text": "x"}]}), "content is a list"),
    "role tool": ("d.jsonl", conversation(USER, {"role": "tool", "content": "x"}), "role 'tool'"),
    "role null": ("d.jsonl", conversation(USER, {"role": None, "content": "x"}), "role None"),
    "role a list": ("d.jsonl", conversation(USER, {"role": ["user"], "content": "x"}), "role ['user']"),
    "no last answer": ("d.jsonl", lines(*[{"chosen": [USER, ANSWER, USER], "rejected": [USER, OTHER, USER]}] * 4),
                       "4 no common prompt"),
    "no turns": ("d.jsonl", lines({"chosen": [], "rejected": []}), "1 no common prompt"),
    "other prompts": ("d.jsonl", lines({"chosen": [USER, ANSWER], "rejected": [USER | {"content": "p"}, OTHER]}),
                      "1 no common prompt"),
    "all the same": ("d.jsonl", lines(*(row | {"rejected": row["chosen"]} for row in GOOD)), "12 identical responses"),
    "all empty": ("d.jsonl", each(rejected=""), "12 empty response"),
    "all blank": ("d.jsonl", each(chosen=" \u2003\n"), "12 empty response"),
    "half a character": ("d.jsonl", each(chosen="\ud800"), "half a surrogate pair at character 1"),
    "half a character in a turn": ("d.jsonl", conversation(USER, ANSWER | {"content": "a\udfff"}), "at character 2"),
    "demonstrations": ("d.jsonl", lines(*({"question": f"q{i}", "answer": "a"} for i in range(9))), "loss=sft"),
    "pairs and demonstrations": ("d.jsonl", LINES + lines({"prompt": "q", "response": "a"}),
                                 "pairs and demonstrations"),
    "a choice of 7": ("d.jsonl", lines({"info": POST, "summaries": TWO, "choice": 7}), "choice is 7"),
    "one summary": ("d.jsonl", lines({"info": POST, "summaries": TWO[:1], "choice": 0}), "a list of two"),
    "CSV": ("d.csv", b"prompt,chosen,rejected\na,b,c\n", "d.csv is no data file dil can read"),
    "CSV by another name": ("d.jsonl", b"prompt,chosen,rejected\na,b,c\n", "not valid JSON"),
    "no gzip": ("d.jsonl.gz", LINES, "Not a gzipped file"),
    "gzip cut": ("d.jsonl.gz", gzip.compress(LINES)[:-20], "ended before the end-of-stream"),
    "gzip damaged": ("d.jsonl.gz", gzip.compress(LINES)[:-8] + bytes(8), "CRC check failed"),
    "gzip and more": ("d.jsonl.gz", gzip.compress(LINES) + b"junk", "d.jsonl.gz cannot be read"),
    "no zst": ("d.jsonl.zst", LINES, "d.jsonl.zst cannot be read"),
    "zst cut": ("d.jsonl.zst", pa.compress(LINES, "zstd", asbytes=True)[:-20], "d.jsonl.zst cannot be read"),
    "no parquet": ("d.parquet", LINES, "d.parquet cannot be read"),
    "an empty parquet": ("d.parquet", b"", "d.parquet cannot be read"),
    "parquet cut": ("d.parquet", b"PAR1" + bytes(99), "d.parquet cannot be read"),
}  # fmt: skip
