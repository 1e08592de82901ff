"""`dil train`: everything around the loop, in the order it happens."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from dil_cli.artifacts.manifest import environment
from dil_cli.artifacts.owner import Owner
from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.artifacts.states import State, States
from dil_cli.config.distributing import Sharding
from dil_cli.config.identity import describe, plain, run_hash, to_yaml
from dil_cli.config.schema import Resume, TrainConfig, WandbMode
from dil_cli.data.load import load_pairs
from dil_cli.data.template import effective_template
from dil_cli.data.token_cache import tokenizer_fingerprint
from dil_cli.distributed.join import joined, to_start
from dil_cli.distributed.start import start
from dil_cli.distributed.world import World
from dil_cli.distributed.zero3 import part
from dil_cli.dynamics.alarms import Alarm, new_alarms
from dil_cli.dynamics.plots import dynamics_curves, plot_dynamics
from dil_cli.dynamics.probe import choose_probe, probe_steps
from dil_cli.errors import DilError, RunFailed
from dil_cli.files import write_json
from dil_cli.models.logps import PASSES
from dil_cli.models.reference_cache import ReferenceCache
from dil_cli.models.save import save_checkpoint
from dil_cli.tracking.console import ConsoleSink, SilentConsole, make_console, tell
from dil_cli.tracking.record import MetricsRecord, read_metrics
from dil_cli.tracking.sink import RunInfo, Sink, Sinks
from dil_cli.train.batches import StepPlan
from dil_cli.train.loop import train
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.preflight import check_column, check_reference, show_pair
from dil_cli.train.prepare import Prepared, prepare
from dil_cli.train.probe import Probe
from dil_cli.train.profiling import profiled
from dil_cli.train.ready import stay_offline_if_local
from dil_cli.train.reference import complete, look_up, open_cache
from dil_cli.train.resume import refuse_drift, restore, save_state, saved_reference
from dil_cli.train.step import Batch, WeightsLost
from dil_cli.train.stop import StopSignals
from dil_cli.types import PairLogps, TokenisedPair

PREFLIGHT_PAIRS = 8

TRAINING_PER_SAVING = 20.0
"""Times as long as a state takes to save that training goes on before the next, whatever was asked for."""


def run(config: TrainConfig, chosen: Path | None) -> int:
    """Train, and leave a finished run folder; of one that is finished already, only say where it is.

    This process does so alone, with the others that a launcher started, or by those that it starts.

    Args:
        config: the run.
        chosen: a folder of the user's choice instead of `<output>/<name>-<hash>`.

    Raises:
        DilError: for wrong input, before anything is written.
        RunFailed: when the run could not go on; the folder says why and keeps a checkpoint.
        Stopped: after a signal; the same command goes on.
    """
    if processes := to_start(config.distributed, config.device):
        return start(processes, run, config, chosen)
    with joined(config.distributed, config.device) as world:
        return _run(config, chosen, world)


def _run(config: TrainConfig, chosen: Path | None, world: World) -> int:
    """The life of one process of the run; the main one alone reads and writes its folder."""
    console = make_console() if world.is_main else SilentConsole()
    try:
        with StopSignals() as signals:
            stay_offline_if_local(config.model.path, config.data)
            with console.phase("reading pairs", None), world.main_first():
                pairs = load_pairs(config.data, config.seed, config.loss.needs_rejected)
            identity = run_hash(config, pairs.fingerprint)
            world.require_same("the run (config and data)", identity)
            folder = RunFolder(chosen or Path(config.output).resolve() / f"{config.name}-{identity}")
            if world.on_main(lambda: folder.finished(identity)):
                if world.is_main:
                    _show_finished(folder, config, console)
            else:
                with Owner(folder.resume, folder.path) as owner:
                    state = world.on_main(lambda: _state(config, folder, console, owner))
                    prepared = prepare(config, pairs, console, world=world)
                    _tell_facts(config, prepared, console)
                    Run(config, prepared, folder, identity, console, signals).complete(state, owner)
        console.note(f"picture {folder.picture}")
        console.note(f"record  {folder.metrics}")
    finally:
        console.close()
    return 0


def _show_finished(folder: RunFolder, config: TrainConfig, console: ConsoleSink) -> None:
    console.note(f"finished already: {folder.path}")
    folder.tidy()
    if not folder.picture.is_file():
        draw(folder, config)


def _state(config: TrainConfig, folder: RunFolder, console: ConsoleSink, owner: Owner) -> State | None:
    """Where to go on; the folder of a run that has begun is owned from here on.

    Raises:
        DilError: when another process trains this run, or there is nothing to go on from and there must be.
    """
    state = None
    folder.check_writable()
    if folder.manifest.is_file():
        owner.own()
        if config.resume is not Resume.never:
            state = States(folder.resume).newest(console.note)
    if state is None and config.resume is Resume.must:
        raise DilError(f"there is no saved state in {folder.path}", "resume=must", "resume=auto starts the run")
    if state is not None:
        console.note(f"an unfinished run is in {folder.path}: going on after step {state.step}")
    elif folder.manifest.is_file():
        console.note(f"an unfinished run is in {folder.path}: starting over")
    return state


def _tell_facts(config: TrainConfig, prepared: Prepared, console: ConsoleSink) -> None:
    for line in [*prepared.pairs.counts.describe(), *prepared.notices()]:
        tell(console, line)
    if config.preset:
        tell(console, f"preset: {config.preset}")
    if config.optim.batch_size > len(prepared.train.pairs):
        tell(console, f"optim.batch_size is {config.optim.batch_size}: every step takes all pairs")
    if config.data.notice:
        tell(console, f"notice: {config.data.notice}")


def draw(folder: RunFolder, config: TrainConfig) -> None:
    """The picture of the folder's record."""
    curves = dynamics_curves(read_metrics(folder.metrics))
    plot_dynamics(curves, folder.picture, title=f"{config.name} ({config.loss.reduction.value})")


