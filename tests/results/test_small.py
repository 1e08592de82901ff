"""The small model from texts to page, at a hundredth of its size."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dil_cli.errors import DilError
from recipes import make_small
from results import small
from results.grid import NotRun

QUICK = [
    "data.limit=12", "optim.epochs=2", "optim.batch_size=4", "probe.pairs=4", "probe.times=2", "tracker=none"
]  # fmt: skip


@pytest.fixture
def chat(tmp_path: Path) -> Path:
    """A folder of chat answers, one of them preferred twice."""
    folder = tmp_path / "chat"
    folder.mkdir()
    for split in ("train", "test"):
        rows = [
            {"prompt": f"{split} question {i}?", "chosen": f"A long answer to question {i}.", "rejected": f"No {j}."}
            for i in range(4) for j in range(2)
        ]  # fmt: skip
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / f"alpaca_eval_prefs_{split}.jsonl").write_text(text, encoding="utf-8")
    return folder


def test_the_texts_are_problems_and_preferred_answers_each_once(tmp_path, chat):
    make_small.write_texts(chat, "train")
    rows = [json.loads(line) for line in (make_small.TEXTS / "train.jsonl").read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 7473 + 4
    assert [row["response"] for row in rows[-4:]] == [f"A long answer to question {i}." for i in range(4)]
    assert len({row["prompt"] for row in rows[-4:]}) == 4


def test_without_chat_answers_it_says_what_to_give(monkeypatch):
    monkeypatch.delenv("DATA", raising=False)
    with pytest.raises(DilError) as refused:
        make_small.main()
    assert "make small DATA=DIR" in str(refused.value)
    assert not make_small.FOLDER.exists()


def test_a_page_without_the_model_says_so(tmp_path):
    with pytest.raises(NotRun, match="make small DATA=DIR"):
        small.draw(tmp_path)


@pytest.mark.slow
def test_the_model_is_made_and_its_page_is_drawn(tmp_path, chat, monkeypatch):
    script = (
        "import sys\nfrom pathlib import Path\nfrom recipes import make_small\nfrom recipes.from_nothing import Shape\n"
        "make_small.ROOT = Path.cwd()\nmake_small.SHAPE = Shape(vocabulary=512, hidden=64, mlp=64, layers=1)\n"
        "sys.exit(make_small.main())"
    )
    root = Path(__file__).parents[2]
    env = os.environ | {"DATA": str(chat), "PYTHONPATH": str(root)}
    made = []
    for _ in range(2):  # the second goes on where the first was: it ended
        done = subprocess.run([sys.executable, "-c", script, *QUICK], env=env, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        made.append((make_small.MODEL / "model.safetensors").read_bytes())
    assert made[0] == made[1]

    few = ("data.heldout_split=null", "data.heldout_fraction=0.01")
    monkeypatch.setattr(small, "GSM8K", {"`gsm8k_pairs`": ("data=gsm8k_pairs", *few)})
    monkeypatch.setattr(small, "OWN", {"its own texts": (*small.OWN["its own texts"][:2], *few)})
    monkeypatch.setattr(small, "SMOOTHED", 2)
    blocks = small.blocks()
    assert "parameters" in blocks["model"]
    assert "in 6 steps" in blocks["model"]
    assert blocks["losses"].count("\n") >= 6  # head, rule, tiny on 2 sides, small on 3
    small.draw(tmp_path)
    assert (tmp_path / "small.png").stat().st_size > 10_000
