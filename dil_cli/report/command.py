"""`dil report`: no config is composed, and its help needs the standard library only."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dil_cli.errors import DilError
from dil_cli.options import split_options

HELP = """dil report: run folders in, one page with figures and tables out

usage: dil report PATH ... [--out DIR] [--baseline KEY=VALUE] [--format LIST]
       dil report --compare RUN RUN [--out DIR]

PATH is a run folder, a folder that holds run folders at any depth, or a sweep's folder. The runs are read as they lie
there; no model is loaded. What was varied is seen in their configs: runs that differ by the seed alone form a group,
and intervals are taken over its seeds (with one seed, over the probe pairs, and the page says so).

  dil report outputs                          every run below outputs
  dil report outputs/sweeps/noise-1a2b3c4d    a sweep: with its question, and the jobs that are missing
  dil report outputs --baseline loss=simpo    differences from SimPO; default loss=dpo, where there is one
  dil report outputs --baseline loss=dpo,loss.beta=0.1
                                              one of several DPO settings
  dil report outputs --format md,csv          only the tables; default html,png,pdf,md,csv,tex
  dil report outputs --out paper              another folder than outputs/reports/<name>-<hash of the runs>
  dil report --compare outputs/A outputs/B    two runs: config, environment, final numbers, where their curves part
  dil report --compare outputs/A outputs/B --out both
                                              the same, and both in one picture, both/compare.png

It writes index.html, which needs no other file and no network, figures/*.png and .pdf, tables/*.md, .csv and .tex.
The same runs give the same bytes. Folders that cannot be read are named on the page and skipped.
"""

VALUES = {"--out": "report", "--baseline": "loss=dpo", "--format": "html,md,csv"}
"""Options that take a value, with an example."""


@dataclass(frozen=True)
class Request:
    """The words after `dil report`, taken apart."""

    paths: tuple[Path, ...]
    options: dict[str, str]

    @property
    def out(self) -> Path | None:
        """The folder that the user named."""
        return Path(self.options["--out"]) if "--out" in self.options else None


def run(argv: Sequence[str]) -> int:
    """Do what `argv`, the words after `dil report`, asks for; returns the exit code.

    Raises:
        DilError: for an unknown option, a path without runs, or a folder that cannot be written.
    """
    if not argv or {"-h", "--help"} & set(argv):
        print(HELP, end="")
        return 0
    request = parse(argv)
    if "--compare" in request.options:
        from dil_cli.report.compare import compare

        for line in compare(request.paths[0], request.paths[1], request.out):
            print(line)
        return 0
    from dil_cli.report.build import ALL_FORMATS, build

    started = time.perf_counter()
    formats = _formats(request.options.get("--format", ",".join(ALL_FORMATS)), ALL_FORMATS)
    report = build(request.paths, request.out, request.options.get("--baseline"), formats)
    print(report.answer.question)
    for sentence in report.answer.findings:
        print(f"- {sentence}")
    print("What this does not show:")
    for sentence in report.answer.limits:
        print(f"- {sentence}")
    for line in report.left_out:
        print(f"left out: {line}")
    print(f"{report.finished} runs in {time.perf_counter() - started:.1f} s")
    print(f"report {report.folder / 'index.html' if 'html' in formats else report.folder}")
    return 0


def parse(argv: Sequence[str]) -> Request:
    """Paths and options.

    Raises:
        DilError: for what would be passed over.
    """
    words, options = split_options("dil report", argv, VALUES, {"--compare"})
    paths = [Path(word) for word in words]
    shown = f"dil report {' '.join(argv)}"
    if "--compare" in options:
        if len(paths) != 2:
            raise DilError(f"--compare takes two runs, not {len(paths)}", shown, "dil report --compare RUN RUN")
        if extra := options.keys() & {"--baseline", "--format"}:
            raise DilError(f"--compare takes no {min(extra)}", shown, "dil report --compare RUN RUN")
    elif not paths:
        raise DilError("no folder is named", shown, "dil report outputs")
    return Request(tuple(paths), options)


def _formats(words: str, known: Sequence[str]) -> list[str]:
    chosen = [word.strip() for word in words.split(",") if word.strip()]
    for word in chosen:
        if word not in known:
            raise DilError(f"no format {word}", f"--format {words}", f"--format {','.join(known)}")
    if not chosen:
        raise DilError("no format is named", f"--format {words}", f"--format {','.join(known)}")
    return chosen
