"""Data files and configs, made as a test needs them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from dil_cli.config.schema import DataConfig, DataSource


@pytest.fixture
def config() -> Callable[..., DataConfig]:
    """A DataConfig for a local file with generous lengths, fields overridden by keyword."""

    def make(path: Path | str = "pairs.jsonl", **fields: Any) -> DataConfig:
        given: dict[str, Any] = {
            "source": DataSource.local, "path": str(path), "max_length": 1024, "max_prompt_length": 512,
        }  # fmt: skip
        if "heldout_split" not in fields:
            given["heldout_fraction"] = 0.1
        return DataConfig(**(given | fields))

    return make


@pytest.fixture
def jsonl(tmp_path: Path) -> Callable[..., Path]:
    """Write rows (objects, or text to be put in as it is) as lines; a name ending in .gz is compressed."""

    def write(rows: Iterable[Any], name: str = "pairs.jsonl") -> Path:
        path = tmp_path / name
        lines = (row if isinstance(row, str) else json.dumps(row) for row in rows)
        content = "".join(f"{line}\n" for line in lines).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return write
