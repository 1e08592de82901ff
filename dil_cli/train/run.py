"""`dil train`: everything around the loop, in the order it happens."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from dil_cli.artifacts.manifest import environment
from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.identity import describe, plain, run_hash, to_yaml
from dil_cli.config.schema import TrainConfig, WandbMode
from dil_cli.data.load import load_pairs
from dil_cli.data.template import effective_template
from dil_cli.data.token_cache import tokenizer_fingerprint
from dil_cli.dynamics.alarms import Alarm, new_alarms
from dil_cli.dynamics.plots import dynamics_curves, plot_dynamics
from dil_cli.dynamics.probe import choose_probe, probe_steps
from dil_cli.errors import RunFailed
from dil_cli.files import write_json
from dil_cli.models.load import weights_fingerprint
from dil_cli.models.reference_cache import ReferenceCache
from dil_cli.models.save import save_checkpoint
from dil_cli.tracking.console import ConsoleSink, make_console, tell
from dil_cli.tracking.record import MetricsRecord, read_metrics
from dil_cli.tracking.sink import RunInfo, Sink, Sinks
from dil_cli.train.batches import StepPlan
from dil_cli.train.loop import train
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.preflight import check_column, check_reference, show_pair
from dil_cli.train.prepare import Prepared, prepare
from dil_cli.train.probe import Probe
from dil_cli.train.ready import stay_offline_if_local
from dil_cli.train.reference import complete, look_up, open_cache
from dil_cli.train.step import Batch, WeightsLost
from dil_cli.types import PairLogps, TokenisedPair

PREFLIGHT_PAIRS = 8


def run(config: TrainConfig, chosen: Path | None) -> int:
    """Train, and leave a finished run folder; of one that is finished already, only say where it is.

    Args:
        config: the run.
        chosen: a folder of the user's choice instead of `<output>/<name>-<hash>`.

    Raises:
        DilError: for wrong input, before anything is written.
        RunFailed: when the run could not go on; the folder says why and keeps a checkpoint.
    """
    console = make_console()
    try:
        stay_offline_if_local(config.model.path, config.data)
        with console.phase("reading pairs", None):
            pairs = load_pairs(config.data, config.seed, config.loss.needs_rejected)
        identity = run_hash(config, pairs.fingerprint)
        folder = RunFolder(chosen or Path(config.output).resolve() / f"{config.name}-{identity}")
        if folder.finished(identity):
            console.note(f"finished already: {folder.path}")
            if not folder.picture.is_file():
                draw(folder, config)
        else:
            folder.check_writable()
            if folder.manifest.is_file():
                console.note(f"an unfinished run is in {folder.path}: starting over")
            prepared = prepare(config, pairs, console)
            for line in [*prepared.pairs.counts.describe(), *prepared.notices()]:
                tell(console, line)
            if config.preset:
                tell(console, f"preset: {config.preset}")
            if config.optim.batch_size > len(prepared.train.pairs):
                tell(console, f"optim.batch_size is {config.optim.batch_size}: every step takes all pairs")
            if config.data.notice:
                tell(console, f"notice: {config.data.notice}")
            Run(config, prepared, folder, identity, console).complete()
        console.note(f"picture {folder.picture}")
        console.note(f"record  {folder.metrics}")
    finally:
        console.close()
    return 0


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
    ) -> None:
        self.config, self.splits, self.folder, self.identity = config, prepared.pairs, folder, identity
        self.model, self.tokenizer = prepared.policy.model, prepared.policy.tokenizer
        self.prepared, self.compute, self.console = prepared, prepared.compute, console
        self.pairs = prepared.train.pairs
        self.plan = StepPlan(len(self.pairs), config.optim.batch_size, config.optim.epochs, config.seed)
        self.template = effective_template(self.tokenizer, config.data)
        held_out = prepared.heldout.pairs
        probe_pairs = [held_out[i] for i in choose_probe(len(held_out), config.probe.pairs)]
        self.probe = Probe(self.model, probe_pairs, config.loss, self.compute, folder.probe)
        self.probe_rows: list[dict[str, Any]] = []
        self.alarms: list[Alarm] = []
        self.step = 0

    def complete(self) -> None:
        """Reference column, preflight, training, result."""
        batch, at_start = self._reference()
        self.manifest = self._manifest(batch, at_start)
        self.folder.begin(to_yaml(self.config), self.manifest)
        self.sinks = Sinks(self._listeners())
        try:
            self.sinks.start(self._info())
            self._measure()
            started = time.perf_counter()
            self._train(batch)
            self._finish(time.perf_counter() - started)
        finally:
            self.sinks.close()

    def _reference(self) -> tuple[Batch, float | None]:
        """The training pairs with their reference column, checked against the policy; and the loss at step 0."""
        for line in show_pair(self.pairs[0], self.tokenizer):
            tell(self.console, line)
        self.weights_sha256 = weights_fingerprint(self.model)
        cache = open_cache(self.config, self.model, self.weights_sha256, self.compute)
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
            if found.missing:
                waiting = partial(self.console.phase, f"{name}: another run computes them, waiting", None)
                alone.enter_context(cache.alone(waiting))
                found = look_up(pairs, cache)
            if found.missing:
                with self.console.phase(name, len(found.missing)) as phase:
                    column = complete(found, self.model, self.compute, cache, phase.advance)
            else:
                column = complete(found, self.model, self.compute, cache)
        self.console.note(f"{name}: {found.describe()}")
        while cache.notices:
            self.console.note(cache.notices.pop(0))
        return column

    def _train(self, batch: Batch) -> None:
        optim = self.config.optim
        optimisers = build_optimisers(self.model, optim)
        try:
            train(
                self.model,
                self.config.loss,
                optimisers,
                batch,
                self.plan,
                optim,
                self.compute,
                self._after_step,
            )
        except RunFailed as failure:
            lost = isinstance(failure, WeightsLost)
            kept = "is lost, but for checkpoint.every=N" if lost else f"is in {self._save()}"
            failure.where = f"step {self.step + 1}; the policy before it {kept}"
            write_json(self.folder.failure, {"step": self.step + 1, "what": failure.what, "fix": failure.fix})
            raise

    def _after_step(self, step: int, row: dict[str, Any]) -> None:
        self.step = step
        self.sinks.step(row)
        if step in probe_steps(self.plan.total, self.config.probe.times):
            self._measure()
        every = self.config.checkpoint.every
        if every and step % every == 0 and step < self.plan.total:
            self._save()

    def _measure(self) -> None:
        row = self.probe.measure(self.step)
        self.sinks.probe(row)
        self.probe_rows.append(row)
        for alarm in new_alarms(self.probe_rows, self.config.probe.alarms):
            self.alarms.append(alarm)
            self.sinks.alarm(alarm)

    def _save(self) -> Path:
        folder = self.folder.checkpoint(self.step)
        save_checkpoint(folder, self.model, self.tokenizer, self.template, self.manifest | {"step": self.step})
        return folder

    def _finish(self, seconds: float) -> None:
        checkpoint = self._save()
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
            "train_seconds": round(seconds, 3),
        }
        self.sinks.finish(result)
        write_json(self.folder.result, result)

    def _listeners(self) -> list[Sink]:
        sinks: list[Sink] = [MetricsRecord()]
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
                "parameters": self.model.num_parameters(),
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
