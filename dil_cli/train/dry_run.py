"""`dil train --dry-run`: everything of a run but its writing, up to a few steps, and what the whole would take."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

import torch

from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.distributing import Sharding
from dil_cli.config.identity import run_hash
from dil_cli.config.schema import TrainConfig
from dil_cli.data.load import load_pairs
from dil_cli.data.packing import packed_tokens
from dil_cli.dynamics.measure import score_pairs
from dil_cli.dynamics.probe import choose_probe, probe_steps
from dil_cli.errors import DilError, RunFailed
from dil_cli.tracking.console import ConsoleSink, make_console, tell
from dil_cli.train.batches import StepPlan
from dil_cli.train.estimate import Memory, Pieces, Time, count, tokens_of, tokens_of_run
from dil_cli.train.optimiser import build_optimisers, lr_factor, set_lr
from dil_cli.train.preflight import check_column, check_reference, show_pair
from dil_cli.train.prepare import Prepared, prepare
from dil_cli.train.ready import stay_offline_if_local
from dil_cli.train.reference import look_up, open_cache, reference_column
from dil_cli.train.sizes import (
    checkpoints_at_once,
    device_memory,
    free_disk,
    peak_memory_gb,
    size_text,
    states_at_once,
    trained_bytes,
    weight_bytes,
)
from dil_cli.train.step import Batch, Gradient, accumulate_gradient, apply_gradient, as_read
from dil_cli.types import PairLogps, TokenisedPair

PREFLIGHT_PAIRS = 8
MOST_STEPS = 8
"""Steps that are taken; fewer where they are slow."""
FULL_ROWS = 4
"""Micro-batches that are scored at once, or more: the pass over all pairs has few rows that are not full."""
SCORING_S, STEPPING_S = 5.0, 15.0
"""No further piece is begun that would end later than this, seconds after the first began."""

CPU_GROWTH = 300_000_000
"""Bytes by which the tiny model's runs grow over 20 steps: oneDNN keeps a kernel for each shape of row, up to 1,024."""


def run(config: TrainConfig, chosen: Path | None) -> int:
    """Say what `dil train` would take, and write nothing.

    Args:
        config: the run.
        chosen: a folder of the user's choice instead of `<output>/<name>-<hash>`.

    Raises:
        DilError: for wrong input, as `dil train`.
        RunFailed: when the run would fail at its start, or does not fit the memory or the disk.
    """
    started = time.perf_counter()
    if config.distributed.kind is not Sharding.none:
        raise DilError(
            "a dry run is of one process", f"distributed={config.distributed.kind.value}",
            "distributed=none, or dil plan, which counts several",
        )  # fmt: skip
    console = make_console()
    try:
        stay_offline_if_local(config.model.path, config.data)
        with console.phase("reading pairs", None):
            pairs = load_pairs(config.data, config.seed, config.loss.needs_rejected)
        identity = run_hash(config, pairs.fingerprint)
        folder = RunFolder(chosen or Path(config.output).resolve() / f"{config.name}-{identity}")
        if folder.finished(identity):
            console.note(f"finished already: {folder.path}; the same command only points to it")
            return 0
        folder.check_writable()
        prepared = prepare(config, pairs, console, keep=False)
        for line in [*prepared.pairs.counts.describe(), *prepared.notices()]:
            tell(console, line)
        if config.data.notice:
            tell(console, f"notice: {config.data.notice}")
        try:
            DryRun(config, prepared, folder, console, started).complete()
        except torch.OutOfMemoryError as error:
            raise RunFailed(
                f"the run does not fit the memory of {prepared.compute.device}: {str(error).splitlines()[0]}",
                where="dry run", fix=f"optim.token_budget={max(1, config.optim.token_budget // 2)}, or a smaller model",
            ) from error  # fmt: skip
    finally:
        console.close()
    return 0


