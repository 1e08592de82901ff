"""A judge on this machine: the response with the higher score wins, whichever is shown first."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from dil_cli.config.judging import LocalJudge
from dil_cli.evaluate.judge import Match, Outcome
from dil_cli.evaluate.scorers import Scorer
from dil_cli.evaluate.store import Lines, key_of
from dil_cli.types import PreferencePair

if TYPE_CHECKING:
    from dil_cli.tracking.console import ConsoleSink

CHUNK = 32
"""Responses that are scored together, and lost together when the process is killed."""


class ScoreJudge:
    """Scores are kept by response, not by match; one within `tie` of the other is as good."""

    def __init__(self, judge: LocalJudge, scorer: Scorer) -> None:
        self.name, self.tie, self.scorer = judge.name, judge.tie, scorer
        self.facts: dict[str, Any] = {"name": self.name, "path": judge.path, "tie": judge.tie, **scorer.facts}

    def check(self) -> None:
        """It is loaded, so it can be asked."""

    def missing(self, matches: Sequence[Match], store: Lines) -> int:
        """Responses without a stored score."""
        return len(self._unscored(matches, store))

    def outcomes(self, matches: Sequence[Match], store: Lines, console: ConsoleSink) -> list[Outcome]:
        """Score what is missing; the result of each match."""
        missing = list(self._unscored(matches, store).items())
        if missing:
            with console.phase("judging", len(missing)) as phase:
                for start in range(0, len(missing), CHUNK):
                    self._score(missing[start : start + CHUNK], store)
                    phase.advance(min(CHUNK, len(missing) - start))
        return [self._outcome(match, store) for match in matches]

    def _score(self, chunk: Sequence[tuple[str, tuple[Match, str]]], store: Lines) -> None:
        pairs = [
            PreferencePair(row=number, prompt=match.prompt, chosen=text, rejected=None)
            for number, (_, (match, text)) in enumerate(chunk)
        ]
        for (key, (match, text)), score in zip(chunk, self.scorer.score(pairs), strict=True):
            side = "policy" if text == match.policy else "opponent"
            store.add(key, {"row": match.row, "judge": self.name, "side": side, "score": score})

    def _unscored(self, matches: Sequence[Match], store: Lines) -> dict[str, tuple[Match, str]]:
        sides = [(match, text) for match in matches if not match.same for text in (match.policy, match.opponent)]
        named = {self._key(match, text): (match, text) for match, text in sides}
        return {key: side for key, side in named.items() if key not in store}

    def _key(self, match: Match, text: str) -> str:
        return key_of(self.name, self.scorer.facts, [[turn.role, turn.content] for turn in match.prompt], text)

    def _outcome(self, match: Match, store: Lines) -> Outcome:
        if match.same:
            return Outcome(0.5)
        ours, theirs = (store[self._key(match, text)]["score"] for text in (match.policy, match.opponent))
        if ours is None or theirs is None:
            return Outcome(None, unread="the judge's chat template does not take these turns")
        return Outcome(0.5 if abs(ours - theirs) <= self.tie else float(ours > theirs))
