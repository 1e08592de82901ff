"""The shapes of the models that conf/model names, known without the hub; any other from its own config.json."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dil_cli.config.schema import ModelConfig
from dil_cli.models.load import read_config

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

MISTRAL_7B = {
    "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 32768,
    "sliding_window": 4096, "rope_theta": 10000.0, "tie_word_embeddings": False,
}  # fmt: skip
LLAMA3_8B = {
    "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
    "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 8192,
    "rope_theta": 500000.0, "tie_word_embeddings": False,
}  # fmt: skip
QWEN25_05B = {
    "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
    "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 32768,
    "use_sliding_window": False, "rope_theta": 1000000.0, "tie_word_embeddings": True,
}  # fmt: skip
PYTHIA_28B = {
    "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 10240,
    "num_hidden_layers": 32, "num_attention_heads": 32, "max_position_embeddings": 2048, "rotary_pct": 0.25,
    "use_parallel_residual": True, "hidden_act": "gelu", "tie_word_embeddings": False,
}  # fmt: skip

GEOMETRIES: dict[str, dict[str, Any]] = {
    "alignment-handbook/zephyr-7b-sft-full": MISTRAL_7B,
    "mistralai/Mistral-7B-v0.1": MISTRAL_7B,
    "princeton-nlp/Llama-3-Base-8B-SFT": LLAMA3_8B,
    "meta-llama/Meta-Llama-3-8B": LLAMA3_8B,
    "Qwen/Qwen2.5-0.5B-Instruct": QWEN25_05B,
    "Qwen/Qwen2.5-0.5B": QWEN25_05B,
    "EleutherAI/pythia-2.8b": PYTHIA_28B,
}
"""Facts of the config.json that each hub id publishes; the numbers of parameters that follow are tested."""


def geometry(model: ModelConfig) -> PretrainedConfig:
    """The shape of a model: from the table above, else from the config.json of its folder, the hub or its cache.

    Raises:
        DilError: as `read_config`.
    """
    from transformers import AutoConfig

    facts = GEOMETRIES.get(model.path)
    if facts is None or model.revision is not None:
        return read_config(model)
    config: PretrainedConfig = AutoConfig.for_model(**facts)
    return config


def empty_model(shape: PretrainedConfig, model: ModelConfig) -> PreTrainedModel:
    """The model on torch's default device, on "meta" without memory, in the type its weights are held in."""
    import torch
    from transformers import AutoModelForCausalLM

    auto: Any = AutoModelForCausalLM  # its types do not know of from_config
    built: PreTrainedModel = auto.from_config(
        shape, dtype=getattr(torch, TORCH_NAMES[model.dtype.value]), trust_remote_code=model.trust_remote_code
    )
    return built


TORCH_NAMES = {"fp32": "float32", "bf16": "bfloat16"}
