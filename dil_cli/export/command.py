"""`dil export`: no config is composed, and its help needs the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dil_cli.errors import DilError
from dil_cli.options import split_options

HELP = """dil export: a checkpoint as a folder that other programs load

usage: dil export CHECKPOINT --to DIR [--merge] [--dtype fp32|bf16] [--trust-remote-code]

CHECKPOINT is a finished run's folder, one of its checkpoints, or a folder with a model or an adapter.

  dil export outputs/RUN --to DIR                   as it is: a whole model (transformers), or an adapter (peft)
  dil export outputs/RUN --merge --to DIR           an adapter added to its base: one model that needs neither
  dil export outputs/RUN --merge --dtype bf16 --to DIR
                                                    the same in half the room; added in float32, then rounded

Without --dtype the weights keep their type; a merged model has float32. DIR must not be there. Chat template, tokenizer
and manifest go with the weights.
"""

VALUES = {"--to": "my-model", "--dtype": "bf16"}
"""Options that take a value, with an example."""
DTYPES = ("fp32", "bf16")


@dataclass(frozen=True)
class Request:
    """The words after `dil export`, taken apart; `dtype` is None where the weights keep theirs."""

    checkpoint: Path
    to: Path
    merge: bool
    dtype: str | None
    trust_remote_code: bool


def run(argv: Sequence[str]) -> int:
    """Do what `argv`, the words after `dil export`, asks for; returns the exit code.

    Raises:
        DilError: for an unknown option, a checkpoint that is none, or a folder that is there or cannot be written.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    request = parse(argv)
    from dil_cli.export.write import export

    print(export(request))
    return 0


def parse(argv: Sequence[str]) -> Request:
    """What is asked for.

    Raises:
        DilError: for what would be passed over.
    """
    words, options = split_options("dil export", argv, VALUES, {"--merge", "--trust-remote-code"})
    shown = f"dil export {' '.join(argv)}"
    if len(words) != 1:
        raise DilError(f"one checkpoint is exported, not {len(words)}", shown, "dil export outputs/RUN --to DIR")
    if "--to" not in options:
        raise DilError("no folder is named to export to", shown, f"{shown} --to DIR")
    dtype = options.get("--dtype")
    if dtype not in (None, *DTYPES):
        raise DilError(f"no type {dtype}", f"--dtype {dtype}", f"--dtype {DTYPES[0]}, or {DTYPES[1]}")
    to = Path(options["--to"]).expanduser()
    return Request(Path(words[0]).expanduser(), to, "--merge" in options, dtype, "--trust-remote-code" in options)
