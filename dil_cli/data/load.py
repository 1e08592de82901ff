"""The usable pairs of a run: read, skip and count, hold out by prompt, limit, flip labels."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from dil_cli.config.schema import DataConfig
from dil_cli.data.schemas import Skip, recognise, to_pair
from dil_cli.data.sources import read_split
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

NOISE_STREAM = 0x6E6F697365
"""Keeps the random numbers of label noise apart from those of the epoch order under one seed."""


@dataclass(frozen=True)
class SplitCounts:
    """One split as it was read: its rows, the usable ones, and the others by reason.

    `layouts` counts rows by their columns where not all of them have one layout.
    """

    split: str
    rows: int
    usable: int
    skipped: dict[str, int]
    layouts: dict[str, int] = field(default_factory=dict)

    def describe(self) -> str:
        """One line, for example `train: 400 rows, 396 usable, 4 skipped (4 no common prompt)`."""
        line = f"{self.split}: {self.rows:,} rows, {self.usable:,} usable"
        if self.layouts:
            counts = "; ".join(f"{count:,} of {columns}" for columns, count in self.layouts.items())
            line += f", of {len(self.layouts)} layouts ({counts})"
        if not self.skipped:
            return line
        reasons = ", ".join(f"{count:,} {reason}" for reason, count in self.skipped.items())
        return f"{line}, {sum(self.skipped.values()):,} skipped ({reasons})"


@dataclass(frozen=True)
class Joined:
    """What `data.join_to` made of a split: `made` pairs out of `used`; the last `short` were too few for another."""

    made: int
    used: int
    short: int


@dataclass(frozen=True)
class Counts:
    """What became of the rows.

    read: the splits read (one, when the held-out pairs are a fraction of the training split).
    train, heldout: pairs in use; beyond_limit: training pairs left out by `data.limit`.
    flipped: training pairs with a flipped label.
    prompts_in_both: distinct prompts that stand in both splits (kept; 0 with `heldout_fraction`).
    joined: the training and the held-out split under `data.join_to`, whose `train`, `heldout` and `flipped` count
    joined pairs, the other fields pairs as they were read.
    """

    read: tuple[SplitCounts, ...]
    train: int
    heldout: int
    beyond_limit: int
    flipped: int
    prompts_in_both: int
    joined: tuple[Joined, Joined] | None = None

    def describe(self) -> list[str]:
        """What a user should be told, one sentence a line."""
        lines = [split.describe() for split in self.read]
        lines.append(f"{self.train:,} pairs to train on, {self.heldout:,} held out")
        for name, split in zip(("train", "held out"), self.joined or (), strict=False):
            rest = f", the last {split.short:,} too few for another" if split.short else ""
            lines.append(f"{name}: {split.used:,} pairs joined into {split.made:,} by data.join_to{rest}")
        if self.beyond_limit:
            lines.append(f"{self.beyond_limit:,} training pairs left out by data.limit")
        if self.flipped:
            lines.append(f"{self.flipped:,} training labels flipped by data.label_noise")
        if self.prompts_in_both:
            lines.append(f"{self.prompts_in_both:,} held-out prompts also stand in the training split")
        return lines


@dataclass(frozen=True)
class PairSplits:
    """The pairs of a run, as their source has them.

    `flipped` are the `row` numbers of the training pairs whose label is to be turned round; the
    pairs themselves are not (`tokenise_pairs` does it), so that one token cache serves all noise levels.
    `fingerprint` is a sha256 over the content of both splits, in order, flips included.
    """

    train: tuple[PreferencePair, ...]
    heldout: tuple[PreferencePair, ...]
    flipped: frozenset[int]
    counts: Counts
    fingerprint: str


def load_pairs(config: DataConfig, seed: int, needs_rejected: bool) -> PairSplits:
    """Read, hold out (whatever the seed), limit, and choose by seed the labels to flip.

    Under `data.join_to` all pairs are kept and none is flipped: its limit and noise count joined pairs (`join.py`).

    Args:
        config: the data set.
        seed: of the run; decides which labels are flipped.
        needs_rejected: whether the loss compares two responses.

    Raises:
        DilError: for unreadable data, data without a usable pair on either side, or
            settings that do not go with demonstrations or with pairs.
    """
    if config.score_prompt and needs_rejected:
        raise DilError(
            "the prompt of a pair is the same for both responses, it cannot be scored",
            where="data.score_prompt=true",
            fix="data.score_prompt=false, or loss=sft",
        )
    train, counted = _read(config, config.train_split)
    read = [counted]
    if config.heldout_split is not None:
        heldout, counted = _read(config, config.heldout_split)
        read.append(counted)
    else:
        assert config.heldout_fraction is not None, "DataConfig has one of the two"
        train, heldout = split_by_prompt(train, config.heldout_fraction)
        _check_both_sides(train, heldout, config)
    _check_rejected([*train, *heldout], config, needs_rejected)
    to_join = config.join_to is not None
    limited = train if to_join else train[: config.limit]
    flipped = flipped_rows(limited, 0.0 if to_join else config.label_noise, seed)
    counts = Counts(
        read=tuple(read),
        train=len(limited),
        heldout=len(heldout),
        beyond_limit=len(train) - len(limited),
        flipped=len(flipped),
        prompts_in_both=len({pair.prompt for pair in limited} & {pair.prompt for pair in heldout}),
    )
    return PairSplits(
        train=tuple(limited),
        heldout=tuple(heldout),
        flipped=flipped,
        counts=counts,
        fingerprint=fingerprint(limited, heldout, flipped),
    )


def split_by_prompt(
    pairs: Sequence[PreferencePair], fraction: float
) -> tuple[list[PreferencePair], list[PreferencePair]]:
    """Training and held-out pairs: the held-out prompts are those with the smallest hashes.

    `round(fraction * prompts)` of the distinct prompts are held out, at least one, each with all its
    pairs. Neither the order of the rows nor a seed has a say, so all seeds share the held-out set.
    """
    prompts = sorted({pair.prompt for pair in pairs}, key=_prompt_hash)
    held = set(prompts[: max(1, round(fraction * len(prompts)))])
    return [p for p in pairs if p.prompt not in held], [p for p in pairs if p.prompt in held]


def flipped_rows(train: Sequence[PreferencePair], noise: float, seed: int) -> frozenset[int]:
    """Rows of the `round(noise * n)` pairs to flip; under one seed a higher noise flips the lower's too."""
    count = round(noise * len(train))
    order = np.random.default_rng([NOISE_STREAM, seed]).permutation(len(train))
    return frozenset(train[index].row for index in order[:count])


