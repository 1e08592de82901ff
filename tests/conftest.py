"""Every test runs offline, on the CPU, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
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
def _folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing a test writes by a relative path reaches the repository."""
    monkeypatch.chdir(tmp_path)
    yield


@pytest.fixture
def dil(tmp_path: Path) -> Callable[..., Completed]:
    """`dil("train", "loss=ukl")` in a process of its own, as a user types it, in `tmp_path`."""

    def run(*argv: str, timeout: float = 240, **env: str) -> Completed:
        return subprocess.run(
            [sys.executable, "-m", "dil_cli", *argv],
            cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, timeout=timeout, check=False,
        )  # fmt: skip

    return run
