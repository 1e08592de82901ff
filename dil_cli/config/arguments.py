"""The command line before Hydra sees it: what its parser would answer with a page of usage, said in three lines."""

from __future__ import annotations

from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path

from dil_cli.config.help import default_choices, root_config
from dil_cli.config.paths import conf_dir, config_dirs
from dil_cli.errors import DilError

SWITCHES = ("--resolve", "--run", "-r", "--multirun", "-m", "--shell-completion", "-sc", "--hydra-help", "--version")
TAKE_A_VALUE = {
    "--cfg": ("job", "hydra", "all"),
    "-c": ("job", "hydra", "all"),
    "--info": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "-i": ("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
    "--package": (), "-p": (), "--config-dir": (), "-cd": (),
}  # fmt: skip
"""Hydra's options with the values they take; any value where none are listed. --info may stand alone.

Not --experimental-rerun, which unpickles; nor --config-path and --config-name: another root config may import packages.
"""
LONGEST_KEY = 200
"""Hydra looks for a file of the key's name, and no file has one as long as that."""
OWN = {"train": ("--dry-run",), "sweep": ("--dry-run",), "eval": ("--stage",), "plan": ("--json",)}
"""Options of one command alone."""


def split_argv(command: str, argv: Sequence[str]) -> tuple[list[str], list[str]]:
    """Overrides and options apart: Hydra's parser wants all overrides on one side of the options.

    Raises:
        DilError: for an option that does not exist or lacks its value, and for overrides that Hydra would
            take apart with a message of its own.
    """
    overrides: list[str] = []
    options: list[str] = []
    words = list(argv)
    while words:
        word = words.pop(0)
        flag, equals, value = word.partition("=")
        if flag == "--dry-run" and command == "sweep":
            overrides.append("hydra.sweeper.dry_run=true")
        elif flag == "--dry-run" and command == "train":
            options.append(flag)
        elif flag == "--json" and command == "plan":
            overrides.append("json=true")
        elif flag == "--stage" and command == "eval":
            follows = bool(words) and not words[0].startswith("-") and "=" not in words[0]
            folder = value if equals else words.pop(0) if follows else ""
            if not folder:
                raise DilError("--stage needs a folder", f"dil eval {word}", "--stage ./benchmarks benchmark=paper")
            overrides.append(f"stage={quoted(folder)}")
        elif not flag.startswith("-"):
            # An experiment reads the same with and without Hydra's append sign.
            overrides.append(word.removeprefix("+") if word.startswith("+experiment=") else word)
        elif flag in SWITCHES:
            options.append(flag)
        elif flag in TAKE_A_VALUE:
            follows = bool(words) and not words[0].startswith("-") and "=" not in words[0]
            given = [value] if equals else [words.pop(0)] if follows else []
            _check_value(command, flag, given)
            options += [flag, *given]
        else:
            known = [*SWITCHES, *TAKE_A_VALUE, *OWN.get(command, ())]
            close = get_close_matches(flag, known, n=1)
            hint = f"; did you mean {close[0]}?" if close else ""
            raise DilError(f"no option {flag}{hint}", f"dil {command} {word}", f"dil {command} --help")
    folders = [conf_dir(), *config_dirs(argv)]
    for word in overrides:
        _check_preset(command, word, folders)
        _check_override(command, word)
    return overrides, options


def quoted(text: str) -> str:
    """A value as Hydra's grammar takes any text."""
    return "'" + text.replace("'", "\\'") + "'"


def _check_value(command: str, flag: str, given: list[str]) -> None:
    known = TAKE_A_VALUE[flag]
    if not given and flag not in {"--info", "-i"}:
        raise DilError(f"{flag} needs a value", f"dil {command} {flag}", f"{flag} {known[0] if known else './myconf'}")
    if known and given and given[0] not in known:
        raise DilError(f"{flag} takes {', '.join(known)}", f"dil {command} {flag} {given[0]}", f"{flag} {known[0]}")


def _check_preset(command: str, word: str, folders: Sequence[Path]) -> None:
    """The root config takes a preset as optional, so Hydra would pass over one that is not there."""
    key, _, value = word.partition("=")
    known = sorted({path.stem for folder in folders for path in folder.glob("preset/*.yaml")})
    for choice in value.split(",") if key == "preset" else []:
        if choice not in known:
            close = get_close_matches(choice, known, n=1)
            hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known)}"
            fix = f"preset={close[0] if close else 'none'}"
            raise DilError(f"no '{choice}' in preset; {hint}", f"dil {command} {word}", fix)


def _check_override(command: str, word: str) -> None:
    key, _, value = word.partition("=")
    where = f"dil {command} {word}"
    if not key.strip("+~"):
        example = "key=value; quote what the shell or Hydra would split: 'data.path=\"my file.jsonl\"'"
        raise DilError(f"'{word}' is not of the form key=value", where, example)
    if key.lstrip("+") == "hydra.searchpath":
        raise DilError(
            "dil reads YAML from one more folder only, and imports no package for it", where, "--config-dir DIR"
        )
    if "=" in word and len(key) > LONGEST_KEY:
        raise DilError(f"no key has {len(key):,} characters", where, f"dil {command} --cfg job lists all keys")
    if word.startswith("~"):
        raise DilError("nothing can be taken out of a config, only changed", where, f"{word[1:].partition('=')[0]}=...")
    if key == "experiment" and "," in value:
        raise DilError(
            "each experiment has a grid of its own, so they are swept one by one",
            where,
            f"experiment={value.partition(',')[0]}, then the next",
        )
    groups = default_choices(root_config(command))
    if key in groups and (value.startswith(("[", "{")) or value in {"", "null"}) and key != "experiment":
        raise DilError(f"{key} takes one choice", where, f"{key}={groups[key]}, or with -m {key}=a,b for several runs")