def _read(config: DataConfig, split: str) -> tuple[list[PreferencePair], SplitCounts]:
    pairs: list[PreferencePair] = []
    skipped: Counter[str] = Counter()
    layouts: Counter[str] = Counter()
    rows = 0
    for row in read_split(config, split):
        rows += 1
        schema = recognise(row)
        layouts[", ".join(schema.columns)] += 1
        try:
            pairs.append(to_pair(row, schema))
        except Skip as reason:
            skipped[str(reason)] += 1
    if not rows:
        raise DilError("there is not one row", where=f"data.path={config.path}", fix="check the file: it is empty")
    counted = SplitCounts(
        split=split,
        rows=rows,
        usable=len(pairs),
        skipped=dict(sorted(skipped.items())),
        layouts=dict(sorted(layouts.items())) if len(layouts) > 1 else {},
    )
    if not pairs:
        raise DilError(
            f"the data set has no usable pair: {counted.describe()}",
            where=f"data.path={config.path}",
            fix="give each row a prompt and two different, non-empty responses",
        )
    return pairs, counted


def _check_rejected(pairs: Sequence[PreferencePair], config: DataConfig, needs_rejected: bool) -> None:
    demonstration = next((pair for pair in pairs if pair.rejected is None), None)
    if demonstration is None:
        return
    if any(pair.rejected is not None for pair in pairs):
        raise DilError(
            "the data set has pairs and demonstrations (no rejected response), which are not trained on together",
            where=f"data.path={config.path}, row {demonstration.row}",
            fix="one kind in a file; demonstrations alone train with loss=sft",
        )
    if needs_rejected:
        raise DilError(
            "the data set has demonstrations only, this loss needs a rejected response to each",
            where=f"data.path={config.path}",
            fix="loss=sft, or data with the columns prompt, chosen, rejected",
        )
    if config.label_noise:
        raise DilError(
            "label noise swaps chosen and rejected, these demonstrations have no rejected responses",
            where=f"data.label_noise={config.label_noise}",
            fix="data.label_noise=0",
        )


def _check_both_sides(train: Sequence[PreferencePair], heldout: Sequence[PreferencePair], config: DataConfig) -> None:
    if train and heldout:
        return
    prompts = len({pair.prompt for pair in (*train, *heldout)})
    side = "training" if not train else "held-out"
    raise DilError(
        f"holding out {config.heldout_fraction:g} of {prompts} prompts leaves no {side} pair",
        where="data.heldout_fraction",
        fix="data with more prompts, or another fraction",
    )


def content_digest(pairs: Sequence[PreferencePair], flipped: frozenset[int] = frozenset()) -> str:
    """sha256 over prompt, chosen, rejected and flip of each pair, in order; row numbers do not count."""
    digest = hashlib.sha256()
    for pair in pairs:
        content = [_plain(pair.prompt), pair.chosen, pair.rejected, pair.row in flipped]
        digest.update(json.dumps(content).encode() + b"\n")
    return digest.hexdigest()


def _plain(prompt: tuple[Message, ...]) -> list[list[str]]:
    return [[turn.role, turn.content] for turn in prompt]


def _prompt_hash(prompt: tuple[Message, ...]) -> str:
    return hashlib.sha256(json.dumps(_plain(prompt)).encode()).hexdigest()


def fingerprint(train: Sequence[PreferencePair], heldout: Sequence[PreferencePair], flipped: frozenset[int]) -> str:
    """sha256 over the content of both splits and the flips."""
    both = f"train {content_digest(train, flipped)} heldout {content_digest(heldout)}"
    return hashlib.sha256(both.encode()).hexdigest()
