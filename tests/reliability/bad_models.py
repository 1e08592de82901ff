"""Model folders that no run can start from, each with what the error must say."""

from __future__ import annotations

import torch
from models_on_disk import (
    SHARDS,
    WEIGHTS,
    change_json,
    change_weights,
    cut,
    in_harmful_pickle,
    in_pickle,
    in_shards,
    more_tokens,
    of_kind,
    remove,
    several,
    template,
    write,
)

INDEX = f"{WEIGHTS}.index.json"
T5 = {"vocab_size": 300, "d_model": 32, "d_kv": 16, "d_ff": 64, "num_layers": 1, "num_heads": 2}
LLAMA = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
}  # fmt: skip
NORM = "model.norm.weight"

FOLDERS = {
    "no tokenizer": (remove("tokenizer.json", "tokenizer_config.json"), "the model folder has no tokenizer"),
    "half a tokenizer": (remove("tokenizer.json"), "the tokenizer of m cannot be loaded"),
    "a broken tokenizer": (write("tokenizer.json", b"{broken"), "the tokenizer of m cannot be loaded"),
    "an empty tokenizer": (write("tokenizer.json", b""), "the tokenizer of m cannot be loaded"),
    "a broken tokenizer config": (write("tokenizer_config.json", b"{"), "the tokenizer of m cannot be loaded"),
    "no end of text": (change_json("tokenizer_config.json", eos_token=...), "the tokenizer has no EOS token"),
    "more tokens than rows": (more_tokens(*(f"<{i}>" for i in range(9))), "268 tokens, the model's embedding 259 rows"),
    "no config": (remove("config.json"), "the model folder has no config.json"),
    "an adapter alone": (several(remove("config.json"), write("adapter_config.json", b"{}")), "it is an adapter"),
    "a broken config": (write("config.json", b"{broken"), "the config.json of m cannot be loaded"),
    "a config that is a list": (write("config.json", b"[]"), "the config.json of m cannot be loaded"),
    "a binary config": (write("config.json", bytes(range(256))), "the config.json of m cannot be loaded"),
    "no architecture": (change_json("config.json", model_type=...), "the config.json of m cannot be loaded"),
    "unknown architecture": (change_json("config.json", model_type="banana"), "`banana`"),
    "a width of text": (change_json("config.json", hidden_size="big"), "hidden_size"),
    "another width": (change_json("config.json", hidden_size=64), "weights have another shape than config.json says"),
    "more layers": (change_json("config.json", num_hidden_layers=3), "the checkpoint lacks 9 weights"),
    "no heads": (change_json("config.json", num_attention_heads=0), "the config.json of m cannot be loaded"),
    "unknown activation": (change_json("config.json", hidden_act="banana"), "KeyError 'banana'"),
    "quantised": (change_json("config.json", quantization_config={"quant_method": "gptq", "bits": 4}), "(gptq)"),
    "quantised in another way": (change_json("config.json", quantization_config={"quant_method": "new"}), "(new)"),
    "code of its own": (
        several(change_json("config.json", model_type="mine", auto_map={"AutoConfig": "code.C"}),
                write("code.py", b"open('pwned', 'w')")),
        "needs code from its repository",
    ),
    "a missing shard": (several(in_shards, remove(SHARDS[1])), f"1 of 2 files with weights are missing ({SHARDS[1]})"),
    "a broken shard": (several(in_shards, cut(SHARDS[1], 0.5)), "the weights of m cannot be loaded"),
    "a broken index": (several(in_shards, write(INDEX, b"{b")), f"{INDEX} is damaged"),
    "an empty index": (several(in_shards, write(INDEX, b"{}")), f"{INDEX} is damaged"),
    "an index of other files": (several(in_shards, change_json(INDEX, weight_map={"a": "../x"})), "missing (../x)"),
    "no weights": (remove(WEIGHTS), "the model folder has no weights"),
    "weights of another program": (several(remove(WEIGHTS), write("m.gguf", b"GGUF")), "has no weights"),
    "empty weights": (write(WEIGHTS, b""), "the weights of m cannot be loaded"),
    "weights that are text": (write(WEIGHTS, b"version https://git-lfs"), "the weights of m cannot be loaded"),
    "half the weights": (cut(WEIGHTS, 0.5), "the weights of m cannot be loaded"),
    "nearly all weights": (cut(WEIGHTS, 0.99), "the weights of m cannot be loaded"),
    "a header too large": (write(WEIGHTS, b"\xff" * 8 + b"{}"), "the weights of m cannot be loaded"),
    "a weight too few": (change_weights(lambda t: t.pop(NORM)), f"would start at random ({NORM}, ...)"),
    "a weight of another shape": (
        change_weights(lambda t: t.update({NORM: torch.ones(5)})), f"({NORM} is (5,), not (32,))",
    ),
    "NaN": (change_weights(lambda t: t[NORM].fill_(float("nan"))), f"the weights hold NaN or infinity ({NORM})"),
    "infinity": (change_weights(lambda t: t[NORM].fill_(float("inf"))), "the weights hold NaN or infinity"),
    "a pickle": (in_pickle, "the weights are a pickle (pytorch_model.bin)"),
    "a pickle that runs code": (in_harmful_pickle, "the weights are a pickle"),
    "pickles": (several(remove(WEIGHTS), write("pytorch_model.bin.index.json", b"{}")), "the weights are a pickle"),
    "an encoder-decoder": (of_kind("T5ForConditionalGeneration", "T5Config", **T5), "t5 is an encoder-decoder"),
    "an encoder": (change_json("config.json", model_type="bert"), "bert is an encoder"),
    "a model of images": (change_json("config.json", model_type="vit"), "vit is no causal language model"),
    "a reward model": (of_kind("LlamaForSequenceClassification", "LlamaConfig", **LLAMA), "lacks 1 weights"),
    "a model without a head": (of_kind("LlamaModel", "LlamaConfig", **LLAMA), "lacks 1 weights"),
    "a broken template": (template("{% for %}"), "the chat template is no valid Jinja"),
    "a template that divides by 0": (template("{{ 1/0 }}"), "ZeroDivisionError"),
    "a template that adds apples": (template("{{ messages + 1 }}"), "TypeError"),
    "a template without end": (template("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}"), "RecursionError"),
    "a template that counts on": (template("{% for i in range(10**9) %}{% endfor %}"), "OverflowError"),
    "a template that refuses": (template("{{ raise_exception('no') }}"), "the chat template refuses their turns (no)"),
    "a template that says nothing": (template("x"), "responses the same once cut"),
    "a template that looks back": (
        template("{{ messages|length }}{% for m in messages %}{{ m.content }}{% endfor %}"),
        "writes the prompt differently once a response follows",
    ),
}  # fmt: skip
