"""Tab completion, as a shell asks for it."""

from __future__ import annotations

import os
import pty
import re
import select
import shutil
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

COMMANDS, WITH_CONFIG = ["train", "sweep", "losses", "report"], ["train", "sweep"]


@pytest.mark.parametrize(
    ("line", "some", "none"),
    [
        ("dil ", ["train", "sweep", "losses"], ["loss="]),
        ("dil tr", ["train"], ["sweep"]),
        ("dil train lo", ["loss="], ["model="]),
        ("dil train loss=uk", ["loss=ukl"], ["loss=dpo"]),
        ("dil sweep loss=lsif,uk", ["loss=lsif,ukl"], ["loss=ukl"]),
        ("dil train experiment=", ["experiment=tiny_sft"], []),
        ("dil sweep --d", ["--dry-run"], ["--cfg"]),
        ("dil train loss=ukl optim.l", ["optim.lr="], ["optim.clip="]),
        ("dil sweep ", ["loss="], ["override hydra/sweeper="]),
        ("dil sweep hydra", ["hydra/launcher=joblib", "hydra/launcher=slurm"], ["hydra."]),
        ("dil losses u", ["ukl", "ukl_official"], ["loss=", "dpo"]),
        ("dil losses --p", ["--plot"], ["ukl"]),
        ("dil report --", ["--compare", "--baseline"], ["loss="]),
    ],
)
def test_what_may_follow(line, some, none):
    from dil_cli.config.completion import candidates

    found = candidates(line, COMMANDS, WITH_CONFIG)
    assert set(some) <= set(found)
    assert not set(none) & set(found)


def test_groups_of_a_user(tmp_path: Path):
    from dil_cli.config.completion import candidates

    (tmp_path / "mine" / "loss").mkdir(parents=True)
    (tmp_path / "mine" / "loss" / "zebra.yaml").write_text("")
    for word in (f"{tmp_path}/mine", f'"{tmp_path}/mine"', f"'{tmp_path}/mine'", f"{tmp_path}/m\\ine"):
        assert candidates(f"dil train --config-dir {word} loss=z", COMMANDS, WITH_CONFIG) == ["loss=zebra"]


STARTS = {
    "bash": ["bash", "--norc", "--noprofile", "-i"],
    "zsh": ["zsh", "-f", "-i"],
    "fish": ["fish", "--no-config", "-i"],
}
INSTALL = {
    "bash": 'eval "$(dil -sc install=bash)"',
    "zsh": 'autoload -Uz compinit; compinit -u; eval "$(dil -sc install=zsh)"',
    "fish": "dil -sc install=fish | source",
}


@pytest.mark.parametrize("shell", STARTS)
def test_tab_in_a_real_shell(shell, tmp_path: Path):
    """What a person sees who types a word's beginning and TAB; zsh and fish where the machine has them."""
    if shutil.which(shell) is None:
        pytest.skip(f"no {shell} here")
    (tmp_path / "conf" / "loss").mkdir(parents=True)
    (tmp_path / "conf" / "loss" / "zebra.yaml").write_text("")
    (tmp_path / "runs").mkdir()
    with terminal(STARTS[shell], tmp_path) as typed:
        typed(f"{INSTALL[shell]}; echo rea''dy\n", "ready")
        for begun, whole in (
            ("dil tr", "dil train "),
            ("dil train lo", "dil train loss="),
            ("dil sweep loss=lsif,jef", "dil sweep loss=lsif,jeffreys"),
            ("dil train --config-dir conf loss=ze", "dil train --config-dir conf loss=zebra"),
            ("dil train loss=ukl optim.sch", "dil train loss=ukl optim.schedule="),
            ("dil report ru", "dil report runs/"),
        ):
            typed(f"{begun}\t", whole)
            typed("\x15", "")


@contextmanager
def terminal(command: list[str], folder: Path) -> Iterator[Callable[[str, str], None]]:
    """A shell in a terminal of its own: `typed(keys, text)` waits until it shows the text."""
    pid, screen = pty.fork()
    if pid == 0:
        os.chdir(folder)
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        os.execvpe(command[0], command, {"PATH": path, "HOME": str(folder), "TERM": "xterm", "PS1": "$ "})

    def typed(keys: str, text: str) -> None:
        os.write(screen, keys.encode())
        shown, end = "", time.monotonic() + 30
        while text not in shown or not text:
            if not select.select([screen], [], [], 0.2 if not text else max(0.0, end - time.monotonic()))[0]:
                assert not text, f"after {keys!r}: {shown!r} and not {text!r}"
                return
            shown += re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", os.read(screen, 65536).decode(errors="replace"))

    try:
        yield typed
    finally:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        os.close(screen)


def test_another_shell_is_refused(dil_here):
    code, _, err = dil_here("-sc", "install=tcsh")
    assert code == 2
    assert "shells: bash, zsh, fish" in err
