"""From a pair to text: the chat template, applied once, and where the prompt ends in what it writes."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from dil_cli.config.schema import DataConfig
from dil_cli.errors import DilError
from dil_cli.types import Message, PreferencePair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class PairText(NamedTuple):
    """A pair as text; the prompt ends where the model would begin to answer. `rejected` may be None."""

    prompt: str
    chosen: str
    rejected: str | None


class TemplateRefusal(Exception):
    """The template does not take a pair's turns (say, two of one role in a row); its text says why."""


def effective_template(tokenizer: PreTrainedTokenizerBase, config: DataConfig) -> str | None:
    """The Jinja chat template in use: the tokenizer's own, else `data.template`, else None (concatenation).

    Raises:
        DilError: if the tokenizer has several templates and none is the default, or the template
            is no valid Jinja.
    """
    return checked_template(tokenizer, config.template)


def checked_template(tokenizer: PreTrainedTokenizerBase, other: str | None = None) -> str | None:
    """The tokenizer's chat template, or `other` where it has none; raises as `effective_template`."""
    from jinja2.exceptions import TemplateSyntaxError

    template = other
    if tokenizer.chat_template:
        try:
            template = tokenizer.get_chat_template()
        except ValueError as error:
            raise DilError(
                "the tokenizer has several chat templates and none is the default",
                where="model.path",
                fix="name one of them default in its tokenizer_config.json",
            ) from error
    if template is None:
        return None
    try:
        _render(tokenizer, template, (Message("user", "."),), generation=True)
    except TemplateSyntaxError as error:
        raise DilError(
            f"the chat template is no valid Jinja: {error.message}",
            where="the tokenizer's chat_template" if tokenizer.chat_template else "data.template",
            fix="mend it, or data.template=null for plain concatenation",
        ) from error
    except TemplateRefusal:
        pass  # one that wants a system turn first may still take the data's turns
    return template


def pair_text(pair: PreferencePair, tokenizer: PreTrainedTokenizerBase, template: str | None, where: str) -> PairText:
    """Prompt and responses as text; `prompt + chosen` is what the model reads.

    Without a template the contents of all turns are joined with nothing between them. With one, the
    prompt is rendered with its generation prompt, and a response is what the template adds to it.

    Args:
        pair: the pair, as its source has it.
        tokenizer: renders the template.
        template: from `effective_template`.
        where: names the pair in an error.

    Raises:
        TemplateRefusal: if the template raises on these turns.
        DilError: if the template writes the prompt differently once a response follows.
    """
    if template is None:
        return PairText("".join(turn.content for turn in pair.prompt), pair.chosen, pair.rejected)
    prompt = _render(tokenizer, template, pair.prompt, generation=True)

    def response(content: str) -> str:
        whole = _render(tokenizer, template, (*pair.prompt, Message("assistant", content)), generation=False)
        if whole.startswith(prompt):
            return whole[len(prompt) :]
        at = next((i for i, (a, b) in enumerate(zip(prompt, whole, strict=False)) if a != b), len(whole))
        raise DilError(
            "the chat template writes the prompt differently once a response follows: "
            f"{prompt[at : at + 30]!r} becomes {whole[at : at + 30]!r}",
            where=where,
            fix="mend the template: prompt with generation prompt must begin prompt with response",
        )

    return PairText(prompt, response(pair.chosen), None if pair.rejected is None else response(pair.rejected))


def _render(tokenizer: PreTrainedTokenizerBase, template: str, turns: tuple[Message, ...], *, generation: bool) -> str:
    from jinja2.exceptions import TemplateSyntaxError

    messages = [{"role": turn.role, "content": turn.content} for turn in turns]
    try:
        text = tokenizer.apply_chat_template(
            messages, chat_template=template, tokenize=False, add_generation_prompt=generation
        )
    except TemplateSyntaxError:
        raise
    except Exception as error:  # a template is a program: 1/0 raises what it does in Python
        raise TemplateRefusal(getattr(error, "message", None) or f"{type(error).__name__}: {error}") from error
    return str(text)
