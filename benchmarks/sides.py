"""The sides of a comparison: a process each, of which one at a time is told to go a round.

Processes, because a peak of memory and the matmul setting belong to a process; told, because rounds that alternate see
the same moods of the machine.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from benchmarks.models import Shape
from benchmarks.pairs import Batches
from benchmarks.trl_side import Settings

PATIENCE = 5.0
"""Seconds a finished process is given to end."""


@dataclass(frozen=True)
class Side:
    """One way of training. `trl` None is dil, `reference` then says whether a round has its reference pass in it."""

    name: str
    title: str
    trl: Settings | None = None
    grouped: bool = False
    reference: bool = False
    checkpointing: bool = False
    attention: str = "sdpa"


@dataclass(frozen=True)
class Job:
    """What all sides of a comparison share."""

    shape: Shape
    batches: Batches
    bf16: bool
    threads: int
    rounds: int
    device: str = "cpu"
    token_budget: int = 2048
    lr: float = 1e-5
    seed: int = 0


@dataclass
class Result:
    """What a side reported; `seconds` of each round, `on_core` those of them its main thread ran, memory in 10^9 bytes.

    first: (loss, gradient norm) of the first step. gradients: dil's own of the first batch, by order. moved: distance
    of the weights from the start after the last round. memory_gb: peak above the level before the first step.
    """

    name: str
    seconds: list[float] = field(default_factory=list)
    on_core: list[float] = field(default_factory=list)
    first: tuple[float, float] | None = None
    gradients: dict[str, tuple[float, float]] = field(default_factory=dict)
    memory_gb: float = 0.0
    before_gb: float = 0.0
    body_tokens: float = 0.0
    reference_seconds: float = 0.0
    weight_sum: float = 0.0
    moved: float = 0.0
    threads: int = 0
    path: str = ""
    failed: str | None = None


def compare(sides: Sequence[Side], job: Job, together: bool = True, between: Any = lambda: None) -> dict[str, Result]:
    """All rounds of all sides, alternating: A, B, C, A, B, C, ...

    Args:
        sides: at least one; one that fails leaves the others running.
        job: what they share.
        together: all processes live at once, and each goes on from its last round. Without it every round is a process
            of its own, which is what a GPU has memory for.
        between: called before every turn of rounds and at the end, when no side computes.
    """
    results = {side.name: Result(side.name) for side in sides}
    if together:
        players = [Player(side, job, results[side.name]) for side in sides]
        try:
            for _ in range(job.rounds):
                between()
                for player in players:
                    player.play()
        finally:
            for player in players:
                player.end()
    else:
        for _ in range(job.rounds):
            between()
            for side in sides:
                player = Player(side, replace(job, rounds=1), results[side.name])
                try:
                    player.play()
                finally:
                    player.end()
    between()
    return results


class Player:
    """The parent's end of a side."""

    def __init__(self, side: Side, job: Job, result: Result) -> None:
        self.result = result
        context = multiprocessing.get_context("spawn")
        self.link, child = context.Pipe()
        # OpenMP reads its thread count when a process starts.
        os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(job.threads)
        self.process = context.Process(target=_child, args=(child, side, job), daemon=True)
        self.process.start()
        child.close()
        # One at a time here too: the warm-up of one must not disturb that of another.
        self._hear("ready")

    def play(self) -> None:
        """One round."""
        if self.result.failed is None:
            self._say("round")
            self._hear("round")

    def end(self) -> None:
        """Ask for the end, and see to it."""
        if self.result.failed is None:
            self._say("end")
            self._hear("end")
        self.process.join(PATIENCE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()

    def _say(self, word: str) -> None:
        with suppress(BrokenPipeError):
            self.link.send(word)

    def _hear(self, word: str) -> None:
        try:
            kind, facts = self.link.recv()
        except (EOFError, ConnectionResetError):
            self.process.join()
            self.result.failed = f"the process ended ({self.process.exitcode}) before {word}"
            return
        if kind == "failed":
            self.result.failed = facts
            return
        for key, value in facts.items():
            if key in {"seconds", "on_core"}:
                getattr(self.result, key).append(value)
            elif key == "memory_gb":
                self.result.memory_gb = max(self.result.memory_gb, value)
            else:
                setattr(self.result, key, value)


class Stage:
    """The child's end: clock, memory and counters around the steps of a side."""

    def __init__(self, link: Connection, model: Any, job: Job) -> None:
        from benchmarks.models import weight_sum

        self.link, self.model, self.job = link, model, job
        self.start = [p.detach().clone() for p in model.parameters()] if job.device == "cpu" else []
        self.weight_sum = weight_sum(model)
        self.tokens = tokens = [0]

        def count(module: Any, inputs: Any, output: Any) -> None:
            tokens[0] += inputs[0].numel()

        # A plain function, so that a copied model, as a reference is, adds to the same count.
        model.get_input_embeddings().register_forward_hook(count)

    def before_first(self) -> None:
        """Everything is built and nothing computed."""
        from benchmarks.memory import PeakMemory

        self.memory = PeakMemory(self.model.device)

    def ready(self, first: tuple[float, float] | None, **facts: Any) -> bool:
        """The first step is done. Returns whether there is a round to go."""
        import torch

        facts |= {"first": first, "threads": torch.get_num_threads(), "before_gb": self.memory.start / 1e9}
        facts |= {"weight_sum": self.weight_sum}
        self.link.send(("ready", facts))
        return self._next()

    def round_done(self) -> bool:
        """The steps of a round are done. Returns whether there is another."""
        self._sync()
        seconds = time.perf_counter() - self.started
        on_core = time.thread_time() - self.started_core
        facts = {"seconds": seconds, "on_core": on_core, "memory_gb": self.memory.growth_gb()}
        self.link.send(("round", facts | {"body_tokens": self.tokens[0] / len(self.job.batches.pairs)}))
        return self._next()

    def moved(self) -> float:
        """How far the weights are from where they started."""
        pairs = zip(self.model.parameters(), self.start, strict=False)
        return float(sum(((p.detach() - q) ** 2).sum().double() for p, q in pairs)) ** 0.5

    def _next(self) -> bool:
        go = self.link.recv() == "round"
        if not go:
            self.link.send(("end", {"moved": self.moved()}))
        self.tokens[0] = 0
        self._sync()
        self.started, self.started_core = time.perf_counter(), time.thread_time()
        return go

    def _sync(self) -> None:
        import torch

        if self.job.device == "cuda":
            torch.cuda.synchronize()


def _child(link: Connection, side: Side, job: Job) -> None:
    """One side, from its model to the last round."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
                   "TQDM_DISABLE": "1", "TRANSFORMERS_VERBOSITY": "error"}  # fmt: skip
    warnings.simplefilter("ignore", FutureWarning)
    try:
        import torch

        from benchmarks.models import build

        torch.set_num_threads(job.threads)
        stage = Stage(link, build(job.shape, job.seed, job.device, side.attention), job)
        with tempfile.TemporaryDirectory() as folder:
            if side.trl is None:
                _run_dil(stage, side)
            else:
                _run_trl(stage, side, side.trl, Path(folder))
    except (EOFError, BrokenPipeError):
        return  # the parent was stopped
    except Exception as error:  # whatever it is, the other sides go on
        traceback.print_exc()
        link.send(("failed", f"{type(error).__name__}: {next(iter(str(error).splitlines()), '')}"))


def _run_trl(stage: Stage, side: Side, settings: Settings, folder: Path) -> None:
    from benchmarks.trl_side import Trl

    job = stage.job
    order = job.batches.grouped if side.grouped else job.batches.shuffled
    # The first step warms up. A round is as many steps as there are batches, so each batch comes once in every round.
    steps = 1 + job.rounds * len(order)
    trl = Trl(stage.model, job.batches.pairs, order, settings, steps=steps, folder=folder, bf16=job.bf16, lr=job.lr)

    def after_step(step: int, loss: float | None, norm: float | None) -> bool:
        if step == 1:
            assert loss is not None
            assert norm is not None
            return stage.ready((loss, norm), reference_seconds=trl.reference_seconds, path=str(settings))
        return stage.round_done() if (step - 1) % len(order) == 0 else True

    trl.run(stage.before_first, after_step)


def _run_dil(stage: Stage, side: Side) -> None:
    from benchmarks.dil_side import Dil

    job = stage.job
    dil = Dil(
        stage.model, job.batches.pairs, bf16=job.bf16, token_budget=job.token_budget, lr=job.lr,
        checkpointing=side.checkpointing,
    )  # fmt: skip
    started = time.perf_counter()
    dil.score()
    reference_seconds = time.perf_counter() - started
    orders = {"shuffled": job.batches.shuffled, "grouped": job.batches.grouped}
    gradients = {name: dil.gradient(order[0]) for name, order in orders.items()}
    order = [*job.batches.shuffled[1:], job.batches.shuffled[0]]
    stage.before_first()
    row = dil.train([job.batches.shuffled[0]])[0]
    first = (row["loss"], row["grad_norm"])
    going = stage.ready(first, gradients=gradients, reference_seconds=reference_seconds, path=dil.path)
    while going:
        # A first run: the weights of this moment are its start, and their log-probs its reference.
        if side.reference:
            dil.score()
        dil.train(order)
        going = stage.round_done()
