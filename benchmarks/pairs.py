"""Real pairs as token ids: Anthropic HH, and long ones like UltraFeedback's; and which of them a run trains on."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from tokenizers import Tokenizer

BUNDLED = Path(__file__).resolve().parent.parent / "dil_cli" / "bundled" / "data"
LENGTHS = Path(__file__).resolve().parent / "lengths" / "alpaca_eval_prefs.json"
EOS = "<|end|>"
DRAWS = 2000
"""Draws of batches, of which the one most like the whole set is taken."""
JOINED = 3
"""Bundled problems in one long pair: near the length of the real long pairs."""
LIMITS = {"hh": (512, 1024), "long": (1024, 2048)}
"""Most tokens of a prompt, and of prompt and response, by kind of pairs."""


class Pair(NamedTuple):
    """Token ids, int32."""

    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray

    @property
    def longest(self) -> int:
        """Tokens of prompt and longer response: the width of its padded row."""
        return len(self.prompt) + max(len(self.chosen), len(self.rejected))


class Text(NamedTuple):
    """A pair as text."""

    prompt: str
    chosen: str
    rejected: str


@dataclass(frozen=True)
class Batches:
    """The pairs of one round and the two orders in which sides take them: indices, a list a step.

    `shuffled` is what a trainer does by itself. `grouped` puts pairs of one length together. Both go through the same
    pairs, so their times compare.
    """

    pairs: list[Pair]
    shuffled: list[list[int]]
    grouped: list[list[int]]


def load(kind: str, data: Path | None, vocab: int) -> tuple[list[Pair], str]:
    """The pairs of a kind ("hh" or "long") in ids below `vocab`, and a line that says what they are."""
    texts, source = _hh(data) if kind == "hh" else _long(data)
    tokenizer = train_tokenizer(vocab)
    pairs = tokenise(texts, tokenizer, *LIMITS[kind])
    return pairs, f"{source}; ids of a {tokenizer.get_vocab_size():,}-token BPE trained on the bundled text"


def train_tokenizer(vocab: int) -> Tokenizer:
    """A byte-level BPE of `vocab` tokens over the bundled problems and conversations."""
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab, special_tokens=[EOS], initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )  # fmt: skip
    bundled = [*read_texts(BUNDLED / "hh_sample_train.jsonl.gz"), *read_texts(BUNDLED / "gsm8k_pairs_train.jsonl.gz")]
    tokenizer.train_from_iterator(("".join(text) for text in bundled), trainer)
    return tokenizer


def tokenise(texts: Sequence[Text], tokenizer: Tokenizer, max_prompt: int, max_length: int) -> list[Pair]:
    """Prompt cut from the left, EOS after each response, responses cut from the right; equal ones left out."""
    eos = tokenizer.token_to_id(EOS)
    columns = [
        [encoding.ids for encoding in tokenizer.encode_batch(list(column))] for column in zip(*texts, strict=True)
    ]
    pairs = []
    for prompt, chosen, rejected in zip(*columns, strict=True):
        prompt = prompt[-max_prompt:]
        room = max_length - len(prompt)
        pair = Pair(
            *(np.asarray(ids, dtype=np.int32) for ids in (prompt, [*chosen, eos][:room], [*rejected, eos][:room]))
        )
        if not np.array_equal(pair.chosen, pair.rejected):
            pairs.append(pair)
    return pairs


def from_lengths(vocab: int, max_length: int, number: int, seed: int = 0, file: Path = LENGTHS) -> list[Pair]:
    """Random ids in the recorded lengths of real pairs, cut as `tokenise` cuts (half of `max_length` for a prompt)."""
    counts = json.loads(file.read_text())["lengths"]
    rng = np.random.default_rng(seed)
    pairs = []
    for index in rng.permutation(len(counts))[:number]:
        prompt = min(counts[index][0], max_length // 2)
        sizes = [prompt, *(min(n, max_length - prompt) for n in counts[index][1:])]
        pairs.append(Pair(*(rng.integers(1, vocab, n, dtype=np.int32) for n in sizes)))
    return pairs


def choose(pairs: Sequence[Pair], batch: int, steps: int, seed: int = 0) -> Batches:
    """`steps` batches that stand for the whole set.

    All pairs are sorted by length and cut into groups of `batch`, as length grouping over the whole set does it. A
    group is drawn from each of `steps` ranges of length, and their pairs are shuffled for the other sides. Of many such
    draws the one is taken whose tokens per pair come nearest to the whole set's, padded and not: a few groups drawn
    blindly would rarely have the few long pairs that make padding dear.
    """
    by_length = sorted(range(len(pairs)), key=lambda index: (pairs[index].longest, index))
    groups = len(by_length) // batch
    if groups < steps:
        raise ValueError(f"{len(pairs)} pairs are fewer than {steps} steps of {batch}")
    rng = np.random.default_rng(seed)
    aim = tokens_per_pair(_whole(pairs, by_length, batch, rng))
    edges = np.linspace(0, groups, steps + 1).astype(int)

    def draw() -> Batches:
        # Groups come in a random order, as a length-grouping sampler gives them.
        places = rng.permutation([rng.integers(low, high) for low, high in pairwise(edges)]).tolist()
        taken = [pairs[index] for place in places for index in by_length[place * batch : (place + 1) * batch]]
        return Batches(taken, _cut(rng.permutation(len(taken)).tolist(), batch), _cut(list(range(len(taken))), batch))

    def distance(drawn: Batches) -> float:
        return sum(abs(tokens / aim[name] - 1) for name, tokens in tokens_per_pair(drawn).items())

    return min((draw() for _ in range(DRAWS)), key=distance)


def tokens_per_pair(batches: Batches) -> dict[str, float]:
    """Tokens of a mean pair: padded in each order, without padding, with the prompt once, and in the responses."""
    longest, prompts, responses = (
        np.array([measure(pair) for pair in batches.pairs])
        for measure in (lambda p: p.longest, lambda p: len(p.prompt), lambda p: len(p.chosen) + len(p.rejected))
    )

    def padded(groups: Sequence[Sequence[int]]) -> float:
        return sum(2 * len(group) * int(longest[group].max()) for group in groups) / sum(map(len, groups))

    return {
        "padded": padded(batches.shuffled),
        "grouped": padded(batches.grouped),
        "unpadded": float((2 * prompts + responses).mean()),
        "unique": float((prompts + responses).mean()),
        "response": float(responses.mean()),
    }


def whole_set(pairs: Sequence[Pair], batch: int) -> dict[str, float]:
    """`tokens_per_pair` of all pairs in batches of `batch`."""
    by_length = sorted(range(len(pairs)), key=lambda index: pairs[index].longest)
    return tokens_per_pair(_whole(pairs, by_length, batch, np.random.default_rng(0)))


def _whole(pairs: Sequence[Pair], by_length: list[int], batch: int, rng: np.random.Generator) -> Batches:
    # Several shuffles, so that the mean padding is not one draw's.
    shuffles = [group for _ in range(20) for group in _cut(rng.permutation(len(pairs)).tolist(), batch)]
    return Batches(list(pairs), shuffles, _cut(by_length, batch))


def _cut(order: list[int], batch: int) -> list[list[int]]:
    return [order[at : at + batch] for at in range(0, len(order), batch)]


def _hh(data: Path | None) -> tuple[list[Text], str]:
    file = data / "hh_harmless.jsonl.gz" if data else None
    if file is not None and file.is_file():
        return read_texts(file), f"HH harmless ({file.name})"
    sample = [text for split in ("train", "test") for text in read_texts(BUNDLED / f"hh_sample_{split}.jsonl.gz")]
    return sample, "the bundled HH sample"


def _long(data: Path | None) -> tuple[list[Text], str]:
    file = data / "alpaca_eval_prefs_train.jsonl.gz" if data else None
    if file is not None and file.is_file():
        return read_texts(file), f"AlpacaEval preferences ({file.name})"
    short = read_texts(BUNDLED / "gsm8k_pairs_train.jsonl.gz")
    groups = [short[at : at + JOINED] for at in range(0, len(short) - JOINED + 1, JOINED)]
    joined = [Text(*("\n".join(side) for side in zip(*group, strict=True))) for group in groups]
    return joined, f"bundled GSM8K pairs, {JOINED} joined into one (no long file in DATA)"


def read_texts(file: Path) -> list[Text]:
    """Turns written as `Human:` and `Assistant:`, whatever the layout of the file."""
    from benchmarks.dil_side import read_pairs

    names = {"user": "Human", "assistant": "Assistant", "system": "System"}
    found = []
    for pair in read_pairs(file):
        turns = "".join(f"\n\n{names[turn.role]}: {turn.content}" for turn in pair.prompt)
        found.append(Text(f"{turns}\n\nAssistant:", f" {pair.chosen}", f" {pair.rejected}"))
    return found
