"""Imports flow one way, and slow ones happen late."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "dil_cli"

ALLOWED = {
    "errors": set(),
    "types": set(),
    "files": set(),
    "options": {"errors"},
    "secrets": set(),
    "hub": {"errors"},
    "losses": {"errors", "types"},
    "config": {"errors", "types", "losses", "secrets"},
    "distributed": {"errors", "secrets", "config", "main"},
    "data": {"errors", "types", "files", "hub", "config"},
    "models": {"errors", "types", "files", "hub", "config", "distributed"},
    "artifacts": {"errors", "types", "files", "config"},
    "dynamics": {"errors", "types", "files", "losses", "config", "data", "models", "artifacts", "distributed"},
    # The record is a file of the run folder, and every sink hears of alarms.
    "tracking": {"errors", "types", "files", "config", "artifacts", "dynamics"},
    "train": {
        "errors", "types", "files", "hub", "losses", "config", "data", "models", "artifacts", "dynamics", "tracking",
        "distributed",
    },
    "catalogue": {"errors", "options", "types", "files", "losses", "config", "dynamics"},
    # `dil cache verify` computes log-probs as a run does, on the device a run would choose.
    "cache": {"errors", "options", "types", "files", "hub", "config", "data", "models", "dynamics", "train"},
    # It reads checkpoints and the configs of models, and writes models.
    "export": {"errors", "options", "files", "hub", "config", "models"},
    # Reads files; neither losses nor models, so that it answers without torch.
    "report": {"errors", "options", "files", "artifacts", "dynamics", "tracking"},
    # It checks what `dil train` would refuse, and its table has the report's intervals.
    "sweep": {"errors", "files", "config", "data", "models", "artifacts", "tracking", "report", "train"},
    # A checkpoint is read as its run read the model; runs are found, and intervals taken, as in a report.
    "evaluate": {
        "errors", "types", "files", "hub", "losses", "config", "data", "models", "artifacts", "dynamics", "tracking",
        "report", "train",
    },
    # It tries what a run would do, and asks the tracker what it would.
    "doctor": {
        "errors", "hub", "config", "data", "models", "artifacts", "dynamics", "tracking", "train",
    },
    # It runs a training step of dil on tensors without content.
    "plan": {"errors", "types", "config", "data", "models", "train"},
    "own": {"config"},
    "main": {"errors", "secrets"},
}  # fmt: skip
"""What each part may import: always to the left in ARCHITECTURE's flow."""

ONLY_IN = {
    "hydra": {"config"}, "omegaconf": {"config"}, "wandb": {"tracking"},
    # lm-eval loads its own questions, and `benchmark.root` stands in for the hub while it does.
    "datasets": {"data", "evaluate"}, "lm_eval": {"evaluate"}, "peft": {"models"}, "openai": {"evaluate"},
    "bitsandbytes": {"train"}, "deepspeed": {"distributed"}, "accelerate": {"distributed"},
}  # fmt: skip
FILES = sorted(PACKAGE.rglob("*.py"))


def imported(tree: ast.AST) -> list[str]:
    names = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    return names


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_flow_one_way(path: Path):
    part = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    if part in {"__init__", "__main__"}:
        return
    for name in imported(ast.parse(path.read_text())):
        head, _, rest = name.partition(".")
        if head == "dil_cli":
            other = rest.partition(".")[0]
            own = {part, "__version__"}
            assert other in own | ALLOWED[part], f"{part} imports {name}"
        assert part in ONLY_IN.get(head, {part}), f"{part} imports {name}"


def test_there_are_files_to_check():
    assert len(FILES) > 40


def test_help_imports_nothing_heavy():
    heavy = (
        "torch", "hydra", "transformers", "datasets", "wandb", "numpy", "rich", "omegaconf", "yaml", "openai",
        "lm_eval", "peft",
    )  # fmt: skip
    for argv in (
        ["--help"],
        ["train", "--help"],
        ["sweep", "--help"],
        ["losses", "--help"],
        ["cache", "--help"],
        ["doctor", "--help"],
        ["report", "--help"],
        ["export", "--help"],
        ["eval", "--help"],
        ["plan", "--help"],
    ):
        code = f"""
import sys
sys.argv = ["dil", *{argv!r}]
from dil_cli.main import main
try:
    main()
except SystemExit as ended:
    assert not ended.code
loaded = [name for name in {heavy!r} if name in sys.modules]
assert not loaded, loaded
"""
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, cwd=ROOT)
