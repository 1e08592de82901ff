"""What `benchmark=winrate` and its judges take; kept from `schema.py`, which no training run needs them in."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum
from urllib.parse import urlsplit

from dil_cli.errors import DilError, require, require_not_negative, require_path, require_positive


class Opponent(str, Enum):
    """Whose response the checkpoint's is compared with; auto is that of `against=`, else the chosen one."""

    auto = "auto"
    chosen = "chosen"
    rejected = "rejected"
    reference = "reference"


@dataclass(kw_only=True)
class WinrateConfig:
    """Responses to held-out prompts against an opponent's, by a judge.

    `prompts` of the distinct held-out ones, spread evenly (null: all). Temperature 0 takes the likeliest token; above
    it every prompt has random numbers of its own, from `seed` of the command, so that `batch_size` changes none.
    """

    name: str = "winrate"
    opponent: Opponent = Opponent.auto
    prompts: int | None = 256
    max_new_tokens: int = 256
    temperature: float = 0.0
    top_p: float = 1.0
    batch_size: int = 16

    def __post_init__(self) -> None:
        require(self.prompts is None or self.prompts > 0, "benchmark.prompts", self.prompts, "be above 0 or null", 256)
        require(self.max_new_tokens > 0, "benchmark.max_new_tokens", self.max_new_tokens, "be above 0", 256)
        require_not_negative("benchmark.temperature", self.temperature, 0.7)
        require(0 < self.top_p <= 1, "benchmark.top_p", self.top_p, "lie in 0 to 1, above 0", 0.95)
        require(
            self.top_p == 1 or self.temperature > 0, "benchmark.top_p", self.top_p,
            "stay 1 where the likeliest token is taken (benchmark.temperature=0)", 1,
        )  # fmt: skip
        require(self.batch_size > 0, "benchmark.batch_size", self.batch_size, "be above 0", 16)


@dataclass(kw_only=True)
class OpenAIJudge:
    """A chat model behind an OpenAI-compatible endpoint, asked in both orders.

    `key_env` names the environment variable that holds the key; the key itself is in no config. `prompt` is
    `summary`, `dialogue` or a file of one's own (null: summary where all prompts end in TL;DR:). `temperature` null
    sends none, for models that refuse one. Failed requests are sent again up to `retries` times, after `backoff`
    seconds, twice as long each time.
    """

    name: str = "openai"
    base_url: str
    model: str
    key_env: str = "OPENAI_API_KEY"
    prompt: str | None = None
    temperature: float | None = 0.0
    max_tokens: int = 256
    concurrency: int = 4
    retries: int = 5
    backoff: float = 1.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        example = "http://127.0.0.1:8000/v1"
        url = urlsplit(self.base_url)
        if "@" in self.base_url or url.query or url.fragment:
            # Not shown: what stands there may be a key.
            raise DilError(
                "judge.base_url holds more than an address; a key does not belong there", "judge.base_url",
                f"judge.base_url={example}, and the key in the variable that judge.key_env names",
            )  # fmt: skip
        fine = url.scheme in {"http", "https"} and bool(url.hostname)
        require(fine, "judge.base_url", repr(self.base_url), "be an http address", example)
        require(bool(self.model), "judge.model", repr(self.model), "name a model of the server", "gpt-4.1")
        if not re.fullmatch(r"[A-Z_][A-Z0-9_]*", self.key_env):
            raise DilError(
                "judge.key_env is the name of an environment variable, in capitals, and not the key itself",
                "judge.key_env", "judge.key_env=OPENAI_API_KEY",
            )  # fmt: skip
        if self.temperature is not None:
            require_not_negative("judge.temperature", self.temperature, 0)
        for key in ("max_tokens", "concurrency"):
            require(getattr(self, key) > 0, f"judge.{key}", getattr(self, key), "be above 0", 4)
        require(self.retries >= 0, "judge.retries", self.retries, "be 0 or more", 5)
        require_not_negative("judge.backoff", self.backoff, 1)
        require_positive("judge.timeout", self.timeout, 60)


@dataclass(kw_only=True)
class LocalJudge:
    """A model on this machine that gives each response a number; the higher one wins, and `tie` apart is a tie.

    `path` is a hub id or a folder. The prompt is cut from the left to `max_prompt_length` tokens, prompt and response
    to `max_length`.
    """

    name: str = "local"
    path: str
    revision: str | None = None
    trust_remote_code: bool = False
    tie: float = 0.0
    max_length: int = 2048
    max_prompt_length: int = 1536

    def __post_init__(self) -> None:
        require_path("judge.path", self.path, "/path/to/folder")
        require_not_negative("judge.tie", self.tie, 0)
        require(
            1 <= self.max_prompt_length < self.max_length, "judge.max_prompt_length", self.max_prompt_length,
            f"lie in 1 to judge.max_length - 1 = {self.max_length - 1}", self.max_length // 2,
        )  # fmt: skip


@dataclass(kw_only=True)
class RewardModelJudge(LocalJudge):
    """A reward model: sequence classification with one output."""

    name: str = "reward_model"


@dataclass(kw_only=True)
class LogprobJudge(LocalJudge):
    """The log-prob of a response under a causal language model, nats per token (reduction mean) or in all (sum)."""

    name: str = "logprob"
    reduction: str = "mean"

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.reduction in {"mean", "sum"}, "judge.reduction", self.reduction, "be mean or sum", "mean")


JUDGES = {"openai": OpenAIJudge, "reward_model": RewardModelJudge, "logprob": LogprobJudge}


def check_judge(benchmark: object, judge: object, against: str | None, reference: str | None) -> None:
    """What `dil eval` was told of judge and opponent must be of use to the benchmark that was chosen.

    Raises:
        DilError: naming what is missing, or would be ignored.
    """
    if not isinstance(benchmark, WinrateConfig):
        if judge is not None:
            raise DilError("only benchmark=winrate asks a judge", "judge", "benchmark=winrate, or leave judge= out")
        return
    if judge is None:
        raise DilError(
            "benchmark=winrate needs a judge", "judge",
            "judge=openai judge.base_url=... judge.model=..., judge=reward_model judge.path=..., judge=logprob ...",
        )  # fmt: skip
    opponent = benchmark.opponent
    if against is not None and opponent is not Opponent.auto:
        raise DilError(
            f"against= names the opponent, and benchmark.opponent={opponent.value} another",
            "against, benchmark.opponent", "leave one of them out",
        )  # fmt: skip
    if reference is not None and opponent is not Opponent.reference:
        raise DilError(
            "a win rate is relative to its opponent, reference= would be ignored", "reference",
            "benchmark.opponent=reference, or against=",
        )  # fmt: skip
