from __future__ import annotations

from pathlib import Path

import pytest
from run_folders import write_run


@pytest.fixture(scope="session")
def seeds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """lsif, dpo and simpo, four seeds each; not to be changed."""
    root = tmp_path_factory.mktemp("seeds") / "outputs"
    for loss in ("lsif", "dpo", "simpo"):
        for seed in range(4):
            write_run(root, loss, seed)
    return root