class DryRun:
    """One run as far as it is tried: reference, preflight, a few steps, the longest pairs."""

    def __init__(
        self, config: TrainConfig, prepared: Prepared, folder: RunFolder, console: ConsoleSink, started: float
    ) -> None:
        self.config, self.prepared, self.folder, self.console = config, prepared, folder, console
        self.model, self.compute = prepared.policy.model, prepared.compute
        self.started = started
        self.loss = config.loss
        self.pairs = prepared.train.pairs
        self.plan = StepPlan(len(self.pairs), config.optim.batch_size, config.optim.epochs, config.seed)
        held_out = prepared.heldout.pairs
        self.probe = [held_out[i] for i in choose_probe(len(held_out), config.probe.pairs)]
        self.scoring, self.stepping = Pieces(self.compute.device), Pieces(self.compute.device)

    def complete(self) -> None:
        """Try it and say what came of it."""
        missing = self._preflight()
        start = time.perf_counter() - self.started
        with self.console.phase("timing the reference pass", None):
            batches = self._score()
        with self.console.phase("taking steps in memory", len(batches)) as phase:
            optimisers = build_optimisers(self.model, self.config.optim)
            self._steps(optimisers, batches, phase.advance)
        memory = self._memory(optimisers)
        with self.console.phase("trying the longest pairs", None):
            self._longest()
        memory = replace(memory, peak=self._peak(), grows=self._grows())
        probes = len(probe_steps(self.plan.total, self.config.probe.times)) - 1
        spent = Time(
            start=start,
            reference=self.scoring.whole(tokens_of(missing)) if missing else 0.0,
            reference_pairs=len(missing),
            steps=self.stepping.whole(tokens_of_run(as_read(self.pairs, self.loss), self.plan)),
            number=self.plan.total,
            probe=probes * tokens_of(self.probe) / self.scoring.rate,
            probes=probes,
            measured=len(self.stepping.seconds),
            error=self.stepping.spread,
        )
        self._report(memory, spent)

    def _preflight(self) -> list[TokenisedPair]:
        """As the run checks it, on what the cache has; returns the pairs whose reference is to be computed."""
        for line in show_pair(self.pairs[0], self.prepared.policy.tokenizer):
            tell(self.console, line)
        with self.console.phase("checking the reference", None):
            policy = self.prepared.policy
            cache = open_cache(self.config, self.model, policy.start_fingerprint(), self.compute, keep=False)
            wanted = [*self.probe, *(self.pairs if self.loss.needs_reference else ())]
            missing = look_up(wanted, cache).missing
            few = (self.pairs if self.loss.needs_reference else self.probe)[:PREFLIGHT_PAIRS]
            with policy.as_reference():
                column = reference_column(self.model, few, self.compute, cache)
            if self.loss.needs_reference:
                value = check_reference(self.model, self.loss, few, column, self.compute)
            else:
                check_column(self.model, few, column, self.compute)
        for notice in cache.notices:
            self.console.note(notice)
        if self.loss.needs_reference:
            expected = self.loss.at_reference()
            known = "" if expected is None else f" (exact: {expected:.6f})"
            self.console.note(f"policy = reference: {self.loss.name} is {value:.6f}{known}")
        return [wanted[i] for i in missing]

    def _score(self) -> list[Batch]:
        """The batches of the first steps with their reference, as many as there is time to score."""
        began = time.perf_counter()
        steps = [[self.pairs[i] for i in self.plan.pairs_at(step)] for step in range(min(MOST_STEPS, self.plan.total))]
        batches: list[Batch] = []
        while steps:
            parts = [steps.pop(0)]
            while steps and sum(map(tokens_of, parts)) < FULL_ROWS * self.compute.token_budget:
                parts.append(steps.pop(0))
            pairs = list(chain.from_iterable(parts))
            if batches and time.perf_counter() - began + tokens_of(pairs) / self.scoring.rate > SCORING_S:
                break
            with self.scoring.timed(tokens_of(pairs)):
                column = score_pairs(self.model, pairs, self.compute)
            whole = self._batch(pairs, column)
            for end, part in zip(accumulate(map(len, parts)), parts, strict=True):
                batches.append(whole.part(range(end - len(part), end)))
        return batches

    def _batch(self, pairs: Sequence[TokenisedPair], column: PairLogps) -> Batch:
        if not self.loss.needs_reference:
            return Batch(pairs, None, None)
        return Batch(pairs, column.policy_chosen_B, column.policy_rejected_B)

    def _steps(self, optimisers: Sequence[torch.optim.Optimizer], batches: Sequence[Batch], advance: Any) -> None:
        """The first steps of the run as it would take them, `train/loop.py` without its record."""
        began = time.perf_counter()
        self.model.train()
        for step, batch in enumerate(batches):
            tokens = tokens_of(as_read(batch.pairs, self.loss))
            if step and time.perf_counter() - began + tokens / self.stepping.rate > STEPPING_S:
                break
            with self.stepping.timed(tokens):
                set_lr(optimisers, lr_factor(step, self.plan.total, self.config.optim))
                gradient = self._accumulate(batch)
                norm = apply_gradient(self.model, optimisers, batch, self.config.optim.clip, rescore=self._accumulate)
            if not step:
                self.console.note(
                    f"step 1: loss {float(gradient.loss_B.double().mean()):.6f}, gradient norm {norm:.3g}"
                )
            advance(1)

    def _longest(self) -> None:
        """Gradient of the micro-batch that needs most memory."""
        order = sorted(self.pairs, key=packed_tokens, reverse=True)
        room = self.compute.token_budget
        heavy: list[TokenisedPair] = []
        for pair in order:
            room -= packed_tokens(pair)
            if heavy and room < 0:
                break
            heavy.append(pair)
        self._accumulate(self._batch(heavy, score_pairs(self.model, heavy, self.compute)))
        self.model.zero_grad(set_to_none=True)

    def _accumulate(self, batch: Batch) -> Gradient:
        return accumulate_gradient(self.model, self.loss, batch, self.compute)

    def _memory(self, optimisers: Sequence[torch.optim.Optimizer]) -> Memory:
        kept = [x for opt in optimisers for state in opt.state.values() for x in state.values()]
        return Memory(
            weights=weight_bytes(self.model),
            gradients=trained_bytes(self.model),
            optimiser=sum(x.numel() * x.element_size() for x in kept if isinstance(x, torch.Tensor)),
            peak=self._peak(),
            grows=0,
            there=device_memory(self.compute.device),
            on=str(self.compute.device),
        )

    def _peak(self) -> int:
        return round(peak_memory_gb(self.compute.device) * 1e9)

    def _grows(self) -> int:
        """On a GPU what its allocator holds beyond the peak, between blocks; on a CPU the kernels to come."""
        if self.compute.device.type == "cuda":
            return torch.cuda.max_memory_reserved(self.compute.device) - self._peak()
        return CPU_GROWTH

    def _report(self, memory: Memory, spent: Time) -> None:
        config, free = self.config.checkpoint, free_disk(self.folder.path)
        checkpoints = checkpoints_at_once(self.plan.total, config)
        states = states_at_once(config, self.plan.total, spent.steps + spent.probe)
        saved = trained_bytes(self.model)
        of_checkpoints, of_states = checkpoints * saved, states * (saved + memory.optimiser)
        need = of_checkpoints + of_states
        parts = (
            f"{size_text(of_checkpoints)} for {count(checkpoints, 'checkpoint')}, "
            f"{size_text(of_states)} for {count(states, 'resume state')}"
        )
        for line in [*memory.lines(), *spent.lines()]:
            self.console.note(line)
        self.console.note(f"disk    {size_text(need)} at most ({parts}), {size_text(free)} free")
        if self.folder.manifest.is_file():
            self.console.note(f"an unfinished run is in {self.folder.path}; the times are of a whole one")
        if need > free:
            raise RunFailed(
                f"the run needs {size_text(need)} of disk ({parts}), {size_text(free)} are free",
                str(self.folder.path.parent),
                "make room, output=DIR on a larger disk, a larger checkpoint.every, or checkpoint.resume_minutes=null",
            )
        self.console.note(f"dry run: nothing was written; the run would be in {self.folder.path}")
