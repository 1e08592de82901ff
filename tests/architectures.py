"""Small models of many architectures with random weights, large enough for log-probs far from uniform."""

from __future__ import annotations

import torch
import transformers
from transformers import PreTrainedModel

VOCABULARY, WINDOW = 97, 8
SHAPE = {
    "vocab_size": VOCABULARY, "hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2,
    "num_attention_heads": 4, "max_position_embeddings": 160,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GROUPED = SHAPE | {"num_key_value_heads": 2}
GPT2 = {"vocab_size": VOCABULARY, "n_embd": 48, "n_layer": 2, "n_head": 4, "n_positions": 160}

TAKE_PACKED_ROWS = {
    "Llama": GROUPED,
    "Mistral": GROUPED | {"sliding_window": WINDOW},
    "Qwen2": GROUPED | {"use_sliding_window": True, "sliding_window": WINDOW, "max_window_layers": 1},
    "Qwen3": GROUPED | {"head_dim": 12},
    "Gemma": GROUPED | {"head_dim": 12},
    "Gemma2": GROUPED | {
        "head_dim": 12, "sliding_window": WINDOW, "query_pre_attn_scalar": 12, "attn_logit_softcapping": 5.0,
        "final_logit_softcapping": 3.0,
    },
    "Gemma3": GROUPED | {"head_dim": 12, "sliding_window": WINDOW},
    "GPTNeoX": SHAPE,
    "GPT2": GPT2,
    "Phi": GROUPED,
    "Phi3": GROUPED,
    "OPT": SHAPE | {"ffn_dim": 96, "word_embed_proj_dim": 48, "pad_token_id": 1},
    "Olmo2": GROUPED,
    "Starcoder2": GROUPED | {"sliding_window": WINDOW},
    "Granite": GROUPED | {"logits_scaling": 2.0},
    "Cohere": GROUPED | {"logit_scale": 0.5},
    "SmolLM3": GROUPED,
    "Mixtral": GROUPED | {"num_local_experts": 4, "sliding_window": WINDOW},
}  # fmt: skip

DO_NOT = {
    "Bloom": {"vocab_size": VOCABULARY, "hidden_size": 48, "n_layer": 2, "n_head": 4},
    "Falcon": {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4},
    "GPTJ": GPT2 | {"rotary_dim": 4},
    "Mpt": {"vocab_size": VOCABULARY, "d_model": 48, "n_heads": 4, "n_layers": 2, "max_seq_len": 160},
    "Mamba": {"vocab_size": VOCABULARY, "hidden_size": 48, "num_hidden_layers": 2, "state_size": 8},
    "GptOss": GROUPED | {"num_local_experts": 4, "head_dim": 12},
}
"""They ignore the attention they are given, have none, or have sinks in it."""

CLASSES = {"GPT2": "GPT2LMHeadModel"}
CONFIGS = {"Gemma3": "Gemma3TextConfig"}


def build(name: str, attention: str | None = None) -> PreTrainedModel:
    """The architecture `name` in float32 and evaluation mode; the same weights each time."""
    settings = (TAKE_PACKED_ROWS | DO_NOT)[name]
    config = getattr(transformers, CONFIGS.get(name, f"{name}Config"))(**settings)
    if attention is not None:
        config._attn_implementation = attention
    model = getattr(transformers, CLASSES.get(name, f"{name}ForCausalLM"))(config)
    draw = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.2, generator=draw)
    return model.eval()
