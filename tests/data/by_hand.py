"""Real tokenizers whose ids are known by hand: single bytes, and the merges that are asked for."""

from __future__ import annotations

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from dil_cli.types import Message, PreferencePair

BOS, EOS = 0, 1
CHATML = (
    "{% for m in messages %}{{ '[' + m.role + ']' + m.content + eos_token + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def byte_tokenizer(
    *, adds_bos: bool = False, merges: Iterable[tuple[str, str]] = (), chat_template: str | None = None
) -> PreTrainedTokenizerFast:
    """Byte-level BPE: `<s>` is 0, `</s>` is 1, ASCII character c is its place in the byte alphabet."""
    merges = list(merges)
    tokens = ["<s>", "</s>", *sorted(pre_tokenizers.ByteLevel.alphabet()), *("".join(m) for m in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={token: i for i, token in enumerate(tokens)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens(["<s>", "</s>"])
    if adds_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", chat_template=chat_template
    )


def ids(text: str) -> list[int]:
    """The ids of ASCII text in `byte_tokenizer`, without its help."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    shown = {" ": "Ġ", "\n": "Ċ"}
    return [2 + alphabet.index(shown.get(character, character)) for character in text]


def pair(prompt: str, chosen: str, rejected: str | None, row: int = 1) -> PreferencePair:
    return PreferencePair(row, (Message("user", prompt),), chosen, rejected)
