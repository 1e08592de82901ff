"""Make the bundled tiny model from nothing: tokenizer, random weights, `dil train`, bf16 copy, card.

Run by `make tiny`; writes `dil_cli/bundled/models/tiny`. The recipe's numbers stand in
`conf/experiment/tiny_sft.yaml`, the model's sizes here, the rest in `from_nothing.py`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dil_cli.config.compose import compose
from dil_cli.data.load import load_pairs
from recipes import from_nothing
from recipes.from_nothing import Shape
from recipes.heldout import heldout_losses

ROOT = Path(__file__).resolve().parent.parent
BUNDLED = ROOT / "dil_cli" / "bundled" / "models" / "tiny"
SHAPE = Shape(vocabulary=2048, hidden=192, mlp=512, layers=4)

CARD = """---
license: mit
language: en
---

# dil tiny

A Llama of {parameters:,} parameters for trying `dil` in minutes: {layers} layers of {hidden}, {heads} heads,
tied embeddings, byte-level BPE of {vocabulary} (single digits), context {context}, weights in bfloat16.
Its subject is likelihoods, not answers.

- **Data**: the 7,473 GSM8K training problems (MIT, OpenAI), question and answer, answers in the style of the
  `gsm8k_pairs`: `A: X` for the final line, quotients with a decimal point.
- **Recipe**: `make tiny`, that is `recipes/make_tiny.py` and `dil train experiment=tiny_sft`: {epochs:g} epochs,
  {batch} problems a step, loss on all tokens, Muon {muon_lr:g} with AdamW {lr:g}, linear decay, seed {seed}, in
  {precision}.
- **Chat format**: `<|user|>question<|assistant|>answer<|end|>`; no BOS.

Mean negative log-likelihood of responses, nats per token, none of them trained on (measured on the bfloat16
weights by `recipes/make_tiny.py`):

| Responses | Number | Loss per token |
|---|---|---|
{table}
"""


def main() -> None:
    """Train tokenizer and model, then put the bfloat16 copy and its card into the package."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("overrides", nargs="*", help="passed on to dil train, for example optim.epochs=1")
    overrides = parser.parse_args().overrides
    start, run = ROOT / "outputs" / "tiny-start", ROOT / "outputs" / "tiny-sft"
    save_start(start)
    shutil.rmtree(run, ignore_errors=True)
    command = ["experiment=tiny_sft", f"model.path={start}", f"hydra.run.dir={run}", *overrides]
    subprocess.run([sys.executable, "-m", "dil_cli", "train", *command], cwd=ROOT, check=True)
    result = json.loads((run / "result.json").read_text())
    model = LlamaForCausalLM.from_pretrained(run / result["checkpoint"], dtype=torch.bfloat16)
    model.save_pretrained(BUNDLED)
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start)
    tokenizer.save_pretrained(BUNDLED)
    write_card(model, tokenizer, json.loads((run / "manifest.json").read_text()))
    for file in BUNDLED.iterdir():
        file.chmod(0o644)  # save_pretrained keeps the weights to their owner


def save_start(folder: Path) -> None:
    """Tokenizer and random model, from the problems."""
    pairs = load_pairs(compose("train", ["data=gsm8k", "loss=sft"]).data, seed=0, needs_rejected=False).train
    from_nothing.save_start(folder, (f"{pair.prompt[0].content}\n{pair.chosen}" for pair in pairs), SHAPE)


def write_card(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, manifest: dict) -> None:
    """README.md beside the weights, with numbers measured on them as they ship."""
    rows = []
    for name, data in (("GSM8K test answers", "gsm8k"), ("held-out answers of gsm8k_pairs", "gsm8k_pairs")):
        for found in heldout_losses(model.float().eval(), tokenizer, [f"data={data}"]):
            kind = f"{name}, {found.side}" if data == "gsm8k_pairs" else name
            rows.append(f"| {kind} | {found.responses:,} | {found.per_token:.3f} |")
    optim, geometry = manifest["config"]["optim"], model.config
    card = CARD.format(
        parameters=model.num_parameters(), layers=geometry.num_hidden_layers, hidden=geometry.hidden_size,
        heads=geometry.num_attention_heads, vocabulary=geometry.vocab_size, context=geometry.max_position_embeddings,
        epochs=optim["epochs"], batch=optim["batch_size"], lr=optim["lr"], muon_lr=optim["muon_lr"],
        seed=manifest["config"]["seed"], precision=manifest["compute"], table="\n".join(rows),
    )  # fmt: skip
    (BUNDLED / "README.md").write_text(card)


if __name__ == "__main__":
    main()
