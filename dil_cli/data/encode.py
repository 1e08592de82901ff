"""From a pair's text to token ids: BOS, EOS, the prompt's boundary, truncation.

| What | Rule |
|---|---|
| BOS | what the tokenizer puts before a text, or what the template writes, never both |
| EOS | one after each response, the template's or ours; whitespace after the template's is dropped |
| Boundary | the prompt's own tokens must begin those of prompt and response together, else an error |
| Truncation | prompt from the left to `max_prompt_length` (BOS kept), then response to `max_length` in all |
| `score_prompt` | then all of the prompt but its first token moves to the front of the responses |
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dil_cli.config.schema import DataConfig
from dil_cli.data.template import PairText
from dil_cli.errors import DilError
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class EncodedPair:
    """A pair's token ids, and what had to be cut to fit the lengths."""

    pair: TokenisedPair
    prompt_cut: bool
    chosen_cut: bool
    rejected_cut: bool


class Encoder:
    """Text to ids for one tokenizer and one set of lengths."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> None:
        self.tokenizer, self.config = tokenizer, config
        self.prefix = _added_prefix(tokenizer)
        self.bos, self.eos = tokenizer.bos_token_id, tokenizer.eos_token_id
        self.eos_text = str(tokenizer.eos_token)

    def encode(self, texts: Sequence[tuple[int, PairText]]) -> Iterator[EncodedPair]:
        """One result per (row, text); prompt and response are tokenised together, as the model reads them.

        Raises:
            DilError: if a prompt tokenises differently alone and in context; shows where, and its row.
        """
        prompts = self._ids([text.prompt for _, text in texts])
        chosen = self._ids([text.prompt + self._trimmed(text.chosen) for _, text in texts])
        rejected = iter(self._ids([t.prompt + self._trimmed(t.rejected) for _, t in texts if t.rejected is not None]))
        for (row, text), prompt, with_chosen in zip(texts, prompts, chosen, strict=True):
            first = self._response(prompt, with_chosen, row, "chosen")
            second = []
            if text.rejected is not None:
                second = self._response(prompt, next(rejected), row, "rejected")
            yield self._cut(row, prompt, first, second)

    def _ids(self, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        encoded = self.tokenizer(texts, add_special_tokens=False, return_attention_mask=False, verbose=False)
        return [ids if ids[: len(self.prefix)] == self.prefix else self.prefix + ids for ids in encoded["input_ids"]]

    def _trimmed(self, response: str) -> str:
        """Without the whitespace that a template writes after EOS."""
        stripped = response.rstrip()
        return stripped if stripped.endswith(self.eos_text) else response

    def _response(self, prompt: list[int], whole: list[int], row: int, side: str) -> list[int]:
        if whole[: len(prompt)] != prompt:
            raise self._boundary_error(prompt, whole, row, side)
        response = whole[len(prompt) :]
        return response if response[-1:] == [self.eos] else [*response, self.eos]

    def _boundary_error(self, prompt: list[int], whole: list[int], row: int, side: str) -> DilError:
        at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        alone, context = ([str(self.tokenizer.decode([token])) for token in ids[at:][:3]] for ids in (prompt, whole))
        return DilError(
            f"the prompt tokenises differently before its {side} response: {alone} becomes {context}",
            where=f"data.path={self.config.path}, row {row}",
            fix="set a chat template (data.template, as in conf/data/hh.yaml), or strip the responses' first spaces",
        )

    def _cut(self, row: int, prompt: list[int], chosen: list[int], rejected: list[int]) -> EncodedPair:
        most = self.config.max_prompt_length
        prompt_cut = len(prompt) > most
        if prompt_cut:
            head = len(self.prefix) if self.prefix else int(prompt[0] == self.bos)
            head = min(head, most)
            prompt = prompt[:head] + prompt[len(prompt) - (most - head) :]
        room = self.config.max_length - len(prompt)
        moved: list[int] = []
        if self.config.score_prompt:
            prompt, moved = prompt[:1], prompt[1:]
        pair = TokenisedPair(
            row=row,
            prompt=np.asarray(prompt, dtype=np.int32),
            chosen=np.asarray(moved + chosen[:room], dtype=np.int32),
            rejected=np.asarray(moved + rejected[:room] if rejected else [], dtype=np.int32),
        )
        return EncodedPair(pair, prompt_cut, len(chosen) > room, len(rejected) > room)


def _added_prefix(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The special tokens (BOS, for most that have any) that the tokenizer puts before a plain text."""
    bare = tokenizer("a", add_special_tokens=False)["input_ids"]
    full = tokenizer("a")["input_ids"]
    start = next((i for i in range(len(full)) if full[i : i + len(bare)] == bare), 0)
    return list(full[:start])
