from __future__ import annotations

import pytest

from dil_cli.data.rows import Row
from dil_cli.data.schemas import Skip, recognise, to_pair
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

U, A, S = "user", "assistant", "system"


def turn(role, content):
    return {"role": role, "content": content}


def read(values):
    row = Row(7, "pairs.jsonl, row 7", values)
    return to_pair(row, recognise(row))


def expected(prompt, chosen, rejected):
    return PreferencePair(7, tuple(Message(role, content) for role, content in prompt), chosen, rejected)


Q, GOOD, BAD = turn(U, "q"), turn(A, "good"), turn(A, "bad")
INFO = {"id": "t3", "post": "I ran.", "title": "Run", "subreddit": "running", "site": None, "article": None}
LAYOUTS = {
    "strings": ({"prompt": "q", "chosen": "good", "rejected": "bad", "score": 1}, ([(U, "q")], "good", "bad")),
    "ultrafeedback": (
        {"prompt": "q", "prompt_id": "x", "chosen": [Q, GOOD], "rejected": [Q, BAD], "messages": [Q, GOOD]},
        ([(U, "q")], "good", "bad"),
    ),
    "ultrafeedback with a system turn": (
        {"prompt": "q", "chosen": [turn(S, "s"), Q, GOOD], "rejected": [turn(S, "s"), Q, BAD]},
        ([(S, "s"), (U, "q")], "good", "bad"),
    ),
    "text prompt, responses as lists": (
        {"prompt": "q", "chosen": [GOOD], "rejected": [BAD]}, ([(U, "q")], "good", "bad"),
    ),
    "message prompt, text responses": (
        {"prompt": [turn(S, "s"), Q], "chosen": "good", "rejected": "bad"}, ([(S, "s"), (U, "q")], "good", "bad"),
    ),
    "message prompt, responses as lists": (
        {"prompt": [Q], "chosen": [GOOD], "rejected": [BAD]}, ([(U, "q")], "good", "bad"),
    ),
    "message prompt, repeated in the lists": (
        {"prompt": [Q], "chosen": [Q, GOOD], "rejected": [Q, BAD]}, ([(U, "q")], "good", "bad"),
    ),
    "message prompt, the lists go on from it": (
        {"prompt": [Q], "chosen": [turn(U, "more"), GOOD], "rejected": [turn(U, "more"), BAD]},
        ([(U, "q"), (U, "more")], "good", "bad"),
    ),
    "hh transcript": (
        {
            "chosen": "\n\nHuman: Hi \n\nAssistant: Hello\n\nHuman: q\nmore\n\nAssistant: good ",
            "rejected": "\n\nHuman: Hi \n\nAssistant: Hello\n\nHuman: q\nmore\n\nAssistant:\nbad",
        },
        ([(U, "Hi"), (A, "Hello"), (U, "q\nmore")], "good", "bad"),
    ),
    "implicit messages": ({"chosen": [Q, GOOD], "rejected": [Q, BAD]}, ([(U, "q")], "good", "bad")),
    "comparison, second chosen": (
        {"info": INFO, "summaries": [{"text": " one."}, {"text": "two. "}], "choice": 1, "worker": "w"},
        ([(U, "SUBREDDIT: r/running\n\nTITLE: Run\n\nPOST: I ran.\n\nTL;DR:")], " two.", " one."),
    ),
    "question and answer": ({"question": "q", "answer": "good"}, ([(U, "q")], "good", None)),
    "prompt and response": ({"prompt": "q", "response": "good"}, ([(U, "q")], "good", None)),
    "prompt and completion": ({"prompt": [Q], "completion": [GOOD]}, ([(U, "q")], "good", None)),
}  # fmt: skip


@pytest.mark.parametrize(("values", "pair"), LAYOUTS.values(), ids=LAYOUTS.keys())
def test_layout_is_read(values, pair):
    assert read(values) == expected(*pair)


