"""What judges have in common: two responses to a prompt go in, who won comes out."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol

from dil_cli.errors import DilError
from dil_cli.evaluate.store import Lines
from dil_cli.types import Message

if TYPE_CHECKING:
    from dil_cli.tracking.console import ConsoleSink

Verdict = Literal["A", "B", "tie"]

PROMPTS = Path(__file__).resolve().parent / "prompts"
PLACES = ("{prompt}", "{a}", "{b}")
SUMMARY_ENDS = "TL;DR:"
SPEAKERS = {"system": "System", "user": "User", "assistant": "Assistant"}


@dataclass(frozen=True)
class Match:
    """Two responses to one prompt: the checkpoint's and its opponent's."""

    row: int
    prompt: tuple[Message, ...]
    policy: str
    opponent: str

    @property
    def same(self) -> bool:
        """Whether there is nothing to choose: a tie, whoever judges."""
        return self.policy.strip() == self.opponent.strip()


@dataclass(frozen=True)
class Outcome:
    """A match's result for the checkpoint, 0 to 1, None where a verdict could not be read.

    `first_won` has, for each verdict that names a winner, whether that was the response shown first; `cut` counts
    replies that `judge.max_tokens` ended; `unread` is the beginning of a reply without a verdict, or why there is none.
    """

    value: float | None
    first_won: tuple[bool, ...] = ()
    cut: int = 0
    unread: str = ""


class Judge(Protocol):
    """`facts` say in the record who judged."""

    facts: dict[str, Any]

    def missing(self, matches: Sequence[Match], store: Lines) -> int:
        """How many answers are still to be had for these matches."""

    def check(self) -> None:
        """See that it can be asked, before the work begins.

        Raises:
            DilError: when it cannot.
        """

    def outcomes(self, matches: Sequence[Match], store: Lines, console: ConsoleSink) -> list[Outcome]:
        """The result of each match, by answers from `store` and new ones that go there."""


@dataclass(frozen=True)
class JudgePrompt:
    """The text that a chat model is asked, with a place for the prompt and each response."""

    name: str
    text: str

    @property
    def sha256(self) -> str:
        """Of the text, before anything is put in."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    def fill(self, prompt: Sequence[Message], first: str, second: str) -> str:
        """The question; what stands in a response is never taken for a place of its own."""
        values = dict(zip(PLACES, (transcript(prompt), first.strip(), second.strip()), strict=True))
        return re.sub("|".join(map(re.escape, PLACES)), lambda place: values[place.group()], self.text)


def choose_prompt(chosen: str | None, prompts: Sequence[Sequence[Message]]) -> JudgePrompt:
    """The one that was chosen, by name or file; without a choice the one for the task at hand.

    Raises:
        DilError: for a file that is not there or lacks a place.
    """
    if chosen is None:
        summaries = all(is_summary(prompt) for prompt in prompts)
        chosen = "summary" if summaries else "dialogue"
    own = {path.stem: path for path in PROMPTS.glob("*.txt")}
    path = own.get(chosen) or Path(chosen).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise DilError(
            f"there is no judge prompt {chosen} that can be read", f"judge.prompt={chosen}",
            f"judge.prompt={' or '.join(sorted(own))}, or a text file",
        ) from error  # fmt: skip
    lacking = [place for place in PLACES if place not in text]
    if lacking:
        raise DilError(
            f"the judge prompt has no {' and no '.join(lacking)}", str(path),
            f"write {', '.join(PLACES)} where prompt, first and second response belong",
        )  # fmt: skip
    return JudgePrompt(path.stem if chosen in own else str(chosen), text)


def is_summary(prompt: Sequence[Message]) -> bool:
    """Whether a prompt asks for a summary, as the TL;DR data do it."""
    return len(prompt) == 1 and prompt[0].content.rstrip().endswith(SUMMARY_ENDS)


def transcript(prompt: Sequence[Message]) -> str:
    """A prompt as a judge reads it: a post alone, or who said what."""
    if is_summary(prompt):
        return prompt[0].content.rstrip().removesuffix(SUMMARY_ENDS).strip()
    return "\n\n".join(f"{SPEAKERS[turn.role]}: {turn.content.strip()}" for turn in prompt)


def read_verdict(reply: str) -> Verdict | None:
    """What a reply says: the line `Verdict: A`, or nothing but `A`; None where it says neither, or two things."""
    reply = reply.rpartition("</think>")[2]
    lines = [line.strip(" \t*_#>`\"'.") for line in reply.strip().splitlines()]
    said = [
        re.fullmatch(r"(?:final )?verdict[*_]*\s*:[*_\s]*(?:summary |reply )?(a|b|tie)", line, re.IGNORECASE)
        for line in lines
    ]
    found = {match.group(1).lower() for match in said if match}
    if not found and lines and len(lines) == 1 and lines[0] in {"A", "B", "tie", "Tie"}:
        found = {lines[0].lower()}
    verdicts: dict[str, Verdict] = {"a": "A", "b": "B", "tie": "tie"}
    return verdicts[found.pop()] if len(found) == 1 else None
