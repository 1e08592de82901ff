"""Odd inputs that are valid: config values, data files, model folders, each with what the console must say of it."""

from __future__ import annotations

import gzip
import io
import json
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from bad_data import ANSWER, GOOD, LINES, OTHER, POST, TWO, USER, lines
from models_on_disk import (
    change_json,
    change_weights,
    in_shards,
    of_kind,
    remove,
    several,
    template,
    write,
)

TRAINED = "12 usable"

VALUES = """
optim.lr=1e-30 optim.lr=1e3 optim.lr=${model.lr} optim.lr_factor=1e-9 optim.eps=1e300 optim.clip=null
optim.clip=inf optim.clip=1e-30 optim.warmup=0 optim.warmup=0.999 optim.epochs=1e-9 optim.epochs=0.3
optim.epochs=1.5 optim.batch_size=1 optim.batch_size=1000000000000000000000000 optim.token_budget=1
optim.token_budget=100000000000000000000 optim.schedule=constant optim.schedule=linear optim.beta1=0
optim.beta2=0 optim.weight_decay=10 optim=muon probe.pairs=1 probe.pairs=100000000000000000000
probe.times=100000000 probe.alarms.chosen_fall=1e-12 probe.alarms.chosen_fall=null checkpoint.every=1
checkpoint.every=100000000000000000 seed=0 seed=4294967295 seed=1_000 precision=bf16 model.dtype=bf16
model.gradient_checkpointing=true model.attention=eager model.attention=sdpa preset=none data.limit=1
data.limit=100000000000000000000 data.label_noise=1 data.label_noise=1e-9 data.heldout_fraction=1e-9
data.heldout_fraction=0.9 data.join_to=6 output=deep/er/new ++seed=3 name=a:b loss=sft
"""
"""Single words, each of a run of its own."""

WORDS = {word: [word] for word in VALUES.split()} | {
    "data.max_length=3": ["data.max_length=3", "data.max_prompt_length=2"],
    "name=a b": ["name='a b'"], "name in Greek": ["name='όνομα'"], "name of 190": [f"name={'n' * 190}"],
    "output with a space": ["output='my runs'"], "run folder": ["hydra.run.dir=a/b/c"],
}  # fmt: skip


def parquet(rows: list[dict[str, Any]], **options: Any) -> bytes:
    """Rows as a parquet file."""
    sink = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(rows), sink, **options)
    return sink.getvalue()


def each(**values: Any) -> bytes:
    """The good rows with something added to each text."""
    return lines(*({key: row[key] + values.get(key, "") for key in row} | _extra(values) for row in GOOD))


def _extra(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in GOOD[0]}


def zst(content: bytes) -> bytes:
    """A frame of Zstandard."""
    return pa.compress(content, "zstd", asbytes=True)


def turns(number: int, *before: Any) -> dict[str, Any]:
    """A pair as two conversations."""
    question = USER | {"content": f"q{number}"}
    return {"chosen": [*before, question, ANSWER], "rejected": [*before, question, OTHER]}


