"""Make the small model of docs/results: texts, tokenizer, random weights, `dil train`. Run by `make small DATA=DIR`.

DIR holds `alpaca_eval_prefs_train.jsonl.gz` and `alpaca_eval_prefs_test.jsonl.gz`, which may be used and not shipped
(CC BY-NC 4.0); so the weights are not shipped either. Killed, it goes on where it was. The recipe's numbers stand in
`conf/experiment/small_sft.yaml`, the model's sizes here.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from dil_cli.config.compose import compose
from dil_cli.data.load import load_pairs
from dil_cli.errors import DilError
from dil_cli.files import replacing
from dil_cli.main import exit_code
from dil_cli.types import PreferencePair
from recipes import from_nothing
from recipes.from_nothing import Shape

ROOT = Path(__file__).resolve().parent.parent
FOLDER = Path("outputs/small")
"""Relative, as the run's hash is made of the paths that stand in its config."""
TEXTS, START, RUN, MODEL = (FOLDER / name for name in ("texts", "start", "sft", "model"))
CHAT = "alpaca_eval_prefs"
SHAPE = Shape(vocabulary=4096, hidden=256, mlp=704, layers=6)


def main() -> int:
    """Texts and random weights where they are not there yet, then the training, then the model by itself.

    Returns:
        The exit code of the training.

    Raises:
        DilError: where the texts are not.
    """
    data = os.environ.get("DATA")
    if not data:
        raise DilError(
            "the chat answers are not shipped", "DATA", f"make small DATA=DIR, with DIR/{CHAT}_train.jsonl.gz"
        )
    os.chdir(ROOT)
    for split in ("train", "test"):
        write_texts(Path(data), split)
    if not START.is_dir():
        with replacing(START) as temporary:
            from_nothing.save_start(temporary, train_texts(), SHAPE)
    words = ["experiment=small_sft", f"model.path={START}", f"data.path={TEXTS}", f"hydra.run.dir={RUN}", *sys.argv[1:]]
    if code := subprocess.run([sys.executable, "-m", "dil_cli", "train", *words]).returncode:
        return code
    result = json.loads((RUN / "result.json").read_text(encoding="utf-8"))
    with replacing(MODEL) as temporary:
        LlamaForCausalLM.from_pretrained(RUN / result["checkpoint"]).save_pretrained(temporary)
        PreTrainedTokenizerFast.from_pretrained(START).save_pretrained(temporary)
    return 0


def write_texts(data: Path, split: str) -> None:
    """One split of the texts: the GSM8K problems, and each chat answer that was preferred to another, once."""
    TEXTS.mkdir(parents=True, exist_ok=True)
    with replacing(TEXTS / f"{split}.jsonl") as temporary:
        rows = dict.fromkeys((pair.prompt[-1].content, pair.chosen) for pair in pairs(data, split))
        lines = (json.dumps({"prompt": prompt, "response": response}) + "\n" for prompt, response in rows)
        temporary.write_text("".join(lines), encoding="utf-8")


def pairs(data: Path, split: str) -> Iterator[PreferencePair]:
    """What the texts are made of."""
    chat = [f"data.path={data}", f"data.train_split={CHAT}_train", f"data.heldout_split={CHAT}_test"]
    for words in (["data=gsm8k"], ["data=local", *chat, "data.heldout_fraction=null"]):
        config = compose("train", ["loss=sft", *words]).data
        splits = load_pairs(config, seed=0, needs_rejected=False)
        yield from splits.train if split == "train" else splits.heldout


def train_texts() -> Iterator[str]:
    """What the tokenizer is trained on."""
    with (TEXTS / "train.jsonl").open(encoding="utf-8") as file:
        for row in map(json.loads, file):
            yield f"{row['prompt']}\n{row['response']}"


if __name__ == "__main__":
    sys.exit(exit_code(main))
