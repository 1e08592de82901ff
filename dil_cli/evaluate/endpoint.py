"""Replies from an OpenAI-compatible endpoint, had with patience.

The key comes from the environment and goes to the client alone. A server may send it back, so whatever a server says
has it taken out before it is kept or shown; and the client's own errors, which hold requests, end here.
"""

from __future__ import annotations

import json
import os
import queue
import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from dil_cli.config.judging import OpenAIJudge
from dil_cli.errors import DilError

LONGEST_WAIT_S = 60.0
CHECK_RETRIES, CHECK_TIMEOUT_S = 2, 10.0
"""A wrong address shall show at once; a server that was there and went away is given more time."""

GRACE_S = 10.0
"""Once one request has failed for good, those on their way have so long to come."""

NEWER_LIMIT = "max_completion_tokens"
"""What some servers call `max_tokens`, and take by no other name."""

NOT_ANSWERED = ("context_length", "context length", "maximum context", "content_filter", "content management policy")
"""What servers say of a question that they will never answer; it counts as one without a verdict."""


@dataclass(frozen=True)
class Reply:
    """What the model wrote, and why it stopped."""

    text: str
    finish: str


class _Stopped(Exception):
    """Another thread has given up."""


class _Garbage(Exception):
    """An answer that is none of a chat completion; its text says what it is."""


