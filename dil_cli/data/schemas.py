"""The layouts in which this field publishes preference data, each read into one `PreferencePair`.

A row's layout is recognised from its columns; other columns are ignored.

| Columns | Content, and where the prompt is | Published so by |
|---|---|---|
| prompt, chosen, rejected | three texts; the prompt becomes one user turn | plain sets, GSM8K pairs |
| prompt, chosen, rejected | a text, two message lists that hold the prompt | UltraFeedback Binarized |
| prompt, chosen, rejected | a message list, two texts or message lists | TRL's conversational sets |
| chosen, rejected | two transcripts `Human: .. Assistant: ..`; the turns they share | Anthropic HH |
| chosen, rejected | two message lists; the turns they share | implicit-prompt sets |
| info, summaries, choice | a post, two summaries; the post becomes a TL;DR prompt | summarize_from_feedback |
| question, answer | a demonstration (no rejected response) | GSM8K |
| prompt, response (or completion) | a demonstration; texts or message lists | SFT sets |

A message is an object with `role` (system, user, assistant) and `content` (text). In all of them each
response is exactly one assistant turn after the shared turns; a pair of another form is skipped.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from dil_cli.data.rows import Row, kind
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

ROLES = ("system", "user", "assistant")
SPEAKER = re.compile(r"\n\n(Human|Assistant):")

NO_COMMON_PROMPT = "no common prompt"
EMPTY = "empty response"
IDENTICAL = "identical responses"
NO_POST = "no Reddit post"

Turns = tuple[Message, ...]
Parsed = tuple[Turns, str, str | None]


class Skip(Exception):
    """A well-formed row that cannot be used and is passed over; its text says why."""


class _BadValue(Exception):
    """A value of the wrong kind; its text is what the user reads."""


@dataclass(frozen=True)
class Schema:
    """A layout: the columns it needs, and the function that reads them in that order."""

    columns: tuple[str, ...]
    parse: Callable[..., Parsed]


def recognise(row: Row) -> Schema:
    """The layout of a row, from its columns.

    Raises:
        DilError: naming the columns there are and those that are missing.
    """
    for schema in SCHEMAS:
        if set(schema.columns) <= row.values.keys():
            return schema
    nearest = min(SCHEMAS, key=lambda schema: len(set(schema.columns) - row.values.keys()))
    raise _missing(nearest, row)


def to_pair(row: Row, schema: Schema) -> PreferencePair:
    """The row as a pair.

    Raises:
        Skip: if the row is well-formed but of no use.
        DilError: if a column is missing or of the wrong kind; names the row.
    """
    if not set(schema.columns) <= row.values.keys():
        raise _missing(schema, row)
    try:
        prompt, chosen, rejected = schema.parse(*(row.values[column] for column in schema.columns))
    except _BadValue as bad:
        raise DilError(str(bad), where=row.where, fix="mend or remove the row") from None
    if not chosen.strip() or (rejected is not None and not rejected.strip()):
        raise Skip(EMPTY)
    if rejected is not None and chosen.strip() == rejected.strip():
        raise Skip(IDENTICAL)
    return PreferencePair(row=row.number, prompt=prompt, chosen=chosen, rejected=rejected)


def _missing(schema: Schema, row: Row) -> DilError:
    missing = [column for column in schema.columns if column not in row.values]
    there = ", ".join(sorted(map(str, row.values))) or "none"
    return DilError(
        f"no column {' or '.join(missing)}; the columns are {there}",
        where=row.where,
        fix=f"name the columns {'; '.join(', '.join(s.columns) for s in SCHEMAS)}",
    )


def _explicit_pair(prompt: Any, chosen: Any, rejected: Any) -> Parsed:
    prompt = _text_or_turns(prompt, "prompt")
    return _shared(
        _conversation(prompt, _text_or_turns(chosen, "chosen")),
        _conversation(prompt, _text_or_turns(rejected, "rejected")),
    )


def _implicit_pair(chosen: Any, rejected: Any) -> Parsed:
    return _shared(_own_turns(chosen, "chosen"), _own_turns(rejected, "rejected"))


def _comparison(info: Any, summaries: Any, choice: Any) -> Parsed:
    if not isinstance(info, Mapping):
        raise _BadValue(f"info is {kind(info)}, it must be an object with post, title, subreddit")
    if not isinstance(summaries, list) or len(summaries) != 2:
        raise _BadValue("summaries must be a list of two objects with text")
    if choice not in (0, 1):
        raise _BadValue(f"choice is {choice!r}, it must be 0 or 1")
    texts = [
        _text(s.get("text") if isinstance(s, Mapping) else s, f"summaries[{i}].text") for i, s in enumerate(summaries)
    ]
    # The same file holds comparisons of news summaries, which have an article and no post.
    if any(info.get(field) is None for field in ("subreddit", "title", "post")):
        raise Skip(NO_POST)
    subreddit, title, post = (_text(info[f], f"info.{f}") for f in ("subreddit", "title", "post"))
    prompt = f"SUBREDDIT: r/{subreddit}\n\nTITLE: {title}\n\nPOST: {post}\n\nTL;DR:"
    # One space, so that "TL;DR:" and the first word stay separate tokens.
    first, second = (f" {text.strip()}" if text.strip() else "" for text in texts)
    chosen, rejected = (first, second) if choice == 0 else (second, first)
    return (Message("user", prompt),), chosen, rejected


def _question_answer(question: Any, answer: Any) -> Parsed:
    return (Message("user", _text(question, "question")),), _text(answer, "answer"), None


def _demonstration(column: str) -> Callable[..., Parsed]:
    def parse(prompt: Any, response: Any) -> Parsed:
        turns = _conversation(_text_or_turns(prompt, "prompt"), _text_or_turns(response, column))
        if len(turns) < 2 or turns[-1].role != "assistant":
            raise Skip(NO_COMMON_PROMPT)
        return turns[:-1], turns[-1].content, None

    return parse


SCHEMAS = (
    Schema(("prompt", "chosen", "rejected"), _explicit_pair),
    Schema(("chosen", "rejected"), _implicit_pair),
    Schema(("info", "summaries", "choice"), _comparison),
    Schema(("question", "answer"), _question_answer),
    Schema(("prompt", "response"), _demonstration("response")),
    Schema(("prompt", "completion"), _demonstration("completion")),
)


def _shared(chosen: Turns, rejected: Turns) -> Parsed:
    """Both conversations must be the same turns and then one assistant turn each."""
    one_answer_each = len(chosen) >= 2 and chosen[-1].role == "assistant" == rejected[-1].role
    if not one_answer_each or chosen[:-1] != rejected[:-1]:
        raise Skip(NO_COMMON_PROMPT)
    return chosen[:-1], chosen[-1].content, rejected[-1].content


def _conversation(prompt: str | Turns, response: str | Turns) -> Turns:
    """Prompt and response as one; a message list may bring the prompt's turns itself."""
    turns = (Message("user", prompt),) if isinstance(prompt, str) else prompt
    if isinstance(response, str):
        return (*turns, Message("assistant", response))
    if isinstance(prompt, str):
        brings_prompt = bool(response) and response[0].role != "assistant"
    else:
        brings_prompt = response[: len(turns)] == turns
    return response if brings_prompt else turns + response


