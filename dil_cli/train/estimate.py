"""How long a run takes, from pieces of it that were timed, and what it needs of memory and disk.

Work is counted in tokens that the model must read (`packed_tokens`), of which a run's whole number is known: pieces of
other lengths than the average then mislead no one.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch

from dil_cli.data.packing import packed_tokens
from dil_cli.tracking.summary import clock
from dil_cli.train.batches import StepPlan
from dil_cli.train.sizes import size_text
from dil_cli.types import TokenisedPair


@dataclass
class Pieces:
    """Timed work of one kind: seconds and tokens of each piece, in order. The first warms up."""

    device: torch.device
    seconds: list[float] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)

    @contextmanager
    def timed(self, tokens: int) -> Iterator[None]:
        """Time a piece of so many tokens, the accelerator's work included."""
        started = time.perf_counter()
        yield
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        self.seconds.append(time.perf_counter() - started)
        self.tokens.append(tokens)

    @property
    def rate(self) -> float:
        """Tokens a second, of all pieces but the first where there are others."""
        rest = slice(1 if len(self.seconds) > 1 else 0, None)
        return sum(self.tokens[rest]) / sum(self.seconds[rest])

    @property
    def spread(self) -> float | None:
        """Standard error of the rate, relative to it; None below three pieces after the first."""
        rates = torch.tensor([n / s for n, s in zip(self.tokens[1:], self.seconds[1:], strict=True)])
        return None if len(rates) < 3 else float(rates.std() / len(rates) ** 0.5 / rates.mean())

    def whole(self, tokens: int) -> float:
        """Seconds for so many tokens, the first piece with all that its warming up took."""
        return self.seconds[0] + max(0, tokens - self.tokens[0]) / self.rate


def tokens_of(pairs: Sequence[TokenisedPair]) -> int:
    """Tokens that one pass over the pairs must read."""
    return sum(map(packed_tokens, pairs))


def tokens_of_run(pairs: Sequence[TokenisedPair], plan: StepPlan) -> int:
    """Tokens that all steps of a run read: whole epochs, and the steps of the last one that is not."""
    epochs, rest = divmod(plan.total, plan.steps_per_epoch)
    counts = list(map(packed_tokens, pairs))
    last = range(plan.total - rest, plan.total)
    return epochs * sum(counts) + sum(counts[i] for step in last for i in plan.pairs_at(step))


@dataclass(frozen=True)
class Time:
    """Seconds of the parts of a run. `steps` and `probe` carry their numbers; `error` is the steps' standard error."""

    start: float
    reference: float
    reference_pairs: int
    steps: float
    number: int
    probe: float
    probes: int
    measured: int
    error: float | None

    @property
    def whole(self) -> float:
        """Seconds from the command to its end, checkpoints and picture aside."""
        return self.start + self.reference + self.steps + self.probe

    def lines(self) -> list[str]:
        """For the user; what it was estimated from stands last."""
        each = self.steps / self.number
        parts = [
            (f"{count(self.number, 'step')}", self.steps, f"{each:.3g} s each"),
            (f"{count(self.probes, 'probe measurement')}", self.probe, "after the one at step 0"),
            ("reference", self.reference, f"{count(self.reference_pairs, 'pair')} that the cache lacks"),
            ("start", self.start, "loading, tokenising and checks, as just measured"),
        ]
        width = max(len(name) for name, *_ in parts)
        shown = [f"  {name.ljust(width)}  {clock(seconds):>7}  {text}" for name, seconds, text in parts]
        error = "" if self.error is None else f", standard error {self.error:.0%}"
        basis = f"estimated by tokens, from the first {count(self.measured, 'step')} taken in memory{error}"
        return [f"time    about {clock(self.whole)}, {basis}", *shown, "  writing checkpoints comes on top"]


@dataclass(frozen=True)
class Memory:
    """Bytes: weights, their gradients and the optimiser's state as they lie there, the measured peak, what there is.

    `grows` is what a whole run takes beyond the peak, by experience.
    """

    weights: int
    gradients: int
    optimiser: int
    peak: int
    grows: int
    there: int | None
    on: str

    def lines(self) -> list[str]:
        """For the user."""
        fixed = self.weights + self.gradients + self.optimiser
        of = "" if self.there is None else f" of {size_text(self.there)}"
        return [
            f"memory  about {size_text(self.peak + self.grows)}{of} on {self.on}; the peak so far, longest pairs "
            f"included, is {size_text(self.peak)}",
            f"  weights {size_text(self.weights)}, gradients {size_text(self.gradients)}, optimiser "
            f"{size_text(self.optimiser)}, rows and libraries {size_text(max(0, self.peak - fixed))}",
        ]


def count(number: int, noun: str) -> str:
    """`1 step`, `2 steps`."""
    return f"{number:,} {noun}" + ("" if number == 1 else "s")
