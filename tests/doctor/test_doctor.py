"""The doctor finds what would stop a run, says what to do, tells no secret and waits for no one."""

from __future__ import annotations

import itertools
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import pytest
import torch

from dil_cli import hub
from dil_cli.config.paths import pins_file
from dil_cli.doctor import machine, model, versions
from dil_cli.doctor.finding import Finding, guarded, without_secrets
from dil_cli.tracking import wandb_sink

NAMES = [
    "python", "packages", "extras", "device", "threads", "precision", "products", "hub", "data", "model", "attention",
    "disk", "wandb", "keys",
]  # fmt: skip
KEY_CONFIGURED = wandb_sink.key_configured
KEY = "5ec2e7" * 6 + "abcd"

Doctor = Callable[..., tuple[int, dict[str, dict]]]


@pytest.fixture(autouse=True)
def _as_a_user_has_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing remembered of the hub, no variables that an earlier command of this process set."""
    hub.reachable.cache_clear()
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.setenv(name, "1")
    for name in ("WANDB_MODE", "HF_TOKEN", "OPENAI_API_KEY", "WANDB_DISABLED"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(wandb_sink, "key_configured", lambda: False)


@pytest.fixture
def doctor(dil_here) -> Doctor:
    """Exit code and findings by name, of `dil doctor --json WORDS`."""

    def run(*words: str) -> tuple[int, dict[str, dict]]:
        code, out, _ = dil_here("doctor", "--json", *words)
        report = json.loads(out)
        assert report["ok"] is (code == 0)
        for finding in report["findings"]:
            assert bool(finding["fix"]) is (finding["status"] != "ok"), finding
        return code, {finding["name"]: finding for finding in report["findings"]}

    return run


@pytest.mark.slow
def test_a_machine_that_works(dil, tmp_path: Path):
    """In a process of its own, as a user sees it."""
    done = dil("doctor", WANDB_MODE="offline", OMP_NUM_THREADS="1")
    assert done.returncode == 0, done.stdout + done.stderr
    lines = done.stdout.splitlines()
    found = [re.match(r"(ok|warning|error) +(\w+) +\S", line) for line in lines]
    assert [match[2] for match in found if match] == NAMES
    for line, after in itertools.pairwise(lines):
        if line.startswith("warning"):  # what to do, or the rest of the text, in the same column
            assert after.startswith(" " * 20)
    assert re.search(r"^ok       attention  rows: packed, each prompt once \(dil_tiles, ", done.stdout, re.MULTILINE)
    assert lines[-1].startswith("runs will work: no errors, ")
    assert lines == [line.rstrip() for line in lines]
    assert not list(tmp_path.iterdir())


def test_json_has_the_facts(doctor: Doctor):
    code, found = doctor()
    assert code == 0
    assert list(found) == NAMES
    assert found["model"]["facts"]["parameters"] == 2_164_416
    assert found["disk"]["facts"]["checkpoint_bytes"] == 4 * 2_164_416
    assert found["disk"]["facts"]["states_bytes"] == 3 * 3 * 4 * 2_164_416
    assert found["packages"]["facts"]["packages"]["torch"] == metadata.version("torch")
    assert found["attention"]["facts"] == {"layout": "shared", "attention": "dil_tiles"}
    assert found["hub"]["status"] == "warning"
    assert found["hub"]["text"].startswith("not asked, HF_HUB_OFFLINE is set")


def test_a_model_of_the_users(doctor: Doctor, model_folder: Path, tmp_path: Path):
    lengths = ["model.max_length=128", "model.max_prompt_length=64"]
    code, found = doctor("model=local", f"model.path={model_folder}", *lengths)
    assert (code, found["model"]["facts"]["type"]) == (0, "llama")
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    (folder / "model.safetensors").write_bytes(b"{broken")
    code, found = doctor("model=local", f"model.path={folder}", *lengths)
    assert (code, found["model"]["status"]) == (1, "error")
    assert found["model"]["text"].startswith(f"the weights of {folder} cannot be loaded")


@pytest.mark.parametrize(
    ("words", "name", "text"),
    [
        (["model=local", "model.path=./nowhere"], "model", "there is no model folder ./nowhere"),
        (["model=mistral7b"], "model", "the model alignment-handbook/zephyr-7b-sft-full is not on this machine"),
        (["data=ultrafeedback"], "data", "the data set HuggingFaceH4/ultrafeedback_binarized is not on this machine"),
        (["data=local", "data.path=no.jsonl"], "data", "there is no file or folder no.jsonl"),
        (["output=/dev/null/x"], "disk", "no run folder can be made: /dev/null is a file"),
        (["data.max_length=9999"], "model", "data.max_length is 9999, the model has"),
        pytest.param(
            ["device=cuda"], "device", "this machine has no cuda device",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)  # fmt: skip
def test_what_would_stop_a_run_is_one_error(words, name, text, doctor: Doctor):
    code, found = doctor(*words)
    assert code == 1
    assert [f["name"] for f in found.values() if f["status"] == "error"] == [name]
    assert found[name]["text"].startswith(text)


@pytest.mark.parametrize("words", [["loss=ukk"], ["--jsn"], ["optim.lr=fast"], ["ukl"]], ids=" ".join)
def test_wrong_words_are_three_lines(words, dil_here):
    code, out, err = dil_here("doctor", *words)
    assert (code, out, len(err.splitlines())) == (2, "", 3)
    assert err.splitlines()[1] == f"where: dil doctor {words[0]}"


def test_no_secret_is_told(dil_here, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(wandb_sink, "key_configured", KEY_CONFIGURED)
    secrets = {"WANDB_API_KEY": KEY, "HF_TOKEN": f"hf_{KEY}", "OPENAI_API_KEY": f"sk-{KEY}", "MY_PASSWORD": KEY[::-1]}
    for name, value in secrets.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("HTTPS_PROXY", "http://me:hunter2hunter2@127.0.0.1:9")
    monkeypatch.setenv("WANDB_MODE", "offline")
    for option in ([], ["--json"]):
        # Also where a user typed one, and an error repeats it.
        _, out, err = dil_here("doctor", *option)
        typed = dil_here("doctor", *option, "data=local", f"data.path={KEY[::-1]}", f"name=x-{KEY}")
        assert typed[0] in {1, 2}
        err += "".join(typed[1:])
        for secret in [*secrets.values(), "hunter2"]:
            assert secret not in out + err
    assert "Hugging Face token set, W&B key set, OPENAI_API_KEY set" in out


def test_secrets_in_texts():
    os.environ["A_TOKEN"], os.environ["SHORT_KEY"] = "abcdefgh", "1"
    try:
        value = {"a": ["x abcdefgh 1", 1], "b": "http://me:pw@host/x"}
        assert without_secrets(value) == {"a": ["x *** 1", 1], "b": "http://***@host/x"}
    finally:
        del os.environ["A_TOKEN"], os.environ["SHORT_KEY"]


def test_a_server_that_never_answers_costs_seconds(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    """Nor does a name server, whose time no time-out of a socket limits."""
    monkeypatch.setattr(hub, "TIMEOUT_S", 0.5)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for name in ("HTTPS_PROXY", "https_proxy"):
        monkeypatch.delenv(name, raising=False)

    def hang(*_: object, **__: object) -> None:
        time.sleep(30)
        raise TimeoutError

    monkeypatch.setattr(socket, "create_connection", hang)
    started = time.monotonic()
    code, found = doctor()
    assert time.monotonic() - started < 20
    assert code == 0
    assert found["hub"]["status"] == "warning"
    assert "does not answer (offline); these settings need nothing of it" in found["hub"]["text"]


def test_a_hub_that_answers(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        for name in ("HF_HUB_OFFLINE", "HTTPS_PROXY", "https_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HF_ENDPOINT", f"http://127.0.0.1:{server.getsockname()[1]}")
        code, found = doctor("model=mistral7b", "data=ultrafeedback")
    assert (found["hub"]["status"], found["hub"]["text"]) == ("ok", "127.0.0.1 answers")
    # Not downloaded, and no error.
    assert code == 0
    assert found["model"]["status"] == "warning"
    assert "dil train downloads it" in found["model"]["text"]


@pytest.mark.parametrize(
    ("variables", "words", "has_key", "status", "text"),
    [
        ({}, [], False, "ok", "offline: no key is configured"),
        ({}, ["tracker=none"], True, "ok", "disabled: tracker=none"),
        ({"WANDB_DISABLED": "true"}, [], True, "ok", "disabled: WANDB_DISABLED is set"),
        ({"WANDB_MODE": "offline"}, [], True, "ok", "offline: WANDB_MODE=offline"),
        ({}, ["tracker.mode=online"], False, "warning", "a run cannot go online (no API key is configured"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, [], True, "warning", "online: a key is configured; but its server"),
    ],
)
def test_what_wandb_will_do_and_why(
    variables, words, has_key, status, text, doctor: Doctor, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(wandb_sink, "key_configured", lambda: has_key)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    code, found = doctor(*words)
    assert code == 0
    assert found["wandb"]["status"] == status
    assert found["wandb"]["text"].startswith(text)
    assert f"W&B key {'set' if has_key else 'not set'}" in found["keys"]["text"]


def test_the_pins_file_are_the_pins():
    pins = versions.read_pins(pins_file().read_text())
    assert pins["torch"] == "2.13.0"
    assert pins["huggingface-hub"] == pins[versions._key("huggingface_hub")]
    assert versions.read_pins("# a==1\nb==2 # why\n\nc>=3\n") == {"b": "2"}
    assert not versions.version_differs("2.13.0+cu128", "2.13.0")
    assert versions.version_differs("2.13.1", "2.13.0")


@pytest.mark.parametrize(
    ("name", "version", "status", "text"),
    [
        ("numpy", None, "error", "numpy is not installed"),
        ("transformers", "4.50.0", "error", "transformers is 4.50.0, dil needs <6,>=5.23"),
        ("rich", "99.0", "warning", "not as tested: rich 99.0 (tested "),
        ("huggingface_hub", "9.9.9", "warning", "not as tested: huggingface_hub 9.9.9 (tested "),
    ],
)
def test_packages_other_than_tested(name, version, status, text, monkeypatch: pytest.MonkeyPatch):
    real = versions.installed
    monkeypatch.setattr(versions, "installed", lambda asked: version if asked == name else real(asked))
    found = [finding for finding in versions.packages() if finding.status != "ok"]
    assert found[0].status == status
    assert found[0].text.startswith(text)
    assert found[0].fix.startswith("pip install ")


def test_a_model_that_does_not_fit_is_not_loaded(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(model, "device_memory", lambda device: 30_000_000)
    monkeypatch.setattr(model, "ready_policy", lambda *_: pytest.fail("it was loaded"))
    code, found = doctor()
    assert code == 1
    assert found["model"]["text"] == (
        "bundled:tiny: 2,164,416 parameters need 35 MB with gradients and optimiser, cpu has 30 MB"
    )


@pytest.mark.parametrize(
    ("free", "status", "code"),
    [(8e6, "error", 1), (86e6, "error", 1), (87e6, "warning", 0), (9e8, "warning", 0), (2e9, "ok", 0)],
)
def test_room_on_the_disk(free, status, code, doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    """A checkpoint of 8.66 MB, and three resume states of weights and AdamW's two moments: 86.6 MB."""
    monkeypatch.setattr(model, "free_disk", lambda folder: int(free))
    assert (doctor()[0], doctor()[1]["disk"]["status"]) == (code, status)