SKIPPED = {
    "empty response": [
        {"prompt": "q", "chosen": "good", "rejected": " \n"},
        {"chosen": "\n\nHuman: q\n\nAssistant: ", "rejected": "\n\nHuman: q\n\nAssistant: bad"},
        {"info": INFO, "summaries": [{"text": " "}, {"text": "two"}], "choice": 1},
        {"question": "q", "answer": ""},
    ],
    "identical responses": [
        {"prompt": "q", "chosen": "same", "rejected": "same\n"},
        {"chosen": [Q, GOOD], "rejected": [Q, GOOD]},
    ],
    "no common prompt": [
        {"chosen": [Q, GOOD], "rejected": [turn(U, "other"), BAD]},
        {"chosen": [Q, GOOD, GOOD], "rejected": [Q, BAD]},
        {"chosen": [Q, GOOD, Q], "rejected": [Q, GOOD, turn(U, "p")]},
        {"chosen": [GOOD], "rejected": [BAD]},
        {"chosen": [], "rejected": []},
        {"chosen": "good", "rejected": "bad"},
        {
            "chosen": "\n\nHuman: q\n\nAssistant: a\n\nAssistant: b",
            "rejected": "\n\nHuman: q\n\nAssistant: a",
        },
        {"prompt": [Q], "chosen": [GOOD, Q, GOOD], "rejected": [BAD]},
        {"prompt": "q", "response": [Q]},
    ],
    "no Reddit post": [
        {"info": INFO | {"post": None}, "summaries": [{"text": "one"}, {"text": "two"}], "choice": 0},
    ],
}


@pytest.mark.parametrize(("reason", "values"), [(r, v) for r, rows in SKIPPED.items() for v in rows])
def test_useless_row_is_skipped_with_its_reason(reason, values):
    with pytest.raises(Skip, match=f"^{reason}$"):
        read(values)


WRONG = [
    ({"prompt": None, "chosen": "a", "rejected": "b"}, "prompt is null, it must be text or a list of messages"),
    ({"prompt": "q", "chosen": 3, "rejected": "b"}, "chosen is a number, it must be text or a list of messages"),
    ({"prompt": "q", "chosen": "a", "rejected": {"a": 1}},
     "rejected is an object, it must be text or a list of messages"),
    ({"question": "q", "answer": ["a"]}, "answer is a list, it must be text"),
    ({"prompt": "q", "chosen": ["a"], "rejected": "b"}, "chosen, message 1 must be an object with role and content"),
    ({"chosen": [Q, {"role": A}], "rejected": [Q, BAD]}, "chosen, message 2 must be an object with role and content"),
    ({"chosen": [turn("human", "q"), GOOD], "rejected": [Q, BAD]},
     "chosen, message 1 has role 'human', it must be one of system, user, assistant"),
    ({"chosen": [turn(["user"], "q"), GOOD], "rejected": [Q, BAD]},
     "chosen, message 1 has role ['user'], it must be one of system, user, assistant"),
    ({"chosen": [Q, turn(A, None)], "rejected": [Q, BAD]}, "chosen, message 2, content is null, it must be text"),
    ({"prompt": "q\ud83d", "chosen": "a", "rejected": "b"}, "prompt holds half a surrogate pair at character 2"),
    ({"info": None, "summaries": [], "choice": 0}, "info is null, it must be an object with post, title, subreddit"),
    ({"info": INFO, "summaries": [{"text": "a"}], "choice": 0}, "summaries must be a list of two objects with text"),
    ({"info": INFO, "summaries": [{"text": "a"}, {}], "choice": 0}, "summaries[1].text is null, it must be text"),
    ({"info": INFO, "summaries": [{"text": "a"}, {"text": "b"}], "choice": 2}, "choice is 2, it must be 0 or 1"),
]  # fmt: skip


@pytest.mark.parametrize(("values", "what"), WRONG)
def test_wrong_value_is_an_error_naming_the_row(values, what):
    with pytest.raises(DilError) as caught:
        read(values)
    assert str(caught.value).splitlines() == [
        f"error: {what}", "where: pairs.jsonl, row 7", "fix:   mend or remove the row",
    ]  # fmt: skip


FIX = (
    "fix:   name the columns prompt, chosen, rejected; chosen, rejected; info, summaries, choice; "
    "question, answer; prompt, response; prompt, completion"
)


@pytest.mark.parametrize(
    ("values", "what"),
    [
        (
            {"prompt": "q", "chosen": "a", "label": 1},
            "no column rejected; the columns are chosen, label, prompt",
        ),
        ({"question": "q"}, "no column answer; the columns are question"),
        ({"text": "a"}, "no column chosen or rejected; the columns are text"),
        ({}, "no column chosen or rejected; the columns are none"),
    ],
)
def test_missing_column_names_what_there_is_and_what_is_needed(values, what):
    with pytest.raises(DilError) as caught:
        read(values)
    assert str(caught.value).splitlines() == [f"error: {what}", "where: pairs.jsonl, row 7", FIX]


def test_later_row_without_a_column_is_an_error():
    schema = recognise(Row(1, "f, row 1", {"prompt": "q", "chosen": "a", "rejected": "b"}))
    with pytest.raises(DilError, match="no column rejected; the columns are chosen, prompt") as caught:
        to_pair(Row(2, "f, row 2", {"prompt": "q", "chosen": "a"}), schema)
    assert caught.value.where == "f, row 2"