def _own_turns(value: Any, column: str) -> Turns:
    """A conversation that holds its prompt: a message list, or an HH transcript with every turn stripped."""
    conversation = _text_or_turns(value, column)
    if not isinstance(conversation, str):
        return conversation
    if not conversation.startswith("\n\nHuman:"):
        raise Skip(NO_COMMON_PROMPT)
    _, *parts = SPEAKER.split(conversation)
    roles = {"Human": "user", "Assistant": "assistant"}
    return tuple(Message(roles[who], said.strip()) for who, said in zip(parts[::2], parts[1::2], strict=True))


def _text_or_turns(value: Any, column: str) -> str | Turns:
    if isinstance(value, str):
        return _text(value, column)
    if isinstance(value, list):
        return _turns(value, column)
    raise _BadValue(f"{column} is {kind(value)}, it must be text or a list of messages")


def _turns(messages: Iterable[Any], column: str) -> Turns:
    turns = []
    for number, message in enumerate(messages, start=1):
        where = f"{column}, message {number}"
        if not isinstance(message, Mapping) or not {"role", "content"} <= message.keys():
            raise _BadValue(f"{where} must be an object with role and content")
        if message["role"] not in ROLES:
            raise _BadValue(f"{where} has role {message['role']!r}, it must be one of {', '.join(ROLES)}")
        turns.append(Message(message["role"], _text(message["content"], f"{where}, content")))
    return tuple(turns)


def _text(value: Any, column: str) -> str:
    if not isinstance(value, str):
        raise _BadValue(f"{column} is {kind(value)}, it must be text")
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise _BadValue(f"{column} holds half a surrogate pair at character {error.start + 1}") from None
    return value
