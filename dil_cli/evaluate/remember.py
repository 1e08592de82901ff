"""A language model that remembers: what it has answered once is read from a file, what is new is written at once.

lm-eval has a cache of its own, whose key leaves the model out. This one has a file for each model and all that changes
its answers, a line an answer, so that an evaluation that was killed goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dil_cli.files import mark_used
from dil_cli.tracking.console import ConsoleSink, Phase


class Answers:
    """Answers by the hash of their request, as JSON lines; one that a killed process left unfinished is passed over."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._known: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        content = path.read_bytes() if path.is_file() else b""
        mark_used(path)
        for line in content.splitlines():
            with suppress(ValueError, KeyError, TypeError):
                row = json.loads(line)
                self._known[row["key"]] = row["answer"]
        # Unbuffered: every line reaches the system before the next answer is computed.
        self._file = path.open("ab", buffering=0)
        if content and not content.endswith(b"\n"):
            self._file.write(b"\n")

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def __getitem__(self, key: str) -> Any:
        answer = self._known[key]
        return tuple(answer) if isinstance(answer, list) else answer

    def put(self, key: str, answer: Any) -> bool:
        """Keep an answer; False if it is known already."""
        if key in self._known:
            return False
        self._known[key] = answer
        self._file.write(json.dumps({"key": key, "answer": answer}).encode() + b"\n")
        return True

    def close(self) -> None:
        """Let go of the file."""
        self._file.close()


class Remembering:
    """A model of lm-eval (`lm`) with answers that are kept; everything else is the model's own.

    Attributes:
        known: requests that were answered from the file.
        computed: requests that the model answered.
        cut: prompts that did not fit and lost their beginning.
        prompts: all prompts, the same one for several answers counted once.
    """

    def __init__(self, lm: Any, answers: Answers, console: ConsoleSink, name: str) -> None:
        self._lm, self._answers, self._console, self._name = lm, answers, console, name
        self._phase: Phase | None = None
        self.known = self.computed = self.cut = self.prompts = 0
        lm.set_cache_hook(self)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._lm, name)

    def loglikelihood(self, requests: Sequence[Any]) -> list[Any]:
        """Log-prob of a continuation, and whether it is the greedy one."""
        longest: dict[str, str] = {}
        for context, continuation in (request.args for request in requests):
            longest[context] = max(longest.get(context, ""), continuation, key=len)
        # The last token is predicted, not read.
        self._count_cut(((context + answer, self._lm.max_length + 1) for context, answer in longest.items()))
        return self._ask("loglikelihood", requests)

    def loglikelihood_rolling(self, requests: Sequence[Any]) -> list[Any]:
        """Log-prob of a whole text."""
        return self._ask("loglikelihood_rolling", requests)

    def generate_until(self, requests: Sequence[Any]) -> list[Any]:
        """Greedy text up to a stop word; sampled text is not kept."""
        room = {
            context: self._lm.max_length - kwargs.get("max_gen_toks", self._lm.max_gen_toks)
            for context, kwargs in (request.args for request in requests)
        }
        self._count_cut(room.items())
        return self._ask("generate_until", requests)

    def add_partial(self, kind: str, args: Iterable[Any], answer: Any) -> None:
        """lm-eval's hook: an answer is there; the others of its batch and after it are not yet."""
        args = list(args)
        if (_is_sampled(kind, args) or self._answers.put(request_key(kind, args), answer)) and self._phase is not None:
            self._phase.advance(1)

    def _ask(self, kind: str, requests: Sequence[Any]) -> list[Any]:
        keys = [None if _is_sampled(kind, r.args) else request_key(kind, r.args) for r in requests]
        missing: dict[Any, Any] = {}
        for i, (key, request) in enumerate(zip(keys, requests, strict=True)):
            if key is None or key not in self._answers:
                missing.setdefault(i if key is None else key, request)
        self.known += len(requests) - len(missing)
        self.computed += len(missing)
        ask: Callable[..., list[Any]] = getattr(self._lm, kind)
        fresh: dict[Any, Any] = {}
        if missing:
            before = "" if len(missing) == len(requests) else f" ({len(requests) - len(missing)} are known)"
            with self._console.phase(f"{self._name}{before}", len(missing)) as self._phase:
                fresh = dict(zip(missing, ask(list(missing.values()), disable_tqdm=True), strict=True))
            self._phase = None
        else:
            self._console.note(f"{self._name}: all {len(requests)} answers are known")
        for key, answer in fresh.items():
            if isinstance(key, str):  # a backend may leave its hook out
                self._answers.put(key, answer)
        return [fresh[i] if key is None else self._answers[key] for i, key in enumerate(keys)]

    def _count_cut(self, prompts: Iterable[tuple[str, int]]) -> None:
        for text, room in prompts:
            self.prompts += 1
            self.cut += len(self._lm.tok_encode(text)) > room


def request_key(kind: str, args: Iterable[Any]) -> str:
    """32 hex digits over a request: what is asked, and the whole prompt."""
    return hashlib.sha256(json.dumps([kind, *args], sort_keys=True).encode()).hexdigest()[:32]


def _is_sampled(kind: str, args: Sequence[Any]) -> bool:
    """Whether asking again would give another answer."""
    return kind == "generate_until" and bool(args[1].get("do_sample", False))
