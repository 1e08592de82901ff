"""Tab completion, as a shell asks for it."""

from __future__ import annotations

from pathlib import Path

import pytest

COMMANDS, WITH_CONFIG = ["train", "sweep", "losses"], ["train", "sweep"]


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
        ("dil losses ", [], ["loss="]),
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
    assert candidates(f"dil train --config-dir {tmp_path}/mine loss=z", COMMANDS, WITH_CONFIG) == ["loss=zebra"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_scripts_for_shells(shell, dil_here):
    code, out, err = dil_here("-sc", f"install={shell}")
    assert code == 0, err
    assert ("complete -c dil" if shell == "fish" else "hydra_bash_completion dil") in out


def test_another_shell_is_refused(dil_here):
    code, _, err = dil_here("-sc", "install=tcsh")
    assert code == 2
    assert "shells: bash, zsh, fish" in err