class Run:
    """One run from its reference column to its result."""

    def __init__(
        self,
        config: TrainConfig,
        prepared: Prepared,
        folder: RunFolder,
        identity: str,
        console: ConsoleSink,
        signals: StopSignals,
    ) -> None:
        self.config, self.splits, self.folder, self.identity = config, prepared.pairs, folder, identity
        self.model, self.tokenizer = prepared.policy.model, prepared.policy.tokenizer
        self.prepared, self.compute, self.console = prepared, prepared.compute, console
        self.world = prepared.compute.world
        self.pairs = prepared.train.pairs
        self.parameters = {
            "parameters": self.model.num_parameters(),
            "trained": sum(p.numel() for p in self.model.parameters() if p.requires_grad),
        }
        """Counted while the model is whole."""
        self.plan = StepPlan(len(self.pairs), config.optim.batch_size, config.optim.epochs, config.seed)
        self.template = effective_template(self.tokenizer, config.data)
        held_out = prepared.heldout.pairs
        probe_pairs = [held_out[i] for i in choose_probe(len(held_out), config.probe.pairs)]
        self.probe = Probe(self.model, probe_pairs, config.loss, self.compute, folder.probe)
        self.signals, self.states = signals, States(folder.resume)
        self.record = MetricsRecord()
        self.probe_rows: list[dict[str, Any]] = []
        self.alarms: list[Alarm] = []
        self.step = 0
        self.seconds = 0.0
        """Of training, in this process and earlier ones."""

    def complete(self, state: State | None, owner: Owner) -> None:
        """Reference column, preflight, training, result; or from `state` on. The run is owned before it is written."""
        self.weights_sha256 = self.prepared.policy.start_fingerprint()
        self.optimisers = build_optimisers(self.model, self.config.optim)
        if self.config.distributed.kind is Sharding.zero3:
            self.optimisers = [
                part(
                    self.model, self.optimisers[0], self.config.distributed, self.world, self.compute.device,
                    self.compute.bf16, PASSES,
                )
            ]  # fmt: skip
        batch, at_start = self._reference() if state is None else (self._go_on(state), None)
        try:
            if state is None:
                self.manifest = self._manifest(batch, at_start)
                if not self.world.on_main(lambda: self._begin(owner)):
                    return
            self._record(batch)
        except (OSError, SafetensorError) as error:
            raise self._not_written(error) from error

    def _begin(self, owner: Owner) -> bool:
        """Own the folder and make it; False where another process has finished the run in the meantime."""
        owner.own()
        if self.folder.finished(self.identity):  # by another run, while this one computed the reference
            _show_finished(self.folder, self.config, self.console)
            return False
        self.folder.begin(to_yaml(self.config), self.manifest)
        return True

    def _record(self, batch: Batch) -> None:
        """Everything that is written."""
        self.sinks = Sinks(self._listeners())
        try:
            self.sinks.start(self._info())
            if self.step:
                self.sinks.replay(read_metrics(self.folder.metrics))
            else:
                torch.manual_seed(self.config.seed)
                self._measure()
            self._train(batch)
            self._finish()
        finally:
            self.sinks.close()

    def _go_on(self, state: State) -> Batch:
        """Take the run back to `state`, its record and measurements too; the training pairs with their reference.

        Raises:
            DilError: when what the run began with is another now.
        """
        self.manifest = json.loads(self.folder.manifest.read_text(encoding="utf-8"))
        batch, self.probe.start = saved_reference(state, self.pairs)
        refuse_drift(self.manifest, self._manifest(batch, None), self.folder.path, self.console.note)
        restore(state, self.model, self.optimisers)
        self.step, self.seconds = state.step, state.facts["seconds"]
        self.record = MetricsRecord(keep=state.facts["record_bytes"])
        self.world.on_main(self._cut_back)
        rows = read_metrics(self.folder.metrics)
        self.probe_rows = [row for row in rows if "probe/loss" in row]
        self.alarms = [Alarm.of_row(row) for row in rows if "alarm" in row]
        return batch

    def _cut_back(self) -> None:
        self.record.cut_back(self.folder.metrics)
        self.folder.cut_back(self.step)

    def _not_written(self, error: Exception) -> RunFailed:
        """The disk does not take what the run writes; what is there stays whole."""
        reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
        failure = RunFailed(
            f"the run cannot be written: {reason}", str(getattr(error, "filename", None) or self.folder.path),
            "make room or give leave to write; the same command goes on from its last state",
        )  # fmt: skip
        with suppress(OSError):
            write_json(self.folder.failure, {"step": self.step, "what": failure.what, "fix": failure.fix})
        return failure

    def _reference(self) -> tuple[Batch, float | None]:
        """The training pairs with their reference column, checked against the policy; and the loss at step 0."""
        for line in show_pair(self.pairs[0], self.tokenizer):
            tell(self.console, line)
        cache = open_cache(self.config, self.model, self.weights_sha256, self.compute, keep=self.world.is_main)
        first = slice(0, PREFLIGHT_PAIRS)
        self.probe.start = start = self._column("probe set at step 0", self.probe.pairs, cache)
        if not self.config.loss.needs_reference:
            check_column(self.model, self.probe.pairs[first], start.map(lambda x_B: x_B[first]), self.compute)
            return Batch(self.pairs, None, None), None
        column = self._column("reference log-probs", self.pairs, cache)
        value = check_reference(
            self.model, self.config.loss, self.pairs[first], column.map(lambda x_B: x_B[first]), self.compute
        )
        expected = self.config.loss.at_reference()
        known = "" if expected is None else f" (exact: {expected:.6f})"
        self.console.note(f"policy = reference: {self.config.loss.name} is {value:.6f}{known}")
        return Batch(self.pairs, column.policy_chosen_B, column.policy_rejected_B), value

    def _column(self, name: str, pairs: Sequence[TokenisedPair], cache: ReferenceCache) -> PairLogps:
        """The starting model's log-probs, from the cache as far as it has them."""
        found = look_up(pairs, cache)
        with ExitStack() as alone:
            if found.missing and self.world.is_main:
                waiting = partial(self.console.phase, f"{name}: another run computes them, waiting", None)
                alone.enter_context(cache.alone(waiting))
            if found.missing or not self.world.alone:
                # Another run may store values at any time: what the main process has found, all have found.
                cache.values = self.world.from_main(cache.values)
                found = look_up(pairs, cache)
            if found.missing:
                with self.console.phase(name, len(found.missing)) as phase, self.prepared.policy.as_reference():
                    column = complete(found, self.model, self.compute, cache, phase.advance)
            else:
                column = complete(found, self.model, self.compute, cache)
        self.console.note(f"{name}: {found.describe()}")
        while cache.notices:
            self.console.note(cache.notices.pop(0))
        return column

    def _train(self, batch: Batch) -> None:
        began, before = time.monotonic(), self.seconds
        self._saved, self._save_seconds = began, 0.0

        trace = self.folder.profile if self.config.profile else None
        to_go = self.plan.total - self.step
        self.signals.deferring = True
        try:
            with profiled(trace, self.compute.device, to_go, self.console.note) as stepped:

                def after_step(step: int, row: dict[str, Any]) -> None:
                    self.step, self.seconds = step, before + time.monotonic() - began
                    self._after_step(row, batch)
                    stepped()

                train(
                    self.model, self.config.loss, self.optimisers, batch, self.plan, self.config.optim, self.compute,
                    after_step, done=self.step,
                )  # fmt: skip
        except RunFailed as failure:
            lost = isinstance(failure, WeightsLost)
            kept = "is lost, but for its checkpoints and states" if lost else f"is in {self._save()}"
            failure.where = f"step {self.step + 1}; the policy before it {kept}"
            if self.world.is_main:
                write_json(self.folder.failure, {"step": self.step + 1, "what": failure.what, "fix": failure.fix})
            raise
        self.signals.deferring = False

    def _after_step(self, row: dict[str, Any], batch: Batch) -> None:
        self.sinks.step(row)
        if self.step in probe_steps(self.plan.total, self.config.probe.times):
            self._measure()
        every = self.config.checkpoint.every
        if every and self.step % every == 0 and self.step < self.plan.total:
            self._save()
            if self.world.is_main:
                self._keep_newest_and_best()
        self.signals.agree(lambda number: self.world.largest(number)[0])
        if self.signals.asked or (self.step < self.plan.total and self.world.on_main(self._state_is_due)):
            self._save_state(batch)
        self.signals.obey(f"the state after step {self.step} of {self.plan.total} is saved, the same command goes on")

    def _state_is_due(self) -> bool:
        minutes = self.config.checkpoint.resume_minutes
        if not minutes:
            return minutes is not None
        return time.monotonic() - self._saved >= max(60 * minutes, TRAINING_PER_SAVING * self._save_seconds)

    def _save_state(self, batch: Batch) -> None:
        """What the run goes on from; where the disk has no room for it training goes on, unless it is to stop."""
        began = time.monotonic()
        if self.world.is_main:
            self.record.flush_to_disk()
        facts = {"seconds": self.seconds, "record_bytes": self.record.offset}
        assert self.probe.start is not None
        try:
            save_state(self.states, self.step, facts, self.model, self.optimisers, batch, self.probe.start, self.world)
        except (OSError, SafetensorError) as error:
            if self.signals.asked:
                raise
            reason = getattr(error, "strerror", None) or str(error).splitlines()[0]
            self.console.note(f"the state after step {self.step} cannot be saved ({reason}); training goes on")
        self._saved = time.monotonic()
        self._save_seconds = self._saved - began

    def _keep_newest_and_best(self) -> None:
        """Remove the checkpoints that `checkpoint.keep` does not ask for."""
        keep = self.config.checkpoint.keep
        if keep is None:
            return
        steps = sorted(int(path.name.removeprefix("step-")) for path in self.folder.checkpoints.glob("step-*"))
        best = min(steps, key=lambda step: (self._probe_loss(step), -step))
        for step in steps[:-keep]:
            if step != best:
                shutil.rmtree(self.folder.checkpoint(step))

    def _probe_loss(self, step: int) -> float:
        """On the held-out pairs, at the last measurement that the policy after `step` steps had."""
        value = [row["probe/loss"] for row in self.probe_rows if row["step"] <= step][-1]
        return math.inf if value is None else float(value)

    def _measure(self) -> None:
        row = self.probe.measure(self.step)
        self.sinks.probe(row)
        self.probe_rows.append(row)
        for alarm in new_alarms(self.probe_rows, self.config.probe.alarms):
            self.alarms.append(alarm)
            self.sinks.alarm(alarm)

    def _save(self) -> Path:
        folder = self.folder.checkpoint(self.step)
        manifest = self.manifest | {"step": self.step}
        save_checkpoint(folder, self.model, self.tokenizer, self.template, manifest, self.world)
        return folder

    def _finish(self) -> None:
        checkpoint = self._save()
        if not self.world.is_main:
            return
        draw(self.folder, self.config)
        result = {
            "name": self.config.name,
            "hash": self.identity,
            "loss": self.config.loss.name,
            "reduction": self.config.loss.reduction.value,
            "seed": self.config.seed,
            "steps": self.step,
            "checkpoint": str(checkpoint.relative_to(self.folder.path)),
            "start": self.probe_rows[0],
            "end": self.probe_rows[-1],
            "alarms": [plain(alarm) for alarm in self.alarms],
            "train_seconds": round(self.seconds, 3),
        }
        self.sinks.finish(result)
        self.folder.finish(result)

    def _listeners(self) -> list[Sink]:
        if not self.world.is_main:
            return []
        sinks: list[Sink] = [self.record]
        if self.config.tracker.mode is not WandbMode.disabled:
            from dil_cli.tracking.wandb_sink import WandbSink

            sinks.append(WandbSink(self.config.tracker, run_id=self.folder.path.name, say=self.console.note))
        return [*sinks, self.console]

    def _info(self) -> RunInfo:
        return RunInfo(
            name=self.config.name,
            folder=self.folder.path,
            config=describe(self.config),
            total_steps=self.plan.total,
            loss=self.config.loss.name,
            reduction=self.config.loss.reduction.value,
            model=self.config.model.path,
            data=self.config.data.path,
            n_train=len(self.pairs),
            n_probe=len(self.probe.pairs),
        )

    def _manifest(self, batch: Batch, loss_at_start: float | None) -> dict[str, Any]:
        """What the numbers of this run depend on."""
        template = None if self.template is None else hashlib.sha256(self.template.encode()).hexdigest()
        return {
            "hash": self.identity,
            "config": describe(self.config),
            "environment": environment(),
            "device": str(self.compute.device),
            "compute": "bf16" if self.compute.bf16 else "fp32",
            "rows": self.prepared.path,
            "model": {
                "source": self.config.model.path,
                **self.parameters,
                "weights_sha256": self.weights_sha256,
            },
            "tokenizer_sha256": tokenizer_fingerprint(self.tokenizer),
            "template_sha256": template,
            "data_sha256": self.splits.fingerprint,
            "reference_sha256": batch.reference_fingerprint(),
            "loss_at_reference": loss_at_start,
            "pairs": plain(self.splits.counts),
            "tokens": {
                "train": plain(self.prepared.train.counts),
                "heldout": plain(self.prepared.heldout.counts),
            },
            "flipped_rows": sorted(self.splits.flipped),
            "probe_rows": [pair.row for pair in self.probe.pairs],
            "steps": self.plan.total,
        }
