"""How many pairs, how long: counted where model and data are on this machine, else assumed and said so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from dil_cli.config.planning import PlanConfig
from dil_cli.config.schema import DataSource
from dil_cli.data.load import load_pairs
from dil_cli.data.packing import packed_tokens
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.errors import DilError
from dil_cli.models.load import read_tokenizer
from dil_cli.train.ready import is_local
from dil_cli.types import TokenisedPair

PAIRS = {
    "HuggingFaceH4/ultrafeedback_binarized": 61_135,
    "Anthropic/hh-rlhf": 160_800,
    "openai/summarize_from_feedback": 92_858,
}
"""Rows of the training splits, as the data sets' cards state them."""

ASSUMED = (45, 420, 256)
"""Mean tokens of prompt, chosen and rejected response of 1,000 AlpacaEval preferences cut at 1,024 tokens
(`benchmarks/lengths/alpaca_eval_prefs.json`): real answers of language models, for data that is not here."""

SAMPLE = 2000
"""Pairs that are tokenised to know their lengths."""

NOTHING = np.empty(0, dtype=np.int32)


@dataclass(frozen=True)
class Lengths:
    """`pairs` to train on, their tokens in `sample` (ids are of no account), and where both come from."""

    pairs: int
    sample: Sequence[TokenisedPair]
    source: str

    @property
    def tokens(self) -> float:
        """Mean tokens of a pair that the model reads."""
        return sum(map(packed_tokens, self.sample)) / len(self.sample)

    @property
    def longest(self) -> int:
        """Most of them."""
        return max(map(packed_tokens, self.sample))

    def row(self, tokens: int) -> list[TokenisedPair]:
        """Pairs of the sample that fill a row of so many tokens, the last one cut to fit."""
        row: list[TokenisedPair] = []
        for pair in (self.sample[i % len(self.sample)] for i in range(tokens)):
            room = tokens - sum(map(packed_tokens, row))
            if packed_tokens(pair) >= room:
                return [*row, _cut(pair, room)] if room > 2 or not row else row
            row.append(pair)
        return row


def lengths_of(config: PlanConfig) -> Lengths:
    """The pairs that `config` trains on.

    Raises:
        DilError: for data that cannot be read, or whose number of pairs nobody knows.
    """
    rejected = config.loss.needs_rejected
    here = is_local(config.model.path) and config.data.source is not DataSource.hub
    if here and config.lengths is None:
        splits = load_pairs(config.data, config.seed, rejected)
        some = tokenise_pairs(splits.train[:SAMPLE], read_tokenizer(config.model), config.data).pairs
        sample = list(some) if rejected else [TokenisedPair(p.row, p.prompt, p.chosen, NOTHING) for p in some]
        return Lengths(config.pairs or len(splits.train), sample, f"lengths of {len(sample):,} pairs counted")
    cut = _truncated(config.lengths or ASSUMED, config.data.max_length, config.data.max_prompt_length)
    source = "lengths given" if config.lengths else "lengths assumed (AlpacaEval's; lengths=[p,c,r] sets them)"
    return Lengths(_number(config), [_pair(cut[0], cut[1], cut[2] if rejected else 0)], source)


def _number(config: PlanConfig) -> int:
    if config.pairs is not None:
        return config.pairs
    if config.data.source is not DataSource.hub:
        return len(load_pairs(config.data, config.seed, config.loss.needs_rejected).train)
    number = PAIRS.get(config.data.path)
    if number is None:
        raise DilError(
            f"how many pairs {config.data.path} has is not known without the hub", f"data.path={config.data.path}",
            "pairs=60000",
        )  # fmt: skip
    return number if config.data.limit is None else min(number, config.data.limit)


def _truncated(lengths: Sequence[int], most: int, most_prompt: int) -> tuple[int, int, int]:
    prompt = min(lengths[0], most_prompt)
    return prompt, min(lengths[1], most - prompt), min(lengths[2], most - prompt)


def _pair(prompt: int, chosen: int, rejected: int) -> TokenisedPair:
    ids = [np.zeros(number, dtype=np.int32) for number in (prompt, chosen, rejected)]
    return TokenisedPair(0, ids[0], ids[1], ids[2])


def _cut(pair: TokenisedPair, tokens: int) -> TokenisedPair:
    """A pair of about these proportions that reads so many tokens."""
    if packed_tokens(pair) <= tokens:
        return pair
    prompt = max(1, len(pair.prompt) * tokens // packed_tokens(pair))
    rest = max(0, tokens - prompt)
    chosen = rest if not len(pair.rejected) else rest * len(pair.chosen) // (len(pair.chosen) + len(pair.rejected))
    return _pair(prompt, chosen + 1, rest - chosen + 1 if len(pair.rejected) else 0)
