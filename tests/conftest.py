"""Every test runs offline, on the CPU, in a folder of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

os.environ |= {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "WANDB_MODE": "offline",
    "TOKENIZERS_PARALLELISM": "false",
    "COLUMNS": "120",
}
for key in ("WANDB_API_KEY", "DIL_TRACEBACK", "HYDRA_FULL_ERROR"):
    os.environ.pop(key, None)

Completed = subprocess.CompletedProcess[str]


@pytest.fixture(autouse=True)
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing a test writes by a relative path reaches the repository."""
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def dil(tmp_path: Path) -> Callable[..., Completed]:
    """`dil("train", "loss=ukl")` in a process of its own, as a user types it, in `tmp_path`."""

    def run(*argv: str, timeout: float = 240, **env: str) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "dil_cli", *argv],
            cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    return run


@pytest.fixture
def dil_here(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """As `dil`, but in this process, where torch is imported already: (exit code, stdout, stderr)."""
    import torch
    from hydra.core.global_hydra import GlobalHydra

    from dil_cli.main import main

    def run(*argv: str) -> tuple[int, str, str]:
        GlobalHydra.instance().clear()
        monkeypatch.setattr(sys, "argv", ["dil", *argv])
        capfd.readouterr()
        with pytest.raises(SystemExit) as ended:
            main()
        torch.set_float32_matmul_precision("highest")  # as a new process has it
        out, err = capfd.readouterr()
        return int(ended.value.code or 0), out, err

    return run


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama over bytes with a tokenizer and a chat template, as `save_pretrained` lays it out."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    folder = tmp_path_factory.mktemp("model")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        special_tokens=["<end>", "<user>", "<assistant>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([], trainer)
    template = (
        "{% for m in messages %}<{{ m['role'] }}>{{ m['content'] }}"
        "{% if m['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<assistant>{% endif %}"
    )
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<end>", chat_template=template)
    fast.save_pretrained(folder)
    torch.manual_seed(0)
    shape = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
        "num_key_value_heads": 1, "max_position_embeddings": 512,
    }  # fmt: skip
    LlamaForCausalLM(LlamaConfig(vocab_size=len(fast), **shape)).save_pretrained(folder)
    return folder


@pytest.fixture
def pairs_file(tmp_path: Path) -> Path:
    """40 short pairs over 20 prompts, in the schema prompt, chosen, rejected."""
    return write_pairs(tmp_path / "pairs.jsonl")


@pytest.fixture
def small_run(model_folder: Path, pairs_file: Path) -> list[str]:
    """Overrides of a run that takes a second or two: 9 steps of 4 pairs (36 of 40, the rest is held out)."""
    return overrides(model_folder, pairs_file)


def write_pairs(path: Path) -> Path:
    """The content of `pairs_file`."""
    rows = (
        {"prompt": f"{i // 2} plus {i % 7} is", "chosen": f"{i // 2 + i % 7}.", "rejected": f"{i} or so."}
        for i in range(40)
    )
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def overrides(model_folder: Path, pairs_file: Path) -> list[str]:
    """What `small_run` is made of."""
    return [
        "model=local", f"model.path={model_folder}", "model.max_length=128", "model.max_prompt_length=64",
        "data=local", f"data.path={pairs_file}", "optim.lr=1e-3", "optim.batch_size=4", "probe.times=3",
        "tracker=none",
    ]  # fmt: skip
