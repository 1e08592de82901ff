"""Models on this machine that give each response a number: a reward model, or a language model's log-prob."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch

from dil_cli.config.judging import LocalJudge, LogprobJudge, RewardModelJudge
from dil_cli.config.schema import DataConfig, EvalConfig, ModelConfig
from dil_cli.data.encode import Encoder
from dil_cli.data.template import TemplateRefusal, effective_template, pair_text
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.dynamics.measure import score_pairs
from dil_cli.errors import DilError
from dil_cli.evaluate.drift import reading_facts
from dil_cli.models.load import resolve_source, weights_fingerprint
from dil_cli.models.reward import load_reward_model
from dil_cli.train.ready import pick_device, ready_policy, use_bf16
from dil_cli.types import PreferencePair

if TYPE_CHECKING:
    from dil_cli.tracking.console import ConsoleSink


@dataclass(frozen=True)
class Scorer:
    """`score` takes demonstrations and gives a number for each, None where it takes no such turns.

    `facts` are all that a number depends on but the text.
    """

    score: Callable[[Sequence[PreferencePair]], list[float | None]]
    facts: dict[str, Any]


def load_scorer(config: EvalConfig, data: DataConfig, console: ConsoleSink) -> Scorer:
    """The model that `judge.path` names, ready to score.

    Raises:
        DilError: when it cannot be read, or is not of the kind that the judge needs.
    """
    judge: LocalJudge = config.judge
    data = replace(
        data, max_length=judge.max_length, max_prompt_length=judge.max_prompt_length, score_prompt=False, join_to=None
    )
    with _named_as_judge():
        return (_reward_model if isinstance(judge, RewardModelJudge) else _logprob)(config, data, console)


def judge_paths(judge: object) -> list[str]:
    """The models that must be read for a judge."""
    return [judge.path] if isinstance(judge, LocalJudge) else []


def check_there(judge: object) -> None:
    """See that a judge's folder is one, before anything long begins.

    Raises:
        DilError: when it is not.
    """
    if isinstance(judge, LocalJudge):
        with _named_as_judge():
            resolve_source(_as_model(judge, 1))


def _logprob(config: EvalConfig, data: DataConfig, console: ConsoleSink) -> Scorer:
    """Log-probs under a causal language model, over packed rows as in training."""
    judge: LogprobJudge = config.judge
    budget = config.model.token_budget
    ready = ready_policy(_as_model(judge, budget), data, config.device, config.precision, budget, console)
    model, tokenizer = ready.policy.model, ready.policy.tokenizer

    def score(pairs: Sequence[PreferencePair]) -> list[float | None]:
        tokens = tokenise_pairs(pairs, tokenizer, data).pairs
        logps = score_pairs(model, tokens, ready.compute)
        sums_B = logps.policy_chosen_B.double()
        values_B = sums_B / logps.chosen_tokens_B if judge.reduction == "mean" else sums_B
        found = {pair.row: float(value) for pair, value in zip(tokens, values_B, strict=True)}
        return [found.get(pair.row) for pair in pairs]

    facts = {"reduction": judge.reduction, **_facts(model, tokenizer, data, ready.compute.bf16)}
    return Scorer(score, facts)


def _reward_model(config: EvalConfig, data: DataConfig, console: ConsoleSink) -> Scorer:
    """The one output of a sequence classifier, a response at a time.

    Alone, because where such a model finds the end of a padded row depends on which token pads.
    """
    judge: RewardModelJudge = config.judge
    device = pick_device(config.device)
    bf16 = use_bf16(config.precision, device)
    with console.phase("loading the reward model", None):
        loaded, tokenizer = load_reward_model(_as_model(judge, config.model.token_budget))
        facts = _facts(loaded, tokenizer, data, bf16)
        model: Any = loaded
        model.to(device, torch.bfloat16 if bf16 else torch.float32).eval()
    encode = _reward_encoder(tokenizer, data)

    @torch.no_grad()
    def score(pairs: Sequence[PreferencePair]) -> list[float | None]:
        rows = [encode(pair) for pair in pairs]
        return [None if row is None else float(model(**row.to(device)).logits.float().reshape(())) for row in rows]

    return Scorer(score, facts)


def _reward_encoder(tokenizer: Any, data: DataConfig) -> Callable[[PreferencePair], Any]:
    """Prompt and response as the model's inputs: as the policy reads them, or, for an encoder, as two segments."""
    from transformers import BatchEncoding

    template = effective_template(tokenizer, data)
    segments = tokenizer.eos_token_id is None or (tokenizer.sep_token_id is not None and not tokenizer.chat_template)
    encoder = None if segments else Encoder(tokenizer, data)

    def encode(pair: PreferencePair) -> Any:
        try:
            text = pair_text(pair, tokenizer, template, f"row {pair.row}")
        except TemplateRefusal:
            return None
        if encoder is None:
            tokenizer.truncation_side = "left"
            return tokenizer(
                text.prompt.strip(), text.chosen.strip(), truncation=True, max_length=data.max_length,
                return_tensors="pt",
            )  # fmt: skip
        (encoded,) = encoder.encode([(pair.row, text)])
        ids_T = torch.tensor([*encoded.pair.prompt.tolist(), *encoded.pair.chosen.tolist()])
        return BatchEncoding({"input_ids": ids_T[None], "attention_mask": torch.ones_like(ids_T)[None]})

    return encode


def _facts(model: Any, tokenizer: Any, data: DataConfig, bf16: bool) -> dict[str, Any]:
    return {
        "weights_sha256": weights_fingerprint(model),
        **reading_facts(tokenizer, data),
        "max_length": data.max_length,
        "max_prompt_length": data.max_prompt_length,
        "compute": "bf16" if bf16 else "fp32",
    }


def _as_model(judge: LocalJudge, token_budget: int) -> ModelConfig:
    return ModelConfig(
        path=judge.path, revision=judge.revision, trust_remote_code=judge.trust_remote_code, lr=1.0, batch_size=1,
        max_length=judge.max_length, max_prompt_length=judge.max_prompt_length, token_budget=token_budget,
    )  # fmt: skip


@contextmanager
def _named_as_judge() -> Iterator[None]:
    """What is read as a policy or as data is, to the user, the judge."""

    def named(text: str) -> str:
        for old in ("model.path", "model.trust", "data.max_"):
            text = text.replace(old, f"judge.{old.partition('.')[2]}")
        return text

    try:
        yield
    except DilError as error:
        raise DilError(named(error.what), named(error.where), named(error.fix)) from error
