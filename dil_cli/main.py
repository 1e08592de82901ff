"""The `dil` command: standard library only, so that `dil --help` answers at once."""

from __future__ import annotations

import io
import os
import sys
import traceback
from collections.abc import Callable
from importlib import import_module
from types import TracebackType
from typing import NoReturn

from dil_cli import __version__
from dil_cli.errors import DilError, speaks
from dil_cli.secrets import hidden

COMMANDS = {
    "train": "train a policy on preference pairs and record its likelihood dynamics",
    "sweep": "train every combination of some values; finished runs are kept, the rest goes on",
    "plan": "memory, time and disk of a run before it is started, on a machine that need not be here",
    "eval": "measure checkpoints: held-out likelihoods, reasoning benchmarks, win rates by a judge",
    "export": "a checkpoint as a folder that other programs load; an adapter merged into its model",
    "report": "tables, figures and one page from finished runs; compare two of them",
    "losses": "list the losses, explain one, draw their gradients",
    "cache": "list, verify and remove what runs keep for each other",
    "doctor": "whether runs will work here: versions, devices, attention, hub, W&B, disk; what to do where not",
}

WITHOUT_CONFIG = {
    "export": "dil_cli.export.command",
    "report": "dil_cli.report.command",
    "losses": "dil_cli.catalogue.command",
    "cache": "dil_cli.cache.command",
    "doctor": "dil_cli.doctor.command",
}
"""Commands that compose no config: `run(argv)` of their module does all, `--help` included."""

HELP = f"""dil {__version__}: preference optimisation by direct imitation learning (arXiv 2503.05079)

usage: dil COMMAND [group=choice ...] [key=value ...]

commands:
{{commands}}

examples:
  dil train                                     the tiny bundled model on bundled pairs, minutes on a laptop
  dil train loss=ukl                            another loss; dil train --help lists all groups
  dil train loss=dpo loss.beta=0.05 seed=1      any value can be set
  dil train peft=lora                           adapters beside frozen weights
  dil train model=mistral7b data=ultrafeedback  the paper's 7B setting
  dil sweep loss=lsif,bce,ukl,dpo seed=0,1,2    twelve runs and a table; the same command again goes on
  dil plan model=llama3_8b gpu=h100-80          does it fit, how long will it take
  dil eval checkpoint=outputs/RUN               its likelihoods on held-out pairs, with intervals
  dil eval checkpoint=RUN benchmark=paper       MMLU-Pro, BBH, MuSR, MATH, GSM8K and ARC
  dil export outputs/RUN --merge --to DIR       an adapter and its model as one
  dil report outputs                            all finished runs: figures, intervals over seeds, what they show
  dil losses ukl                                what a loss is; dil losses lists all
  dil cache list                                the reference log-probs that runs share
  dil doctor                                    does all work here, and if not, what to do

dil COMMAND --help explains a command. Tab completion: eval "$(dil -sc install=bash)", or zsh; fish: ... | source
Errors in three lines; DIL_TRACEBACK=1 adds the traceback.
"""


def main() -> NoReturn:
    """Entry point: dispatch, and turn every outcome into an exit code.

    0 done, 2 wrong input, 130 Ctrl-C, 75 stopped by a signal to go on later, 1 anything else.
    """
    for stream in (sys.stdout, sys.stderr):  # a path or a pair may hold what an ASCII terminal cannot show
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")
    sys.excepthook = show_traceback
    sys.exit(exit_code(lambda: dispatch(sys.argv[1:])))


def exit_code(work: Callable[[], int]) -> int:
    """The code that `work` returns, or that of what ended it, which is printed."""
    try:
        return work()
    except DilError as error:
        if os.environ.get("DIL_TRACEBACK"):
            raise
        if speaks():
            print(hidden(str(error)), file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt as stop:
        print(str(stop) or "interrupted", file=sys.stderr)
        return int(getattr(stop, "exit_code", 130))
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


def show_traceback(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    """What Python prints of an error that nobody caught, without a secret that it may quote."""
    print(hidden("".join(traceback.format_exception(kind, error, trace))), file=sys.stderr, end="")


def dispatch(argv: list[str]) -> int:
    """Run the command that `argv` names.

    Raises:
        DilError: for an unknown command.
    """
    if not argv or argv[0] in {"-h", "--help", "help"}:
        width = max(map(len, COMMANDS))
        lines = (f"  {name.ljust(width)}  {text}" for name, text in COMMANDS.items())
        print(HELP.format(commands="\n".join(lines)), end="")
        return 0
    if argv[0] in {"-V", "--version"}:
        print(f"dil {__version__}")
        return 0
    command, *rest = argv
    if command in {"-sc", "--shell-completion"}:
        with_config = [name for name in COMMANDS if name not in WITHOUT_CONFIG]
        return int(import_module("dil_cli.config.completion").run(rest, list(COMMANDS), with_config))
    if command not in COMMANDS:
        from difflib import get_close_matches

        close = get_close_matches(command, COMMANDS, n=1)
        hint = f"did you mean {close[0]}?" if close else f"commands: {', '.join(COMMANDS)}"
        raise DilError(f"no command '{command}'; {hint}", where=f"dil {command}", fix="dil --help")
    if command in WITHOUT_CONFIG:
        return int(import_module(WITHOUT_CONFIG[command]).run(rest))
    if {"-h", "--help"} & set(rest):
        print(import_module("dil_cli.config.help").command_help(command, COMMANDS[command], rest), end="")
        return 0
    return int(import_module("dil_cli.config.compose").run_command(command, rest))
