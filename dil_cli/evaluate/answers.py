"""Which held-out prompts are asked, and what a checkpoint answers to them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.config.judging import Opponent, WinrateConfig
from dil_cli.config.schema import DataConfig, EvalConfig, ModelConfig
from dil_cli.data.join import join_splits
from dil_cli.data.load import fingerprint, load_pairs
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.dynamics.probe import choose_probe
from dil_cli.evaluate.drift import blamed_on_drift, reading_facts
from dil_cli.evaluate.generate import Response, Writer
from dil_cli.evaluate.store import open_lines
from dil_cli.evaluate.target import Target
from dil_cli.models.load import load_policy, weights_fingerprint
from dil_cli.train.ready import pick_device
from dil_cli.types import PreferencePair

if TYPE_CHECKING:
    from dil_cli.tracking.console import ConsoleSink


@dataclass(frozen=True, eq=False)
class Answers:
    """A checkpoint's responses by the row of their pair, what they depend on, and its tokenizer to count with.

    `pairs_sha256` is of the text of the pairs.
    """

    name: str
    pairs: Sequence[PreferencePair]
    pairs_sha256: str
    responses: dict[int, Response]
    facts: dict[str, Any]
    tokenizer: Any


def answer(
    config: EvalConfig,
    target: Target,
    model: ModelConfig,
    data: DataConfig,
    seed: int,
    console: ConsoleSink,
    pairs: Sequence[PreferencePair] | None = None,
    check: Callable[[dict[str, Any]], None] = lambda facts: None,
    before: Callable[[Sequence[PreferencePair]], None] = lambda pairs: None,
) -> Answers:
    """A checkpoint's responses, from the file beside it where they are there already.

    Args:
        config: how responses are drawn.
        target: the checkpoint, whose folder keeps them.
        model: how it is read.
        data: where its prompts are, and how it reads them.
        seed: of the held-out pairs.
        console: hears of progress.
        pairs: whose prompts; None for those that `config` chooses of `data`.
        check: hears of the facts before anything is tokenised.
        before: hears of the pairs before their responses are generated, if any must be.

    Raises:
        DilError: when model or data cannot be read.
    """
    with console.phase(f"loading {target.name}", None):
        policy = load_policy(model)
    facts: dict[str, Any] = {"path": target.path, **reading_facts(policy.tokenizer, data), "data": data.path}
    if pairs is None:
        pairs, facts["data_sha256"] = heldout_prompts(config, data, seed, policy.tokenizer)
    weights = weights_fingerprint(policy.model)
    writer = Writer(config, policy, weights, pick_device(config.device))
    facts |= {"weights_sha256": weights, "compute": writer.facts["compute"]}
    check(facts)
    demonstrations = [replace(pair, rejected=None) for pair in pairs]
    with blamed_on_drift(config, target, facts):
        tokens = tokenise_pairs(demonstrations, policy.tokenizer, replace(data, score_prompt=False)).pairs
    prompts = {pair.row: pair.prompt for pair in tokens}
    pairs = [pair for pair in pairs if pair.row in prompts]
    with open_lines(target.folder / "eval" / "winrate" / "generations.jsonl") as store:
        if writer.missing(prompts, store):
            before(pairs)
        responses = writer.respond(prompts, store, console)
    return Answers(target.name, pairs, fingerprint([], pairs, frozenset()), responses, facts, policy.tokenizer)


def heldout_prompts(
    config: EvalConfig, data: DataConfig, seed: int, tokenizer: Any
) -> tuple[list[PreferencePair], str]:
    """One held-out pair of each prompt, `benchmark.prompts` of them spread evenly; and the data's fingerprint.

    One, because several responses to a prompt are not several prompts to an interval.
    """
    benchmark: WinrateConfig = config.benchmark
    splits = load_pairs(data, seed, benchmark.opponent is Opponent.rejected)
    if data.join_to is not None:
        splits = join_splits(splits, tokenizer, data, seed)
    first = list({pair.prompt: pair for pair in reversed(splits.heldout)}.values())[::-1]
    most = benchmark.prompts or len(first)
    return [first[i] for i in choose_probe(len(first), most)], splits.fingerprint


def token_counts(tokenizer: Any, texts: Sequence[str]) -> np.ndarray:
    """Tokens of each text by itself, so that both sides of a match are counted alike."""
    encoded = tokenizer([text.strip() for text in texts], add_special_tokens=False, verbose=False)["input_ids"]
    return np.array([len(ids) for ids in encoded], dtype=np.float64)
