"""The pairs of a split as token ids, tokenised once and reused, everything cut or left out counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dil_cli.config.schema import DataConfig
from dil_cli.data import token_cache
from dil_cli.data.encode import EncodedPair, Encoder
from dil_cli.data.template import PairText, TemplateRefusal, effective_template, pair_text
from dil_cli.errors import DilError
from dil_cli.files import mark_used
from dil_cli.types import PreferencePair, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

CHUNK_PAIRS = 1000
EMPTY_PROMPT = "empty prompt"
SAME_ONCE_CUT = "responses the same once cut"


@dataclass(frozen=True)
class TokenCounts:
    """What tokenising did, in pairs; chosen and rejected are meant before labels are flipped.

    without_eos: responses that were cut before their EOS. eos_inside: responses with a further EOS in
    their text. with_bos: prompts that begin with a BOS; more_bos: prompts with more than one BOS.
    tokens: of all prompts and responses.
    """

    pairs: int
    skipped: dict[str, int]
    prompt_cut: int
    chosen_cut: int
    rejected_cut: int
    without_eos: int
    eos_inside: int
    with_bos: int
    more_bos: int
    tokens: int

    def describe(self) -> list[str]:
        """What a user should be told, one sentence a line."""
        bos = "a BOS" if self.with_bos == self.pairs else f"{self.with_bos:,} of them with a BOS"
        lines = [f"{self.pairs:,} pairs, {self.tokens:,} tokens, {bos if self.with_bos else 'no BOS'}"]
        lines += [f"{count:,} pairs skipped: {reason}" for reason, count in self.skipped.items()]
        cut = (self.prompt_cut, self.chosen_cut, self.rejected_cut)
        if any(cut):
            lines.append("cut: {:,} prompts, {:,} chosen, {:,} rejected responses".format(*cut))
        if self.without_eos:
            lines.append(f"{self.without_eos:,} responses without EOS (cut before it)")
        if self.eos_inside:
            lines.append(f"{self.eos_inside:,} responses with an EOS inside their text")
        if self.more_bos:
            lines.append(f"{self.more_bos:,} prompts with more than one BOS (their text holds it)")
        return lines


@dataclass(frozen=True)
class TokenisedSplit:
    """The pairs of a split as token ids; skipped ones are missing, `TokenisedPair.row` tells which remain.

    `notice` says what went wrong with the token cache, if anything did.
    """

    pairs: tuple[TokenisedPair, ...]
    counts: TokenCounts
    notice: str | None = None

    def describe(self) -> list[str]:
        """What a user should be told, one sentence a line."""
        return [*self.counts.describe(), *([self.notice] if self.notice else [])]


def tokenise_pairs(
    pairs: Sequence[PreferencePair],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    flipped: Collection[int] = frozenset(),
    cache: Path | None = None,
    keep: bool = True,
) -> TokenisedSplit:
    """Token ids by the rules in `encode.py`, chosen and rejected swapped for the rows in `flipped`.

    With a `cache` folder the ids come from its file for these pairs, tokenizer, template and lengths,
    or are written to it; they stand there unflipped, so that one file serves all noise levels. A
    damaged file is replaced, a folder that cannot be written is done without; `notice` says so.
    Without `keep` nothing is written there.

    Raises:
        DilError: if a prompt tokenises differently alone and in context (its row and the difference
            are named), the template is broken, or no pair is left.
    """
    (split,) = tokenise_splits([pairs], tokenizer, config, cache, keep)
    return flip_labels(split, flipped)


def tokenise_splits(
    splits: Sequence[Sequence[PreferencePair]],
    tokenizer: PreTrainedTokenizerBase,
    config: DataConfig,
    cache: Path | None,
    keep: bool = True,
) -> list[TokenisedSplit]:
    """As `tokenise_pairs`, no label flipped; nothing is written unless all splits can be tokenised."""
    if cache is None:
        return [_tokenise(pairs, tokenizer, config) for pairs in splits]
    found = [_look_up(*token_cache.place(cache, pairs, tokenizer, config), keep) for pairs in splits]
    made = [
        kept.split or replace(_tokenise(pairs, tokenizer, config), notice=kept.notice)
        for kept, pairs in zip(found, splits, strict=True)
    ]
    if not keep:
        return made
    return [split if kept.split else kept.write(split) for kept, split in zip(found, made, strict=True)]


@dataclass(frozen=True)
class _Kept:
    """The cache file of a split and what was found in it."""

    path: Path
    key: str
    split: TokenisedSplit | None = None
    notice: str | None = None

    def write(self, split: TokenisedSplit) -> TokenisedSplit:
        try:
            token_cache.write(self.path, self.key, split.pairs, asdict(split.counts))
        except OSError as error:
            reason = error.strerror or error
            return replace(split, notice=f"the token cache {self.path} cannot be written ({reason})")
        return split


def _look_up(path: Path, key: str, keep: bool) -> _Kept:
    if not path.exists():
        return _Kept(path, key)
    try:
        kept, counts = token_cache.read(path, key)
        if keep:
            mark_used(path)
        return _Kept(path, key, TokenisedSplit(kept, TokenCounts(**counts)))
    except Exception as error:  # whatever a damaged file makes pyarrow or json raise
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        return _Kept(path, key, notice=f"the token cache {path} is damaged ({reason}); tokenised again")


def flip_labels(split: TokenisedSplit, rows: Collection[int]) -> TokenisedSplit:
    """Chosen and rejected swapped in the pairs of these rows, which are marked `flipped`."""
    pairs = (
        replace(pair, chosen=pair.rejected, rejected=pair.chosen, flipped=True) if pair.row in rows else pair
        for pair in split.pairs
    )
    return replace(split, pairs=tuple(pairs))


def _tokenise(
    pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> TokenisedSplit:
    template = effective_template(tokenizer, config)
    encoder = Encoder(tokenizer, config)
    skipped: Counter[str] = Counter()
    kept: list[EncodedPair] = []
    for start in range(0, len(pairs), CHUNK_PAIRS):
        texts: list[tuple[int, PairText]] = []
        for pair in pairs[start : start + CHUNK_PAIRS]:
            where = f"data.path={config.path}, row {pair.row}"
            try:
                texts.append((pair.row, pair_text(pair, tokenizer, template, where)))
            except TemplateRefusal as refusal:
                skipped[f"the chat template refuses their turns ({refusal})"] += 1
        for encoded in encoder.encode(texts):
            reason = _useless(encoded.pair)
            if reason:
                skipped[reason] += 1
            else:
                kept.append(encoded)
    counts = _count(kept, dict(sorted(skipped.items())), tokenizer)
    if not kept:
        raise DilError(
            f"no pair is left once tokenised: {'; '.join(counts.describe()[1:]) or 'there was none'}",
            where=f"data.path={config.path}",
            fix="choose data that this model's tokenizer and chat template can take",
        )
    return TokenisedSplit(tuple(encoded.pair for encoded in kept), counts)


def _useless(pair: TokenisedPair) -> str | None:
    """Why nothing can be learnt from the pair, if so."""
    if not len(pair.prompt):
        return EMPTY_PROMPT  # nothing would predict the first token of the responses
    return SAME_ONCE_CUT if np.array_equal(pair.chosen, pair.rejected) else None


def _count(kept: Sequence[EncodedPair], skipped: dict[str, int], tokenizer: PreTrainedTokenizerBase) -> TokenCounts:
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    responses = [r for cut in kept for r in (cut.pair.chosen, cut.pair.rejected) if len(r)]
    bos_tokens = [int((cut.pair.prompt == bos).sum()) if bos is not None else 0 for cut in kept]
    return TokenCounts(
        pairs=len(kept),
        skipped=skipped,
        prompt_cut=sum(cut.prompt_cut for cut in kept),
        chosen_cut=sum(cut.chosen_cut for cut in kept),
        rejected_cut=sum(cut.rejected_cut for cut in kept),
        without_eos=sum(bool(r[-1] != eos) for r in responses),
        eos_inside=sum(bool((r[:-1] == eos).any()) for r in responses),
        with_bos=sum(bool(bos is not None and cut.pair.prompt[0] == bos) for cut in kept),
        more_bos=sum(count > 1 for count in bos_tokens),
        tokens=sum(len(cut.pair.prompt) for cut in kept) + sum(map(len, responses)),
    )
