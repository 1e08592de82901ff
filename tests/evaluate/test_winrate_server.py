"""A win rate by a real server, `transformers serve` on the loopback, which is killed half way and comes back."""

from __future__ import annotations

import http.client
import importlib.util
import json
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

SERVING = ("fastapi", "uvicorn", "openai", "accelerate")

pytestmark = pytest.mark.skipif(
    any(importlib.util.find_spec(name) is None for name in SERVING), reason="needs transformers[serving]"
)


@pytest.fixture
def judge_folder(model_folder: Path, tmp_path: Path) -> Path:
    """A Llama that answers A or B, by what it read, and then ends.

    Of its hidden numbers the first decides: attention alone writes it. The second says that A or B was the last token,
    and no layer writes it.
    """
    from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(6)
    shape = {
        "hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2,
        "max_position_embeddings": 4096, "initializer_range": 0.6, "tie_word_embeddings": False,
    }  # fmt: skip
    model = LlamaForCausalLM(LlamaConfig(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id, **shape))
    answers = tokenizer.convert_tokens_to_ids(["A", "B"])
    with torch.no_grad():
        embedding, head, layer = model.get_input_embeddings().weight, model.lm_head.weight, model.model.layers[0]
        embedding[:, :2] = 0
        embedding[answers, 1] = 50
        layer.mlp.down_proj.weight[:2] = 0
        layer.self_attn.o_proj.weight[1] = 0
        head.zero_()
        head[answers[0], 0], head[answers[1], 0] = 1, -1
        head[tokenizer.eos_token_id, 1] = 1
    folder = tmp_path / "judge"
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


class Server:
    """`transformers serve`, in a process of its own."""

    def __init__(self, model: Path, log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        words = ["-m", "transformers.cli.transformers", "serve", str(model), "--host", "127.0.0.1"]
        self._log = log.open("ab")
        self.process = subprocess.Popen(
            [sys.executable, *words, "--port", str(self.port), "--device", "cpu"],
            stdout=self._log, stderr=self._log, env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def wait(self, seconds: float = 60) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            assert self.process.poll() is None, f"it ended: {Path(self._log.name).read_text()[-2000:]}"
            try:
                connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=2)
                connection.request("GET", "/health")
                if connection.getresponse().status == 200:
                    return
            except OSError:
                time.sleep(0.1)
        pytest.fail(f"no answer in {seconds} s: {Path(self._log.name).read_text()[-2000:]}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()
        self._log.close()


@pytest.fixture
def start(judge_folder: Path, tmp_path: Path) -> Iterator:
    servers: list[Server] = []

    def run() -> Server:
        servers.append(Server(judge_folder, tmp_path / "server.log"))
        return servers[-1]

    yield run
    for server in servers:
        server.kill()


@pytest.mark.slow
def test_the_server_dies_half_way_and_comes_back(start, judge_folder: Path, dil_here, match_words, tmp_path: Path):
    words = [word for word in match_words if not word.startswith(("judge.", "benchmark.max"))]
    words += [f"judge.model={judge_folder}", "judge.concurrency=1", "judge.retries=1", "judge.backoff=0.1"]
    # Short, so that what differs between two questions is much of them, to so small a model.
    (tmp_path / "short.txt").write_text("{prompt} 1 {a} 2 {b}")
    words += ["benchmark.max_new_tokens=20", "judge.prompt=short.txt"]
    server = start()
    second = start()  # starts while the first one works
    server.wait()

    def verdicts() -> list[bytes]:
        return [line for path in tmp_path.glob("outputs/**/verdicts.jsonl") for line in path.read_bytes().splitlines()]

    def kill_half_way() -> None:
        while len(verdicts()) < 6 and server.process.poll() is None:
            time.sleep(0.01)
        server.kill()

    killer = threading.Thread(target=kill_half_way, daemon=True)
    killer.start()
    code, out, err = dil_here("eval", *words, f"judge.base_url={server.url}")
    before = verdicts()
    assert code == 2, out
    assert "the judge does not answer in 2 tries" in err
    assert f"{len(before)} replies are kept, the same command goes on" in err
    assert 6 <= len(before) < 20
    assert not list(tmp_path.glob("outputs/**/winrate*.json"))

    second.wait()
    code, out, err = dil_here("eval", *words, f"judge.base_url={second.url}")
    assert code == 0, err
    assert f"judging: {20 - len(before)} ..." in out
    assert "generating" not in out
    assert verdicts()[: len(before)] == before
    replies = [json.loads(line) for line in verdicts()]
    assert len({line["key"] for line in replies}) == len(replies) == 20
    assert {line["verdict"] for line in replies} == {"A", "B"}, "both, or a judge that cannot judge would do"
    assert all(line["finish"] == "stop" for line in replies)

    (path,) = tmp_path.glob("outputs/**/winrate*.json")
    record = json.loads(path.read_text())
    wins = {
        (line["row"], line["order"]): (line["verdict"] == "A") == (line["order"] == "policy first") for line in replies
    }
    assert record["metrics"]["win_rate"] == pytest.approx(sum(wins.values()) / 20)
    assert record["metrics"]["unparsed"] == 0
    assert record["judge"]["base_url"] == second.url

    code, out, err = dil_here(
        "eval", *words, f"judge.base_url={second.url}", "judge.prompt=null", "benchmark.prompts=1"
    )
    assert code == 0, err
    assert [json.loads(line)["finish"] for line in verdicts()[20:]] == ["stop", "stop"], "our own prompt is taken too"
