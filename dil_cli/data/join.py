"""Long pairs out of short ones: `data.join_to`, for what depends on length where the data is short.

Consecutive pairs become a sheet of problems: all prompts in one user turn, all chosen answers in one response, all
rejected answers in the other. So it stays one preference pair, chosen throughout against rejected throughout.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import TYPE_CHECKING

from dil_cli.config.schema import DataConfig
from dil_cli.data.encode import Encoder
from dil_cli.data.load import Joined, PairSplits, fingerprint, flipped_rows
from dil_cli.data.template import TemplateRefusal, effective_template, pair_text
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BETWEEN = "\n\n"

Length = Callable[[PreferencePair], int]


def join_splits(splits: PairSplits, tokenizer: PreTrainedTokenizerBase, config: DataConfig, seed: int) -> PairSplits:
    """Both splits joined to `data.join_to` tokens, then `data.limit` and `data.label_noise` on the joined pairs.

    Raises:
        DilError: for a prompt that is not one user turn, and when a split is too small for one joined pair.
    """
    assert config.join_to is not None, "called where data.join_to is set"
    length = _measure(tokenizer, config)
    train, from_train = join_pairs(splits.train, config.join_to, length, config, most=config.limit)
    heldout, from_heldout = join_pairs(splits.heldout, config.join_to, length, config)
    for name, joined in (("training", train), ("held-out", heldout)):
        if not joined:
            raise DilError(
                f"all {name} pairs together do not reach {config.join_to:,} tokens",
                where=f"data.join_to={config.join_to}",
                fix="a smaller data.join_to, or data with more pairs",
            )
    flipped = flipped_rows(train, config.label_noise, seed)
    counts = replace(
        splits.counts,
        train=len(train),
        heldout=len(heldout),
        beyond_limit=len(splits.train) - from_train.used - from_train.short,
        flipped=len(flipped),
        joined=(from_train, from_heldout),
    )
    digest = fingerprint(train, heldout, flipped)
    return PairSplits(tuple(train), tuple(heldout), flipped, counts, digest)


def join_pairs(
    pairs: Sequence[PreferencePair], reach: int, length: Length, config: DataConfig, most: int | None = None
) -> tuple[list[PreferencePair], Joined]:
    """At most `most` pairs, each of the fewest consecutive ones whose `length` reaches `reach`.

    A pair that is long enough stays as it is. A joined one has the row number of its first pair.
    """

    @cache
    def reaches(start: int, size: int) -> bool:
        return length(joined(pairs[start : start + size], config)) >= reach

    made: list[PreferencePair] = []
    start, size, short = 0, 1, 0
    while start < len(pairs) and (most is None or len(made) < most):
        # More text has no fewer tokens, so the search may begin at the size of the group before.
        size = min(size, len(pairs) - start)
        while size > 1 and reaches(start, size - 1):
            size -= 1
        while start + size <= len(pairs) and not reaches(start, size):
            size += 1
        if start + size > len(pairs):
            short = len(pairs) - start
            break
        made.append(joined(pairs[start : start + size], config))
        start += size
    return made, Joined(made=len(made), used=start, short=short)


def joined(pairs: Sequence[PreferencePair], config: DataConfig) -> PreferencePair:
    """Several pairs as one; demonstrations stay one.

    Raises:
        DilError: for a prompt that is not one user turn.
    """
    for pair in pairs:
        if [turn.role for turn in pair.prompt] != ["user"]:
            turns = ", ".join(turn.role for turn in pair.prompt) or "none"
            raise DilError(
                f"data.join_to joins prompts of one user turn, here the turns are {turns}",
                where=f"data.path={config.path}, row {pair.row}",
                fix="data.join_to=null, or data whose prompts are single questions",
            )
    if len(pairs) == 1:
        return pairs[0]
    rejected = [pair.rejected for pair in pairs if pair.rejected is not None]
    return PreferencePair(
        row=pairs[0].row,
        prompt=(Message("user", BETWEEN.join(pair.prompt[0].content for pair in pairs)),),
        chosen=BETWEEN.join(pair.chosen for pair in pairs),
        rejected=BETWEEN.join(rejected) if len(rejected) == len(pairs) else None,
    )


def _measure(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> Length:
    """Tokens of prompt and longer response as they are trained on, template, EOS and truncation included."""
    template = effective_template(tokenizer, config)
    encoder = Encoder(tokenizer, config)

    def length(pair: PreferencePair) -> int:
        where = f"data.path={config.path}, row {pair.row}"
        try:
            text = pair_text(pair, tokenizer, template, where)
        except TemplateRefusal as refusal:
            raise DilError(
                f"the chat template refuses a joined pair ({refusal})", where, "data.join_to=null"
            ) from refusal
        (encoded,) = encoder.encode([(pair.row, text)])
        tokens = encoded.pair
        return len(tokens.prompt) + max(len(tokens.chosen), len(tokens.rejected))

    return length
