"""What a page of docs/results is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from results.chain import Chain

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"
IMAGES = FOLDER / "images"


def _nothing() -> None:
    pass


def _no_measurement(at_once: int) -> None:
    pass


def _no_time() -> float:
    return 0.0


@dataclass(frozen=True)
class Page:
    """A question, the runs that answer it, and what is made of them: blocks of docs/results/NAME.md and figures.

    `prepare` makes what its runs start from; `measure` is what is measured on finished runs beside their own record, so
    many at once. Both leave what is there already as it is; they take about `measuring` seconds on 2 cores.
    """

    name: str
    question: str
    chains: tuple[Chain, ...]
    blocks: Callable[[], Mapping[str, str]]
    draw: Callable[[Path], None]
    prepare: Callable[[], None] = _nothing
    measure: Callable[[int], None] = _no_measurement
    measuring: Callable[[], float] = _no_time

    @property
    def path(self) -> Path:
        """The page itself."""
        return FOLDER / f"{self.name}.md"

    @property
    def figure(self) -> str:
        """The Markdown that shows it, a block of every page: there is none before the page was run."""
        return f"![{self.question}](images/{self.name}.png)"