def test_a_gpu_that_torch_does_not_see(doctor: Doctor, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(machine.shutil, "which", lambda name: "/usr/bin/nvidia-smi")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", None)
    code, found = doctor()
    assert (code, found["device"]["status"]) == (0, "warning")
    assert "built without CUDA" in found["device"]["text"]


def test_one_broken_part_hides_no_other():
    def broken():
        yield Finding("x", "ok", "first")
        raise ImportError("libfoo.so is missing\nmore")

    first, second = guarded("x", broken())
    assert (first.text, second.text, second.status) == ("first", "ImportError: libfoo.so is missing", "error")


def test_without_torch_the_versions_are_told(dil, tmp_path: Path):
    (tmp_path / "torch.py").write_text("raise ImportError('libtorch.so is missing')\n")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = dil("doctor", PYTHONPATH=path)
    assert done.returncode == 1
    assert "nothing runs: ImportError: libtorch.so is missing" in done.stdout
    assert re.search(r"^\S+ +packages ", done.stdout, re.MULTILINE)
    assert "Traceback" not in done.stderr


def test_help_teaches(dil_here):
    code, out, _ = dil_here("doctor", "--help")
    assert code == 0
    for name in NAMES:
        assert re.search(rf"\b{name}\b", out)
    assert "Exit code: 0 when runs will work" in out
    assert "doctor" in dil_here("--help")[1]
