"""The published models without their weights: shape, names of layers, chat template, layout of rows.

Facts are those of the config.json and tokenizer_config.json that each repository on the Hugging Face hub publishes:
alignment-handbook/zephyr-7b-sft-full, meta-llama/Meta-Llama-3-8B (template: -Instruct), Qwen/Qwen2.5-0.5B-Instruct,
Qwen/Qwen2.5-7B and EleutherAI/pythia-2.8b, which has no chat template.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora import LoraLayer
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from dil_cli.config.adapting import AdapterKind, PeftConfig
from dil_cli.config.compose import compose
from dil_cli.data.template import effective_template, pair_text
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute, Layout
from dil_cli.models.adapters import add_adapter, count_adapter
from dil_cli.plan.geometries import GEOMETRIES, LLAMA3_8B, MISTRAL_7B, PYTHIA_28B, QWEN25_05B
from dil_cli.types import Message, PreferencePair

sys.path.insert(0, str(Path(__file__).parent.parent / "data"))
from by_hand import byte_tokenizer

PUBLISHED: dict[str, dict[str, Any]] = {
    "mistral7b": {
        "model_type": "mistral", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "sliding_window": 4096,
    },
    "llama3_8b": {
        "model_type": "llama", "vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 8, "rope_theta": 500000.0,
    },
    "qwen25_7b": {
        "model_type": "qwen2", "vocab_size": 152064, "hidden_size": 3584, "intermediate_size": 18944,
        "num_hidden_layers": 28, "num_attention_heads": 28, "num_key_value_heads": 4, "use_sliding_window": False,
        "rope_theta": 1000000.0, "max_position_embeddings": 131072, "tie_word_embeddings": False,
    },
    "qwen25_05b": {
        "model_type": "qwen2", "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "pythia28": {
        "model_type": "gpt_neox", "vocab_size": 50304, "hidden_size": 2560, "intermediate_size": 10240,
        "num_hidden_layers": 32, "num_attention_heads": 32, "use_parallel_residual": True,
    },
}  # fmt: skip
OURS = {"mistral7b": MISTRAL_7B, "llama3_8b": LLAMA3_8B, "qwen25_05b": QWEN25_05B, "pythia28": PYTHIA_28B}
PARAMETERS = {
    "mistral7b": 7_241_732_096, "llama3_8b": 8_030_261_248, "qwen25_7b": 7_615_616_512, "qwen25_05b": 494_032_768,
    "pythia28": 2_775_208_960,
}  # fmt: skip
"""In the safetensors' headers, as the hub shows them."""

GATED = {"q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"}
LINEAR = dict.fromkeys(PUBLISHED, GATED) | {
    "pythia28": {"query_key_value", "dense", "dense_h_to_4h", "dense_4h_to_h"},
}

