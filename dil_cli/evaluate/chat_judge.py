"""A judge that is a chat model: asked in both orders, and never the same twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dil_cli.config.judging import OpenAIJudge
from dil_cli.evaluate.endpoint import Endpoint
from dil_cli.evaluate.judge import JudgePrompt, Match, Outcome, read_verdict
from dil_cli.evaluate.store import Lines, key_of

if TYPE_CHECKING:
    from dil_cli.tracking.console import ConsoleSink

ORDERS = ("policy first", "opponent first")
SHOWN = 160
"""Characters of an unreadable reply that are told."""


class ChatJudge:
    """Two questions a match; its value is the mean of both verdicts."""

    def __init__(self, config: OpenAIJudge, prompt: JudgePrompt) -> None:
        self.config, self.prompt = config, prompt
        self.endpoint = Endpoint(config)
        self.facts: dict[str, Any] = {
            "name": config.name,
            "model": config.model,
            "base_url": config.base_url,
            "prompt": prompt.name,
            "prompt_sha256": prompt.sha256,
            "temperature": config.temperature,
            "max_tokens": config.max_tokens,
        }

    def check(self) -> None:
        """See that the server answers and takes the key."""
        self.endpoint.check()

    def missing(self, matches: Sequence[Match], store: Lines) -> int:
        """Questions without a stored reply."""
        return sum(key not in store for match in matches for key, _ in self._questions(match))

    def outcomes(self, matches: Sequence[Match], store: Lines, console: ConsoleSink) -> list[Outcome]:
        """Ask what is missing; the result of each match.

        Raises:
            DilError: when the server stays away or refuses.
        """
        asked = [key for match in matches for key, _ in self._questions(match)]
        questions: dict[str, str] = {}
        about: dict[str, dict[str, Any]] = {}
        for match in matches:
            for order, (key, text) in zip(ORDERS, self._questions(match), strict=False):
                if key not in store:
                    questions[key], about[key] = text, {"row": match.row, "order": order}
        if questions:
            with console.phase("judging", len(questions)) as phase:
                for key, reply in self.endpoint.ask_all(questions, kept=lambda: sum(key in store for key in asked)):
                    verdict = read_verdict(reply.text)
                    said = {"verdict": verdict, "finish": reply.finish, "reply": reply.text}
                    store.add(key, {**about[key], "judge": self.config.model, **said})
                    phase.advance(1)
        return [self._outcome(match, store) for match in matches]

    def _questions(self, match: Match) -> list[tuple[str, str]]:
        """Name and text of both questions; none where the responses are the same.

        The address is not part of the name: a server that comes back elsewhere is the same judge.
        """
        if match.same:
            return []
        orders = (match.policy, match.opponent), (match.opponent, match.policy)
        texts = [self.prompt.fill(match.prompt, *order) for order in orders]
        config = self.config
        return [(key_of("openai", config.model, config.temperature, config.max_tokens, text), text) for text in texts]

    def _outcome(self, match: Match, store: Lines) -> Outcome:
        if match.same:
            return Outcome(0.5)
        # By the reply and not by the verdict beside it, so that a better reader mends old files.
        verdicts = [read_verdict(str(store[key]["reply"])) for key, _ in self._questions(match)]
        cut = sum(store[key]["finish"] == "length" for key, _ in self._questions(match))
        first_won = tuple(verdict == "A" for verdict in verdicts if verdict in {"A", "B"})
        if None in verdicts:
            key, _ = self._questions(match)[verdicts.index(None)]
            return Outcome(None, first_won, cut, _shown(store[key]))
        wins = {"A": (1.0, 0.0), "tie": (0.5, 0.5), "B": (0.0, 1.0)}
        return Outcome(sum(wins[str(verdict)][order] for order, verdict in enumerate(verdicts)) / 2, first_won, cut)


def _shown(line: Mapping[str, Any]) -> str:
    """A reply that could not be read, in a line of its beginning; why it ended where it is empty."""
    text = " ".join(str(line["reply"]).split()) or str(line["finish"])
    return text if len(text) <= SHOWN else f"{text[:SHOWN]} ..."
