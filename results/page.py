"""What a page of docs/results is made of."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from results.chain import Chain

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "results"
IMAGES = FOLDER / "images"


@dataclass(frozen=True)
class Page:
    """A question, the runs that answer it, and what is made of them: blocks of docs/results/NAME.md and figures."""

    name: str
    question: str
    chains: tuple[Chain, ...]
    blocks: Callable[[], Mapping[str, str]]
    draw: Callable[[Path], None]

    @property
    def path(self) -> Path:
        """The page itself."""
        return FOLDER / f"{self.name}.md"

    @property
    def figure(self) -> str:
        """The Markdown that shows it, a block of every page: there is none before the page was run."""
        return f"![{self.question}](images/{self.name}.png)"
