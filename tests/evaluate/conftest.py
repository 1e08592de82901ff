"""A scripted judge, and a small match for it to judge."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from scripted import Script, ScriptedServer

LENGTHS = ["model.max_length=128", "model.max_prompt_length=64"]


@pytest.fixture
def serve() -> Iterator[Callable[[Script], ScriptedServer]]:
    """`serve(script)` -> a running server."""
    servers: list[ScriptedServer] = []

    def start(script: Script) -> ScriptedServer:
        servers.append(ScriptedServer(script))
        return servers[-1]

    yield start
    for server in servers:
        server.close()


@pytest.fixture
def match_words(model_folder: Path, tmp_path: Path) -> list[str]:
    """Words for `dil eval`: a model of no run, ten held-out prompts of two pairs each, a judge that waits little."""
    rows = [{"prompt": f"{i // 2} plus 3 is", "chosen": f"{i + 3}.", "rejected": f"{i} or so."} for i in range(40)]
    path = tmp_path / "pairs.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [
        f"checkpoint={model_folder}", "data=local", f"data.path={path}", "data.heldout_fraction=0.5", *LENGTHS,
        "benchmark=winrate", "benchmark.max_new_tokens=6", "judge=openai", "judge.model=scripted", "judge.backoff=0.01",
        "judge.retries=6", "judge.timeout=5",
    ]  # fmt: skip


@pytest.fixture
def win(dil_here, match_words: list[str]):
    """`win(server, "benchmark.prompts=3")` -> the record."""

    def run(server: ScriptedServer, *argv: str) -> dict[str, Any]:
        code, out, err = dil_here("eval", *match_words, f"judge.base_url={server.url}", *argv)
        assert code == 0, err
        written = next(line for line in out.splitlines() if line.startswith("record "))
        return json.loads(Path(written.removeprefix("record ")).read_text())

    return run


@pytest.fixture
def kept(tmp_path: Path) -> Callable[[str], list[dict[str, Any]]]:
    """`kept("verdicts")` -> the lines that were stored, in their order."""

    def read(name: str) -> list[dict[str, Any]]:
        (path,) = tmp_path.glob(f"outputs/**/eval/winrate/{name}.jsonl")
        return [json.loads(line) for line in path.read_text().splitlines()]

    return read


@pytest.fixture
def adapters(model_folder: Path, tmp_path: Path) -> dict[str, Path]:
    """Two adapters on the model, and the first one again with another scale: its weights are the same."""
    pytest.importorskip("peft", reason="the extra 'eval' is not installed")
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    folders = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        base = AutoModelForCausalLM.from_pretrained(model_folder)
        config = LoraConfig(r=2, lora_alpha=64, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
        folders[name] = tmp_path / name
        get_peft_model(base, config).save_pretrained(folders[name])
    folders["scaled"] = Path(shutil.copytree(folders["one"], tmp_path / "scaled"))
    file = folders["scaled"] / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"lora_alpha": 2}))
    return folders


@pytest.fixture
def merged(model_folder: Path, adapters: dict[str, Path], tmp_path: Path) -> Path:
    """The first adapter merged into the model, by peft itself."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    whole = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(model_folder), adapters["one"])
    whole.merge_and_unload().save_pretrained(tmp_path / "merged")
    AutoTokenizer.from_pretrained(model_folder).save_pretrained(tmp_path / "merged")
    return tmp_path / "merged"
