"""Record the token counts of real long pairs: `python -m benchmarks.lengths.record FOLDER` writes the file beside this.

The texts may not be passed on (CC BY-NC), their lengths may. A byte-level BPE as large as Mistral's is trained on the
texts themselves, as no Mistral tokenizer is at hand offline; its counts are near to those of a published tokenizer.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, models, pre_tokenizers, trainers

from benchmarks.pairs import LENGTHS, read_texts

VOCAB, NUMBER = 32000, 1000


def main() -> None:
    """Train, count, write."""
    source = Path(sys.argv[1]) / "alpaca_eval_prefs_train.jsonl.gz"
    pairs = read_texts(source)
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.train_from_iterator(
        ("".join(text) for text in pairs), trainers.BpeTrainer(vocab_size=VOCAB, show_progress=False)
    )
    chosen = np.random.default_rng(0).permutation(len(pairs))[:NUMBER]
    counted = [[len(tokenizer.encode(side).ids) for side in pairs[index]] for index in sorted(chosen.tolist())]
    # EOS ends each response.
    lengths = [[prompt, first + 1, second + 1] for prompt, first, second in counted]
    characters = sum(len(side) for index in chosen.tolist() for side in pairs[index])
    about = (
        f"{NUMBER} of the {len(pairs)} pairs of {source.name} as [prompt, chosen, rejected] tokens, uncut, in a "
        f"byte-level BPE of {VOCAB} trained on these texts ({characters / np.sum(counted):.2f} characters a token)"
    )
    LENGTHS.write_text(json.dumps({"about": about, "lengths": lengths}, separators=(",", ":")) + "\n")
    print(about, np.mean(lengths, axis=0).round(1))


if __name__ == "__main__":
    main()
