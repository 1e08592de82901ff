"""Geometries, and random models of them that are the same in every process of a run."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Shape:
    """A decoder of the Llama kind: gated MLP, grouped-query attention, a head that is not tied to the embedding."""

    hidden: int
    layers: int
    heads: int
    kv_heads: int
    mlp: int
    vocab: int
    kind: str = "llama"

    @property
    def head_dim(self) -> int:
        """Width of one attention head."""
        return self.hidden // self.heads

    @property
    def body_weights(self) -> int:
        """Weights of the layers' matrices: what a token is multiplied with on its way to the head."""
        attention = 2 * self.hidden * self.hidden + 2 * self.hidden * self.kv_heads * self.head_dim
        return self.layers * (attention + 3 * self.hidden * self.mlp)

    def with_vocab(self, vocab: int) -> Shape:
        """The same body under another head."""
        return replace(self, vocab=vocab)


CPU = Shape(hidden=384, layers=6, heads=6, kv_heads=2, mlp=1024, vocab=8192)
"""What the CPU benchmark trains."""
QUICK = Shape(hidden=128, layers=2, heads=2, kv_heads=1, mlp=256, vocab=1024)
"""A smoke test's model: the numbers of a run with it mean nothing."""
MISTRAL_7B = Shape(hidden=4096, layers=32, heads=32, kv_heads=8, mlp=14336, vocab=32000, kind="mistral")
MISTRAL_SMALL = Shape(hidden=128, layers=2, heads=4, kv_heads=1, mlp=448, vocab=1024, kind="mistral")
"""Mistral-7B's proportions at a size a CPU tests in seconds."""


def build(shape: Shape, seed: int = 0, device: str = "cpu", attention: str = "sdpa") -> PreTrainedModel:
    """A random float32 model, the same for the same seed on the same kind of device."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

    sizes = {
        "vocab_size": shape.vocab, "hidden_size": shape.hidden, "intermediate_size": shape.mlp,
        "num_hidden_layers": shape.layers, "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads, "max_position_embeddings": 4096, "tie_word_embeddings": False,
        "bos_token_id": None, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    torch.manual_seed(seed)
    # Drawn on the device: 7 billion normal numbers take a CPU minutes.
    with torch.device(device):
        if shape.kind == "mistral":
            # Without a window, as since version 0.2; no pair here is longer than 0.1's 4,096 tokens.
            config = MistralConfig(**sizes, sliding_window=None)
            model: PreTrainedModel = MistralForCausalLM._from_config(config, attn_implementation=attention)
        else:
            model = LlamaForCausalLM._from_config(LlamaConfig(**sizes), attn_implementation=attention)
    return model.float()


def weight_sum(model: torch.nn.Module) -> float:
    """Sum of the absolute weights in float64: equal in two processes if their models are."""
    import torch

    return sum(float(p.detach().abs().sum(dtype=torch.float64)) for p in model.parameters())
