"""`dil losses`: no config is composed, and its help needs the standard library only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dil_cli.errors import DilError
from dil_cli.options import split_options

HELP = """dil losses: list the losses, explain one, draw their gradients

usage: dil losses [NAME ...] [--plot NAME,NAME,...] [--out FILE]

  dil losses                            every loss: formula, needs a reference or not, default reduction, source
  dil losses ukl                        one: formula, symbols, gradient, settings with the papers' ranges, neighbours
  dil losses --plot lsif,ukl,dpo        draw how hard each loss pulls and pushes, as losses.png
  dil losses --plot lsif --out a.pdf    as a.pdf; png, pdf and svg
  dil losses --markdown                 all of them as docs/losses.md

options:
  --config-dir DIR allow_custom=true    with the losses of your own in DIR/loss (docs/custom_loss.md)
"""

FORMATS = (".png", ".pdf", ".svg")


def run(argv: Sequence[str]) -> int:
    """Do what `argv`, the words after `dil losses`, asks for.

    Raises:
        DilError: for an unknown option or loss.
    """
    if {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    names, options = _parse(argv)
    from dil_cli.config import custom
    from dil_cli.losses import LOSSES, loss_class

    custom.load(argv)
    plotted = [name for name in options.get("--plot", "").split(",") if name]
    for name in [*names, *plotted]:
        refused = None if name in LOSSES else custom.refusal(name, argv)
        if refused is not None:
            raise refused
        loss_class(name, place="dil losses {}")
    if "--markdown" in options:
        from dil_cli.catalogue.document import markdown

        print(markdown(), end="")
    elif "--plot" in options:
        from dil_cli.catalogue.plot import plot_losses

        print(plot_losses(plotted, Path(options.get("--out", "losses.png"))))
    else:
        from dil_cli.catalogue.text import explanation, listing

        print("\n".join(explanation(name) for name in names) if names else listing(), end="")
    return 0


def _parse(argv: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """Names and options with their values."""
    takes_a_value = {"--plot": "lsif,ukl,dpo", "--out": "losses.png", "--config-dir": "./myconf"}
    words, options = split_options("dil losses", argv, takes_a_value, {"--markdown"})
    names = [word for word in words if not word.startswith("allow_custom=")]
    _check(names, options)
    return names, options


def _check(names: list[str], options: dict[str, str]) -> None:
    """Refuse what would be passed over."""
    if "--plot" in options or "--markdown" in options:
        what = "--plot" if "--plot" in options else "--markdown"
        if names or ("--plot" in options and "--markdown" in options):
            fix = f"dil losses --plot {','.join(names) or 'lsif,ukl,dpo'}"
            raise DilError(f"{what} takes nothing beside it", f"dil losses {' '.join(names)}", fix)
    if "--out" in options:
        if "--plot" not in options:
            raise DilError(
                "--out is the file of --plot", "dil losses --out", "dil losses --plot lsif,ukl,dpo --out FILE"
            )
        if Path(options["--out"]).suffix not in FORMATS:
            raise DilError(f"a figure is {', '.join(FORMATS)}", f"--out {options['--out']}", "--out losses.png")
