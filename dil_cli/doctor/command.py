"""`dil doctor`: its words, its help and its report. Standard library until something is looked at."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from dil_cli.doctor.finding import Finding, Status, without_secrets
from dil_cli.errors import DilError

if TYPE_CHECKING:
    from rich.console import Console

HELP = """dil doctor: whether runs will work on this machine, and what to do where they will not

usage: dil doctor [--json] [group=choice ...] [key=value ...]

  dil doctor                                 for `dil train` as it stands: the bundled model and pairs
  dil doctor model=local model.path=DIR      a model of yours is loaded, and tried in packed rows
  dil doctor model=mistral7b device=cuda output=/scratch/runs
  dil doctor --json > doctor.json            the same for a bug report; no key, token or password is in it

Any word of dil train is taken. What it looks at:

  python, packages   against what dil requires, and against the versions that its tests ran with
  extras             what only some parts of dil eval need
  device, threads    the accelerator a run takes, idle ones, cores that torch leaves unused
  precision          fp32, or bf16 autocast where the device multiplies it natively
  products           whether oneDNN multiplies float32 matrices exactly on this CPU, and how fast they are
  hub                whether the Hugging Face hub answers within seconds, and whether it is needed
  data, model        whether they are there, and fit the memory; nothing is downloaded
  attention          how the model takes rows: packed where it is exact in them, checked against plain rows
  disk               room for checkpoints where the runs are written
  wandb              online, offline or disabled, and why
  keys               each as set or not set

Marks: ok; warning: runs work, but slower, less well recorded or untested; error: a run would stop.
The line under a warning or an error says what to do. Exit code: 0 when runs will work, 1 with an error, 2 for
words that dil train does not know. dil train --dry-run goes further: it takes a few steps of one run in memory.
"""

NAME_WIDTH = 9
STYLES = {Status.ok: "green", Status.warning: "yellow", Status.error: "bold red"}
PLAIN_WIDTH = 160
"""Columns of a report that goes to a file."""


def run(argv: Sequence[str]) -> int:
    """Examine, report, and return the exit code: 1 if something would stop a run.

    Raises:
        DilError: for words that `dil train` would refuse.
    """
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    words = [word for word in argv if word != "--json"]
    as_json = len(words) < len(argv)
    wrong = next((word for word in words if word.startswith("-") and not word.startswith(("--config-dir", "-cd"))), "")
    if wrong:
        raise DilError(f"no option {wrong}", f"dil doctor {wrong}", "dil doctor --help")
    from dil_cli.doctor.examine import examine

    found = []
    console = None if as_json else _console()
    for finding in examine(words):
        found.append(finding)
        if console is not None:
            _show(console, finding)
    statuses = [finding.status for finding in found]
    if console is None:
        print(json.dumps(_report(found), indent=2, ensure_ascii=False))
    else:
        errors, warnings = statuses.count(Status.error), statuses.count(Status.warning)
        verdict = "something would stop a run" if errors else "runs will work"
        print(f"\n{verdict}: {_count(errors, 'error')}, {_count(warnings, 'warning')}")
    return 1 if Status.error in statuses else 0


def _report(found: Sequence[Finding]) -> dict[str, object]:
    """For `--json`: the verdict, each finding with its facts, and the versions that decide a number."""
    from dil_cli.artifacts.manifest import environment

    content = {
        "ok": all(finding.status is not Status.error for finding in found),
        "findings": [vars(finding) | {"status": finding.status.value} for finding in found],
        "environment": environment(),
    }
    report: dict[str, object] = without_secrets(content)
    return report


def _console() -> Console:
    from rich.console import Console

    return Console(highlight=False, markup=False, width=None if sys.stdout.isatty() else PLAIN_WIDTH)


def _show(console: Console, finding: Finding) -> None:
    """The finding beside its mark, what to do under it."""
    from rich.table import Table
    from rich.text import Text

    row = Table.grid(padding=(0, 2))
    row.add_column(width=max(map(len, Status)))
    row.add_column(width=NAME_WIDTH)
    row.add_column(overflow="fold")
    mark = Text(finding.status.value, STYLES[finding.status])
    row.add_row(mark, Text(finding.name), Text(without_secrets(finding.text)))
    if finding.fix:
        row.add_row("", "", Text(f"-> {without_secrets(finding.fix)}"))
    with console.capture() as printed:
        console.print(row)
    print("\n".join(line.rstrip() for line in printed.get().splitlines()), flush=True)


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" if number == 1 else f"{number or 'no'} {noun}s"