class Endpoint:
    """Chat completions of one server, several at once, each tried again until it comes or `retries` are used up."""

    def __init__(self, config: OpenAIJudge) -> None:
        try:
            import openai
        except ImportError as error:
            raise DilError(
                "judge=openai needs the openai package", "judge=openai", "pip install 'dil[judge]'"
            ) from error
        self.config, self._openai = config, openai
        self._key = os.environ.get(config.key_env, "").strip()
        if not (self._key.isascii() and self._key.isprintable()):
            raise DilError(
                f"the key in {config.key_env} holds characters that no key has", config.key_env, "export it again"
            )
        self._client = openai.OpenAI(
            base_url=config.base_url, api_key=self._key or "none", max_retries=0, timeout=config.timeout
        )
        self._limit = "max_tokens"
        self._stop = threading.Event()

    def check(self) -> None:
        """Any answer to a small request will do, but a refused key: not every server can list its models.

        Raises:
            DilError: when there is no answer, or the key is refused.
        """
        status = self._openai.APIStatusError

        def send() -> None:
            try:
                self._client.models.with_raw_response.list(timeout=min(self.config.timeout, CHECK_TIMEOUT_S))
            except status as error:
                if error.status_code in {401, 403}:
                    raise

        self._try(send, "", min(self.config.retries, CHECK_RETRIES))

    def ask_all(self, questions: Mapping[str, str], kept: Callable[[], int]) -> Iterator[tuple[str, Reply]]:
        """Replies by the name of their question, in the order in which they come.

        Args:
            questions: name to text.
            kept: asked at an error: how many replies are safe.

        Raises:
            DilError: when a question cannot be answered; those that are still on their way are given up.
        """
        waiting: queue.SimpleQueue[tuple[str, str]] = queue.SimpleQueue()
        for question in questions.items():
            waiting.put(question)
        done: queue.SimpleQueue[tuple[str, Reply | Exception] | None] = queue.SimpleQueue()

        def work() -> None:
            name = ""
            try:
                while not self._stop.is_set():
                    name, text = waiting.get_nowait()
                    done.put((name, self.ask(text)))
            except (queue.Empty, _Stopped):
                pass
            except Exception as error:
                done.put((name, error))
            finally:
                done.put(None)

        self._stop.clear()
        working = min(self.config.concurrency, len(questions))
        # Daemons: Ctrl-C shall not wait for a server that has nothing to say.
        for _ in range(working):
            threading.Thread(target=work, daemon=True).start()
        failure: Exception | None = None
        grace: float | None = None
        try:
            while working:
                try:
                    answer = done.get(timeout=None if grace is None else max(0.0, grace - time.monotonic()))
                except queue.Empty:
                    break
                if answer is None:
                    working -= 1
                elif not isinstance(answer[1], Exception):
                    yield answer[0], answer[1]  # also after a failure: it may have been paid for
                elif failure is None:
                    failure, grace = answer[1], time.monotonic() + GRACE_S
                    self._stop.set()
        finally:
            self._stop.set()
        if isinstance(failure, DilError):
            failure.fix += f"; {kept()} replies are kept, the same command goes on"
        if failure is not None:
            raise failure

    def ask(self, text: str) -> Reply:
        """One reply.

        Raises:
            DilError: when none can be had.
        """
        reply: Reply = self._try(lambda: self._send(text), text, self.config.retries)
        return reply

    def _send(self, text: str) -> Reply:
        config = self.config
        limit = self._limit
        more: dict[str, Any] = {limit: config.max_tokens}
        if config.temperature is not None:
            more["temperature"] = config.temperature
        try:
            response = self._client.chat.completions.with_raw_response.create(
                model=config.model, messages=[{"role": "user", "content": text}], **more
            )
        except self._openai.BadRequestError as error:
            if limit != NEWER_LIMIT and NEWER_LIMIT in self._said(error):
                self._limit = NEWER_LIMIT
                return self._send(text)
            raise
        # Read here and not by the client, which takes much for a completion.
        try:
            choice = json.loads(response.http_response.content)["choices"][0]
            content = choice["message"].get("content")
            if content is not None and not isinstance(content, str):
                raise TypeError
        except (ValueError, LookupError, TypeError, AttributeError):
            shown = self._clean(response.http_response.content[:60].decode(errors="replace"))
            raise _Garbage(f"what it sends is no chat completion: {shown!r}") from None
        return Reply(self._clean(content or ""), str(choice.get("finish_reason")))

    def _try(self, send: Callable[[], Any], text: str, retries: int) -> Any:
        """`send` until it works, is refused, or has failed once more than `retries` times."""
        for attempt in range(retries + 1):
            try:
                return send()
            except _Garbage as garbage:
                trouble, asked_wait = str(garbage), None
            except self._openai.APIStatusError as error:
                said = self._said(error)
                if text and error.status_code in {400, 413, 422} and any(word in said.lower() for word in NOT_ANSWERED):
                    return Reply("", f"refused: {said}")
                used_up = error.status_code == 429 and "insufficient_quota" in f"{error.code} {error.type}"
                if used_up or (error.status_code < 500 and error.status_code not in {408, 409, 425, 429}):
                    raise self._refused(error.status_code, said) from None
                trouble, asked_wait = f"{error.status_code}: {said}", error.response.headers.get("retry-after")
            except self._openai.APITimeoutError:
                trouble, asked_wait = f"no answer within {self.config.timeout:g} s", None
            except self._openai.APIConnectionError as error:
                trouble, asked_wait = self._clean(str(error.__cause__ or error)), None
            if attempt < retries and self._stop.wait(self._wait(attempt, asked_wait)):
                raise _Stopped
        raise DilError(
            f"the judge does not answer in {retries + 1} tries ({trouble})", f"judge.base_url={self.config.base_url}",
            "start the server, or see to the address",
        ) from None  # fmt: skip

    def _wait(self, attempt: int, asked: str | None) -> float:
        """Seconds before the next try: what the server asks for, else twice as long each time, apart from others."""
        try:
            return min(max(0.0, float(asked or "")), LONGEST_WAIT_S)
        except ValueError:
            return min(self.config.backoff * 2.0**attempt, LONGEST_WAIT_S) * random.uniform(0.75, 1)

    def _refused(self, status: int, said: str) -> DilError:
        config = self.config
        fix = f"judge.model={config.model}: is it one of the server's? judge.base_url ends in /v1 on most servers"
        if status in {401, 403}:
            fix = f"export {config.key_env}=...; the key is read from there and nowhere else"
        elif "temperature" in said:
            fix = "judge.temperature=null"
        return DilError(f"the judge refuses ({status}): {said}", f"judge.base_url={config.base_url}", fix)

    def _said(self, error: Any) -> str:
        """The server's reason in a line."""
        body = error.body
        if isinstance(body, dict):
            body = body.get("message") or body.get("detail") or body
        text = self._clean(" ".join(str(body or error.message).split()))
        return text if len(text) <= 200 else f"{text[:200]} ..."

    def _clean(self, text: str) -> str:
        return text.replace(self._key, "***") if self._key else text