HH = [{"chosen": f"\n\nHuman: q{i}\n\nAssistant: a", "rejected": f"\n\nHuman: q{i}\n\nAssistant: b"} for i in range(12)]
TLDR = [{"info": POST | {"title": f"t{i}"}, "summaries": TWO, "choice": i % 2} for i in range(12)]
DIRTY = lines(
    *GOOD, GOOD[0] | {"chosen": ""}, GOOD[1] | {"rejected": "a1"}, {**turns(1), "prompt": "p", "chosen": [USER, USER]}
)
DATA = {
    "dirty rows": ("d.jsonl", DIRTY, "12 usable, 3 skipped (1 empty response, 1 identical responses, 1 no common"),
    "two layouts": (
        "d.jsonl", lines(*GOOD[:6], *(turns(i) for i in range(6, 12))),
        "of 2 layouts (6 of chosen, rejected; 6 of prompt, chosen, rejected)",
    ),
    "texts and messages": ("d.jsonl", lines(*GOOD[:6], *(turns(i) | {"prompt": "p"} for i in range(6))), TRAINED),
    "CRLF": ("d.jsonl", LINES.replace(b"\n", b"\r\n"), TRAINED),
    "BOM": ("d.jsonl", b"\xef\xbb\xbf" + LINES, TRAINED),
    "BOM in a list": ("d.json", b"\xef\xbb\xbf" + json.dumps(GOOD).encode(), TRAINED),
    "no last line end": ("d.jsonl", LINES.rstrip(), TRAINED),
    "blank lines between": ("d.jsonl", LINES.replace(b"\n", b"\n\n \n"), TRAINED),
    "gz": ("d.jsonl.gz", gzip.compress(LINES), TRAINED),
    "gz of two parts": ("d.jsonl.gz", gzip.compress(LINES[:99]) + gzip.compress(LINES[99:]), TRAINED),
    "gz of a BOM": ("d.json.gz", gzip.compress(b"\xef\xbb\xbf" + json.dumps(GOOD).encode()), TRAINED),
    "zst": ("d.jsonl.zst", zst(LINES), TRAINED),
    "zst of a list": ("d.json.zst", zst(json.dumps(GOOD).encode()), TRAINED),
    "parquet": ("d.parquet", parquet(GOOD), TRAINED),
    "parquet in zst": ("d.parquet", parquet(GOOD, compression="zstd"), TRAINED),
    "parquet in groups": ("d.parquet", parquet(GOOD, row_group_size=2), TRAINED),
    "parquet of messages": ("d.parquet", parquet([turns(i) for i in range(12)]), TRAINED),
    "parquet with bytes": ("d.parquet", parquet([row | {"raw": b"\xff"} for row in GOOD]), TRAINED),
    "list over lines": ("d.json", json.dumps(GOOD, indent=2).encode(), TRAINED),
    "extra columns": ("d.jsonl", each(score=1, tags=["x"], more={"a": None}), TRAINED),
    "a huge number beside": ("d.jsonl", each(score=10**30), TRAINED),
    "NaN beside": ("d.jsonl", each(score=float("nan")), TRAINED),
    "emoji": ("d.jsonl", each(chosen=" \U0001f600\u200d\U0001f680", prompt="é中文"), TRAINED),
    "right to left": ("d.jsonl", each(chosen="\u202e\u05e9\u05dc"), TRAINED),
    "line separators": ("d.json", "\n".join(json.dumps(r | {"chosen": "a\u2028b"}, ensure_ascii=False)
                                            for r in GOOD).encode(), TRAINED),
    "zero characters": ("d.jsonl", each(chosen="\0"), TRAINED),
    "combining marks": ("d.jsonl", each(rejected="e" + "\u0301" * 50), TRAINED),
    "special tokens": ("d.jsonl", each(chosen="<end>x"), "responses with an EOS inside their text"),
    "long prompts": ("d.jsonl", each(prompt="x" * 500), "cut: 11 prompts, 0 chosen"),
    "long chosen": ("d.jsonl", each(chosen="x" * 500), "cut: 0 prompts, 11 chosen, 0 rejected"),
    "one response of 100,000": ("d.jsonl", LINES + lines(GOOD[0] | {"prompt": "z", "chosen": "x" * 100_000}),
                                "1 chosen"),
    "one line of 10 MB": ("d.jsonl", LINES + lines(GOOD[0] | {"prompt": "z", "x": "x" * 10_000_000}), "13 usable"),
    "empty prompts": ("d.jsonl", lines(*GOOD, GOOD[0] | {"prompt": ""}), "13 usable"),
    "blank prompts": ("d.jsonl", lines(*GOOD, GOOD[0] | {"prompt": " \n"}), "13 usable"),
    "rows twice": ("d.jsonl", LINES + LINES, "24 usable"),
    "rows turned round": ("d.jsonl", LINES + lines(GOOD[0] | {"chosen": "b0", "rejected": "a0"}), "13 usable"),
    "two pairs": ("d.jsonl", lines(*GOOD[:2]), "1 pairs to train on, 1 held out"),
    "HH": ("d.jsonl", lines(*HH), TRAINED),
    "TL;DR": ("d.jsonl", lines(*TLDR), TRAINED),
    "system turns": ("d.jsonl", lines(*(turns(i, {"role": "system", "content": "s"}) for i in range(12))), TRAINED),
    "many turns": ("d.jsonl", lines(*(turns(i, *[USER, ANSWER] * 9) for i in range(12))), TRAINED),
    "a name with a space": ("my pairs é.jsonl", LINES, TRAINED),
}  # fmt: skip

SHAPE = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2,
    "max_position_embeddings": 128, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
GPT2 = {"vocab_size": 300, "n_embd": 32, "n_layer": 1, "n_head": 2, "n_positions": 128}


def as_type(dtype: torch.dtype) -> Any:
    """All weights in another type."""
    return change_weights(lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))


MODELS = {
    "no pad token": (change_json("tokenizer_config.json", pad_token=...), ""),
    "the pad token is the end": (change_json("tokenizer_config.json", pad_token="<end>"), ""),
    "dropout on": (change_json("config.json", attention_dropout=0.5), "dropout set to 0 (attention_dropout)"),
    "dropout of GPT-2": (of_kind("GPT2LMHeadModel", "GPT2Config", **GPT2), "dropout set to 0"),
    "half precision": (as_type(torch.float16), ""),
    "bfloat16": (as_type(torch.bfloat16), ""),
    "double precision": (as_type(torch.float64), ""),
    "shards": (in_shards, ""),
    "one weight more": (
        change_weights(lambda t: t.update({"extra": torch.ones(5)})),
        "1 weights of the checkpoint are not the model's and stay out of it (extra)",
    ),
    "a layer fewer": (change_json("config.json", num_hidden_layers=1), "weights of the checkpoint are not the model's"),
    "more rows than tokens": (of_kind("LlamaForCausalLM", "LlamaConfig", **SHAPE), ""),
    "tied": (of_kind("LlamaForCausalLM", "LlamaConfig", **SHAPE, tie_word_embeddings=True), ""),
    "GPT-NeoX": (of_kind("GPTNeoXForCausalLM", "GPTNeoXConfig", **SHAPE), ""),
    "a window": (of_kind("MistralForCausalLM", "MistralConfig", **SHAPE, num_key_value_heads=1, sliding_window=8), ""),
    "not for packed rows": (of_kind("BloomForCausalLM", "BloomConfig", vocab_size=300, hidden_size=32, n_layer=1,
                                    n_head=2), "rows: padded"),
    "no template": (remove("chat_template.jinja"), ""),
    "an empty template": (template(""), ""),
    "no settings of generation": (remove("generation_config.json"), ""),
    "odd settings of generation": (
        write("generation_config.json", b'{"do_sample": false, "temperature": 0.5, "top_p": 0.9}'), ""),
    "a pickle beside": (write("pytorch_model.bin", b"unread"), ""),
    "no cache": (several(change_json("config.json", use_cache=False), write("README.md", b"x")), ""),
}  # fmt: skip