ZEPHYR = (
    "{% for message in messages %}\n{% if message['role'] == 'user' %}\n{{ '<|user|>\n' + message['content'] + "
    "eos_token }}\n{% elif message['role'] == 'system' %}\n{{ '<|system|>\n' + message['content'] + eos_token }}\n"
    "{% elif message['role'] == 'assistant' %}\n{{ '<|assistant|>\n'  + message['content'] + eos_token }}\n"
    "{% endif %}\n{% if loop.last and add_generation_prompt %}\n{{ '<|assistant|>' }}\n{% endif %}\n{% endfor %}"
)
LLAMA3 = (
    "{% set loop_messages = messages %}{% for message in loop_messages %}{% set content = '<|start_header_id|>' + "
    "message['role'] + '<|end_header_id|>\n\n'+ message['content'] | trim + '<|eot_id|>' %}{% if loop.index0 == 0 %}"
    "{% set content = bos_token + content %}{% endif %}{{ content }}{% endfor %}{% if add_generation_prompt %}"
    "{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
QWEN25 = (
    "{%- if messages[0]['role'] == 'system' %}\n{{- '<|im_start|>system\n' + messages[0]['content'] + '<|im_end|>\n' }}"
    "{%- else %}\n{{- '<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant."
    "<|im_end|>\n' }}\n{%- endif %}\n{%- for message in messages %}\n{%- if (message.role == 'user') or (message.role "
    "== 'system' and not loop.first) or (message.role == 'assistant' and not message.tool_calls) %}\n"
    "{{- '<|im_start|>' + message.role + '\n' + message.content + '<|im_end|>' + '\n' }}\n{%- endif %}\n{%- endfor %}\n"
    "{%- if add_generation_prompt %}\n{{- '<|im_start|>assistant\n' }}\n{%- endif %}\n"
)
"""Less the part for tools, which no pair has."""

SYSTEM = "<|im_start|>system\nYou are Qwen, created by Alibaba Cloud. You are a helpful assistant.<|im_end|>\n"
TEMPLATES = {
    "mistral7b": (ZEPHYR, "<|user|>\nHi</s>\n<|assistant|>\n", "Yes</s>\n"),
    "llama3_8b": (
        LLAMA3,
        "<s><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>"
        "<|start_header_id|>assistant<|end_header_id|>\n\n",
        "Yes<|eot_id|>",
    ),
    "qwen25_05b": (
        QWEN25, f"{SYSTEM}<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n", "Yes<|im_end|>\n",
    ),
    "pythia28": (None, "Hi", "Yes"),
}  # fmt: skip
"""Each template with the prompt and the response that it makes of "Hi" and "Yes"."""


def on_meta(name: str) -> PreTrainedModel:
    with torch.device("meta"):
        built: PreTrainedModel = AutoModelForCausalLM.from_config(AutoConfig.for_model(**PUBLISHED[name]))
    return built


@pytest.mark.parametrize("name", OURS)
def test_what_dil_ships_is_what_was_published(name: str):
    assert OURS[name].items() >= PUBLISHED[name].items()
    assert any(facts is OURS[name] for facts in GEOMETRIES.values())


TRAINED = {"mistral7b": 41_943_040, "llama3_8b": 41_943_040, "qwen25_7b": 40_370_176}
"""Parameters of rank 16 on all linear layers, as papers and model cards quote them."""


@pytest.mark.parametrize("kind", [AdapterKind.lora, AdapterKind.dora])
@pytest.mark.parametrize("name", PUBLISHED)
def test_adapters_go_on_every_linear_layer_of_every_block(name: str, kind: AdapterKind):
    model = on_meta(name)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]
    peft = PeftConfig(kind=kind, r=16, alpha=32, dropout=0.0, lr_factor=10.0)
    expected = count_adapter(model, peft)
    add_adapter(model, peft, "base", None, seed=0)
    assert sum(p.numel() for p in model.parameters() if p.requires_grad) == expected
    if kind is AdapterKind.lora:
        assert expected == TRAINED.get(name, expected)
    adapted = [path for path, module in model.named_modules() if isinstance(module, LoraLayer)]
    assert {path.rpartition(".")[2] for path in adapted} == LINEAR[name]
    assert len(adapted) == PUBLISHED[name]["num_hidden_layers"] * len(LINEAR[name])
    left = [path for path, m in model.named_modules() if isinstance(m, nn.Linear) and path.count(".") < 2]
    assert left == ["lm_head"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_chat_templates_end_the_prompt_where_the_model_begins(name: str):
    template, prompt, response = TEMPLATES[name]
    tokenizer = byte_tokenizer(chat_template=template)
    pair = PreferencePair(1, (Message("user", "Hi"),), "Yes", "No")
    data = compose("train", ["model=mistral7b", "data=ultrafeedback"]).data
    text = pair_text(pair, tokenizer, effective_template(tokenizer, data), "row 1")
    assert (text.prompt, text.chosen) == (prompt, response)
    (tokens,) = tokenise_pairs([pair], tokenizer, data).pairs
    assert tokenizer.decode(tokens.prompt) == prompt
    assert tokens.chosen[-1] == tokenizer.eos_token_id
    assert list(tokens.prompt).count(tokenizer.bos_token_id) == (1 if name == "llama3_8b" else 0)


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_shrunk_one_takes_packed_rows_with_each_prompt_once(name: str):
    """All facts of the config but the sizes; Mistral's window shorter than the rows that are tried."""
    heads = PUBLISHED[name]["num_attention_heads"] // PUBLISHED[name].get("num_key_value_heads", 10**6) or 1
    small = PUBLISHED[name] | {
        "vocab_size": 211, "hidden_size": 16 * heads, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": heads, "num_key_value_heads": 1, "max_position_embeddings": 256,
        "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
    } | ({"sliding_window": 16} if "sliding_window" in PUBLISHED[name] else {})  # fmt: skip
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(**small), dtype=torch.float32).eval()
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    choice = choose_layout(model, Compute(torch.device("cpu"), False, 512, 0), max_length=128)
    assert choice.compute.layout is Layout.shared, choice.line
