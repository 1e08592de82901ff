"""What a model must compute for a pair, counted from its shape.

A pair has P prompt tokens and responses of C and R. Its forward pass, in FLOPs (a multiply and an add are two), over
what must be computed: the prompt once, no padding, a response's last token predicted and never read.

    body       2 W (P + C - 1 + R - 1)    W weights of the layers' matrices; every expert's, where there are experts
    attention  4 L H K                    L layers, H heads x head size, K keys summed over queries
    head       2 D V (C + R)              D hidden dimension, V vocabulary

The backward pass is twice the forward pass, once where weights are frozen. `benchmarks/limit.py` counts the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from torch import nn
    from transformers import PretrainedConfig


@dataclass(frozen=True)
class Forward:
    """FLOPs of one forward pass over a pair, the mean of several."""

    body: float
    attention: float
    head: float

    @property
    def total(self) -> float:
        """All of it."""
        return self.body + self.attention + self.head


def forward_flops(shape: PretrainedConfig, matrices: int, pairs: Sequence[TokenisedPair]) -> Forward:
    """Mean over `pairs` (formulas at the top); `matrices` is W."""
    text = shape.get_text_config()
    size = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    body = attention = head = 0.0
    for pair in pairs:
        prompt = len(pair.prompt)
        responses = [len(response) for response in (pair.chosen, pair.rejected) if len(response)]
        read = [number - 1 for number in responses]
        keys = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in read)
        body += 2 * matrices * (prompt + sum(read))
        attention += 4 * text.num_hidden_layers * text.num_attention_heads * size * keys
        head += 2 * text.hidden_size * text.vocab_size * sum(responses)
    return Forward(body / len(pairs), attention / len(pairs), head / len(pairs))


def matrix_weights(model: nn.Module) -> int:
    """W: weights of the matrices that a token is multiplied with on its way to the head."""
    from torch import nn

    from dil_cli.distributed.zero3 import shape_of

    ends = {id(module.weight) for module in model.modules() if isinstance(module, nn.Embedding)}
    head = getattr(model, "get_output_embeddings", lambda: None)()
    ends |= {id(head.weight)} if head is not None else set()
    shapes = [shape_of(p) for p in model.parameters() if id(p) not in ends]
    return sum(shape.numel() for shape in shapes if len(shape) > 1)


def backward_passes(trained: int, parameters: int) -> float:
    """A backward pass in units of the forward pass: 2 where all weights are trained, 1 where hardly any are."""
    return 1 + trained / parameters
