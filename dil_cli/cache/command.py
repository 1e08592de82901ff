"""`dil cache`: no config is composed, and its help needs the standard library only."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from dil_cli.errors import DilError
from dil_cli.options import split_options

HELP = """dil cache: what runs keep for each other: list it, verify it, remove it

usage: dil cache list|verify|prune [KEY] [options]

A run computes the log-probs of its pairs under the starting model once, and keeps them by content: a value is found
again by the token ids of its prompt and response, the weights, the architecture and the precision. Other losses, more
epochs, label noise and other learning rates find all of them; another tokenizer, template, length, precision or a
single changed weight find none. Tokenised data is kept in the same way.
So are the answers of models to benchmarks (dil eval), and their questions in the form that they are read in.

  dil cache list                       every reference and every tokenised split: what, how much, when last used
  dil cache verify                     load each reference's model again and recompute a sample of its values
  dil cache verify 3fa9c2              one reference, by the first digits of its key
  dil cache verify 3fa9c2 --sample 500 up to 500 of the responses whose ids are kept (16 of each file); default 64
  dil cache prune 3fa9c2               remove one reference or tokenised split
  dil cache prune --older-than 30      remove what no run has used for 30 days
  dil cache prune --damaged            remove files that cannot be used and what killed runs left behind
  dil cache prune --all                remove everything; runs compute it again
  dil cache prune --all --dry-run      say what would be removed

options:
  --output DIR                         the runs' output folder, whose cache/ it is; default outputs
  --trust-remote-code                  verify: let a model's own code run, where the run that cached it did

verify ends with 1 if a value differs by more than 1e-4 (fp32) or 2e-2 (bf16) of itself or a file is damaged, and
with 2 if a model is not there or no longer the one.
"""

DEFAULT_SAMPLE = 64
ACTIONS = ("list", "verify", "prune")
VALUES = {"--output": "outputs", "--sample": "64", "--older-than": "30"}
"""Options that take a value, with an example."""
BELONGS = {
    "--output": ACTIONS,
    "--sample": ("verify",),
    "--trust-remote-code": ("verify",),
    "--older-than": ("prune",),
    "--damaged": ("prune",),
    "--all": ("prune",),
    "--dry-run": ("prune",),
}


@dataclass(frozen=True)
class Request:
    """The words after `dil cache`, taken apart."""

    action: str
    key: str | None = None
    options: dict[str, str] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """The cache's folder, which need not be there.

        Raises:
            DilError: when the user named an output folder that is not there.
        """
        output = Path(self.options.get("--output", "outputs"))
        if "--output" in self.options and not output.is_dir():
            raise DilError(f"there is no folder {output}", f"--output {output}", "--output outputs")
        return output / "cache"

    def number(self, option: str, least: float) -> float | None:
        """The value of an option that is a number, `least` or more.

        Raises:
            DilError: when it is not.
        """
        if option not in self.options:
            return None
        try:
            value = float(self.options[option])
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= least):
            raise DilError(
                f"{option} is {self.options[option]}, it must be a number, {least} or more",
                f"dil cache {self.action} {option}",
                f"{option} {VALUES[option]}",
            )
        return value


def run(argv: Sequence[str]) -> int:
    """Do what `argv`, the words after `dil cache`, asks for; returns the exit code.

    Raises:
        DilError: for an unknown action, option or key, or a model that cannot be verified.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    request = parse(argv)
    if request.action == "list":
        from dil_cli.cache.listing import listing

        print(listing(request.folder), end="")
        return 0
    if request.action == "prune":
        from dil_cli.cache.prune import prune

        for line in prune(
            request.folder,
            key=request.key,
            older_than_days=request.number("--older-than", least=0),
            damaged="--damaged" in request.options,
            everything="--all" in request.options,
            dry_run="--dry-run" in request.options,
        ):
            print(line)
        return 0
    from dil_cli.cache.verify import verify

    sample = int(request.number("--sample", least=1) or DEFAULT_SAMPLE)
    return verify(request.folder, request.key, sample, "--trust-remote-code" in request.options)


def parse(argv: Sequence[str]) -> Request:
    """Action, key and options.

    Raises:
        DilError: for what would be passed over.
    """
    action, *words = argv
    if action not in ACTIONS:
        raise DilError(f"no action '{action}'", f"dil cache {action}", f"dil cache {'|'.join(ACTIONS)}")
    for word in words:
        if word.startswith("--") and action not in BELONGS.get(word.partition("=")[0], ()):
            raise DilError(
                f"dil cache {action} has no option {word.partition('=')[0]}",
                f"dil cache {action} {word}",
                "dil cache --help",
            )
    keys, options = split_options(f"dil cache {action}", words, VALUES, BELONGS.keys() - VALUES.keys())
    if len(keys) > (0 if action == "list" else 1):
        extra = keys[-1]
        raise DilError(f"'{extra}' is too much", f"dil cache {' '.join(argv)}", f"dil cache {action}")
    return Request(action, keys[0] if keys else None, options)
