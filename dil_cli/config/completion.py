"""Tab completion: `eval "$(dil -sc install=bash)"`, zsh alike; fish: `dil -sc install=fish | source`.

The shell asks `dil -sc query=SHELL` with its line up to the cursor in COMP_LINE, and gets a candidate a line. Commands,
groups and their choices are answered from file names, at once; keys such as `optim.lr=` by Hydra, which composes the
config for them. The scripts are ours: Hydra's takes `=` out of the user's COMP_WORDBREAKS, and has none for zsh alone.
"""

from __future__ import annotations

import contextlib
import io
import os
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path

from dil_cli.config.help import default_choices, root_config
from dil_cli.config.paths import conf_dir, config_dirs
from dil_cli.errors import DilError

OPTIONS = ("--help", "--cfg", "--config-dir", "--info")
OWN = {"sweep": ("--dry-run",), "train": ("--dry-run", "--multirun"), "eval": ("--stage",), "plan": ("--json",)}
LAUNCHER, LAUNCHERS = "hydra/launcher=", ("basic", "joblib", "slurm", "submitit_local")
WORDS = {
    "export": ("--to", "--merge", "--dtype", "--trust-remote-code"),
    "report": ("--out", "--baseline", "--format", "--compare"),
    "cache": ("list", "verify", "prune"),
    "losses": ("--plot", "--out", "--markdown"),
    "doctor": ("--json", "model=", "data=", "device=", "precision=", "output="),
}
SCRIPTS = {
    "bash": r"""
_dil() {
    local IFS=$'\n' line="${COMP_LINE:0:COMP_POINT}"
    local word="${line##* }"
    COMPREPLY=($(COMP_LINE="$line" "${COMP_WORDS[0]}" -sc query=bash 2>/dev/null))
    [[ "${COMPREPLY[*]}" == *=* ]] && compopt -o nospace  # a value or a comma may follow
    # readline replaces only what follows the last of its word breaks
    [[ $COMP_WORDBREAKS == *=* ]] && COMPREPLY=("${COMPREPLY[@]#"${word%"${word##*=}"}"}")
}
complete -o default -F _dil dil
""",
    "zsh": r"""
(( $+functions[compdef] )) || { autoload -Uz compinit && compinit; }
_dil() {
    local -a found
    local end=' '
    found=(${(f)"$(COMP_LINE="$LBUFFER" $words[1] -sc query=zsh 2>/dev/null)"})
    [[ "$found" == *=* ]] && end=''  # a value or a comma may follow
    if (( $#found )); then compadd -S "$end" -- $found; else _files; fi
}
compdef _dil dil
""",
    "fish": r"""
function __dil
    set -l line (commandline -cp)
    set -l found (COMP_LINE="$line" command dil -sc query=fish 2>/dev/null)
    if test (count $found) -gt 0
        printf '%s\n' $found
    else
        __fish_complete_path (commandline -ct)
    end
end
complete -c dil -f -a '(__dil)'
""",
}
FORGET = {"bash": "complete -r dil", "zsh": "compdef -d dil", "fish": "complete -e -c dil"}


def run(argv: Sequence[str], commands: Sequence[str], with_config: Sequence[str]) -> int:
    """`-sc install=SHELL`, `uninstall=SHELL` or, from the shell's script, `query=SHELL`.

    Args:
        argv: what follows `-sc`.
        commands: all commands of dil.
        with_config: those of them that compose a config.

    Raises:
        DilError: for another word than these.
    """
    action, _, shell = "".join(argv[:1]).partition("=")
    if action not in {"install", "uninstall", "query"} or shell not in SCRIPTS:
        raise DilError(
            f"no completion '{' '.join(argv)}'; shells: {', '.join(SCRIPTS)}",
            "dil -sc",
            'eval "$(dil -sc install=bash)"',
        )
    if action == "query":
        for candidate in candidates(os.environ.get("COMP_LINE", ""), commands, with_config):
            print(candidate)
    else:
        print(SCRIPTS[shell].strip() if action == "install" else FORGET[shell])
    return 0


def candidates(line: str, commands: Sequence[str], with_config: Sequence[str]) -> list[str]:
    """What may stand at the end of a command line that begins with `dil`."""
    words, word = _words(line)
    if not words:
        return sorted(command for command in commands if command.startswith(word))
    command, *given = words
    if command not in with_config:
        offered = default_names("loss") if command == "losses" and "-" not in word else WORDS.get(command, ())
        return sorted(name for name in offered if name.startswith(word))
    if word.startswith("-"):
        return sorted(option for option in [*OPTIONS, *OWN.get(command, ())] if option.startswith(word))
    return _choices(command, word, given) or _keys(word, given)


def default_names(group: str) -> list[str]:
    """The choices of a group that ship with dil."""
    return [path.stem for path in (conf_dir() / group).glob("*.yaml")]


def _words(line: str) -> tuple[list[str], str]:
    """The words after `dil` that are complete, as the shell would pass them on, and the begun one."""
    for closing in ("", '"', "'"):  # the begun word may have opened a quote
        try:
            words = shlex.split(line + closing)[1:]
        except ValueError:
            continue
        begun = not closing and line.endswith(" ")
        return words, "" if begun or not words else words.pop()
    return line.split()[1:], ""


def _choices(command: str, word: str, given: Sequence[str]) -> list[str]:
    """Groups, or the choices of one: after a comma the next of a list."""
    folders = [conf_dir(), *config_dirs(given)]
    groups = [
        *default_choices(root_config(command)),
        *(path.name for folder in folders[1:] for path in _groups(folder)),
    ]
    group, equals, value = word.partition("=")
    if command == "sweep" and word.startswith("hydra"):
        return [f"{LAUNCHER}{name}" for name in LAUNCHERS if f"{LAUNCHER}{name}".startswith(word)]
    if not equals:
        return sorted({f"{name}=" for name in groups if name.startswith(word)})
    if group not in groups:
        return []
    before, comma, last = value.rpartition(",")
    names = {
        str(path.relative_to(folder / group).with_suffix(""))
        for folder in folders
        for path in (folder / group).rglob("*.yaml")
    }
    return sorted(f"{group}={before}{comma}{name}" for name in names if name.startswith(last))


def _groups(folder: Path) -> list[Path]:
    return [path for path in sorted(folder.iterdir()) if path.is_dir()] if folder.is_dir() else []


def _keys(word: str, given: Sequence[str]) -> list[str]:
    """Keys and their values, from Hydra."""
    from dil_cli.config.compose import register_schemas

    register_schemas()
    overrides = [name for name in given if "=" in name and not name.startswith("-")]
    os.environ["COMP_LINE"] = " ".join(["dil", *overrides, word])
    dirs = [option for folder in config_dirs(given) for option in ("--config-dir", str(folder))]
    return _hydra(["-sc", "query=bash", *dirs]).split()


def _hydra(options: Sequence[str]) -> str:
    """What Hydra prints for `dil OPTIONS`."""
    import hydra

    sys.argv = ["dil", *options]
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name="train")(lambda config: None)()
    return said.getvalue()
