"""`python -m results [PAGE ...]`: run what is missing, then rewrite the pages from the runs."""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from dil_cli import hub
from dil_cli.errors import DilError
from dil_cli.main import exit_code
from results.blocks import fill
from results.chain import run_all
from results.grid import NotRun
from results.page import IMAGES, Page
from results.pages import PAGES, data_pages
from results.plan import plan


def main() -> int:
    """The command."""
    data = os.environ.get("DATA")
    by_name = {page.name: page for page in (*PAGES, *(data_pages(Path(data)) if data else ()))}
    parser = argparse.ArgumentParser(prog="python -m results", description=__doc__)
    parser.add_argument("pages", nargs="*", metavar="PAGE", help=f"of {', '.join(by_name)}; all without one")
    parser.add_argument("--plan", action="store_true", help="what there is to run and what it costs; runs nothing")
    parser.add_argument("--write", action="store_true", help="rewrite the pages from what is there; runs nothing")
    parser.add_argument("--at-once", type=int, default=os.cpu_count() or 1, help="sweeps at once (default: the cores)")
    args = parser.parse_args()
    unknown = [name for name in args.pages if name not in by_name]
    if unknown:
        more = "" if data else f"; with DATA=DIR also {', '.join(page.name for page in data_pages(Path('DIR')))}"
        parser.error(f"no page {', '.join(unknown)}; there are {', '.join(by_name)}{more}")
    pages = [by_name[name] for name in args.pages or by_name]
    hub.work_offline()
    print(plan(pages), flush=True)
    if args.plan:
        return 0
    if not args.write:
        for page in pages:
            page.prepare()
        run_all([chain for page in pages for chain in page.chains], args.at_once)
        for page in pages:
            page.measure(args.at_once)
        if len(pages) == len(by_name):
            subprocess.run([sys.executable, "-m", "benchmarks.stability"], check=True)
    return write(pages)


def write(pages: Sequence[Page]) -> int:
    """Blocks and figures of each page whose runs are there; 1 where some are missing."""
    missing = 0
    IMAGES.mkdir(parents=True, exist_ok=True)
    for page in pages:
        try:
            fill(page.path, {"figure": page.figure, **page.blocks()})
            page.draw(IMAGES)
            for picture in (IMAGES / f"{page.name}.png", IMAGES / f"{page.name}_rates.png"):
                if picture.is_file():
                    shrink(picture)
        except (NotRun, DilError) as reason:
            missing = 1
            why = reason.what if isinstance(reason, DilError) else reason
            print(f"{page.path.name} stays as it is: {why}", file=sys.stderr)
        else:
            print(f"{page.path.name} is written")
    return missing


def shrink(picture: Path) -> None:
    """Few colours: a picture of a third of the size, as a repository that keeps them likes it."""
    from PIL import Image

    with Image.open(picture) as drawn:
        drawn.convert("RGB").quantize(96, dither=Image.Dither.NONE).save(picture, optimize=True)


if __name__ == "__main__":
    sys.exit(exit_code(main))
