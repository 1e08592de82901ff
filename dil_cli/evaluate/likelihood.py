"""Held-out log-probs of a checkpoint against the model it started from, and against another checkpoint.

P pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dil_cli.config.schema import DataConfig, EvalConfig, ModelConfig
from dil_cli.data.join import join_splits
from dil_cli.data.load import fingerprint, load_pairs
from dil_cli.data.tokenise import tokenise_pairs
from dil_cli.dynamics.measure import score_pairs, with_reference
from dil_cli.dynamics.probe import choose_probe, write_probe
from dil_cli.dynamics.statistics import (
    MIN_MARGIN_GAIN,
    ROUNDING,
    Float64,
    array,
    has_rejected,
    pair_statistics,
    size,
    wins,
)
from dil_cli.errors import DilError
from dil_cli.evaluate.drift import blamed_on_drift, check_drift, check_start, reading_facts
from dil_cli.evaluate.naming import likelihood_name
from dil_cli.evaluate.target import Target, data_config, model_config, start_config
from dil_cli.losses import LOSSES
from dil_cli.models.adapters import base_parameters
from dil_cli.models.load import weights_fingerprint
from dil_cli.models.reference_cache import ReferenceCache, identify
from dil_cli.report.intervals import Interval, bootstrap, sign_flip_p
from dil_cli.tracking.console import ConsoleSink
from dil_cli.train.ready import Ready, ready_policy, stay_offline_if_local
from dil_cli.train.reference import complete, look_up, precision
from dil_cli.types import PairLogps, TokenisedPair

HEADLINE = (
    "logps/chosen", "logps/rejected", "prefers_chosen", "delta/chosen", "delta/rejected", "delta/margin", "accuracy",
    "accuracy_mean", "chosen_cost",
)  # fmt: skip
"""Metrics that tables show; the others of `pair_statistics` are in the record under `more`."""


Check = Callable[[Mapping[str, Any]], None]


@dataclass(frozen=True, eq=False)
class Scored:
    """A checkpoint's log-probs of the held-out pairs, and what they depend on; `pairs_sha256` is of the pairs' text."""

    name: str
    pairs: Sequence[TokenisedPair]
    pairs_sha256: str
    logps: PairLogps
    facts: dict[str, Any]


class Likelihood:
    """The measurement of one or more checkpoints; a model that several are compared with is scored once."""

    def __init__(self, config: EvalConfig, console: ConsoleSink) -> None:
        self.config, self.console = config, console
        self._known: dict[str, Scored] = {}

    def evaluate(self, target: Target, against: Target | None = None) -> dict[str, Any]:
        """The record of one checkpoint; its pairs go to the folder of the record's name beside it.

        Args:
            target: the checkpoint.
            against: another one, to be compared with on the same pairs.

        Raises:
            DilError: when something cannot be read, or has drifted since the run.
        """
        config = self.config
        model, data = model_config(config, target), data_config(config, target)
        start = self._start(target, data)
        scored = self._score(target, model, data, lambda facts: check_drift(config, target, facts))
        logps = scored.logps
        if start is not None:
            _same_pairs(scored, start)
            logps = with_reference(scored.logps, start.logps)
        values = pair_statistics(logps, target.reduction, None if start is None else start.logps)
        samples = per_pair(logps, target.reduction)
        if "prefers_chosen" in samples:
            values["prefers_chosen"] = float(samples["prefers_chosen"].mean())
        headline = {name: values[name] for name in HEADLINE if name in values}
        ends = {name: _ends(_interval(name, samples)) for name in headline}
        record = {
            "benchmark": likelihood_name(config, target, against),
            "checkpoint": {"name": target.name, "loss": target.loss, **scored.facts},
            "reference": None if start is None else {"name": start.name, **_of_model(start.facts)},
            "pairs": len(scored.pairs),
            "pairs_sha256": scored.pairs_sha256,
            "reduction": target.reduction,
            "metrics": headline,
            "intervals": {name: interval for name, interval in ends.items() if interval is not None},
            "by_length": by_length(logps, target.reduction, config.benchmark.buckets),
            "more": {name: value for name, value in values.items() if name not in headline},
            "accepted": list(config.accept),
        }
        if against is not None:
            theirs = model_config(config, against) if against.run is not None else replace(model, path=against.path)
            other = self._score_once(replace(target, name=against.name, path=against.path), theirs, data)
            _same_pairs(scored, other)
            record["against"] = {
                "name": against.name,
                **_of_model(other.facts),
                "gaps": compare(scored.logps, other.logps),
            }
        folder, rows = target.folder / "eval" / str(record["benchmark"]), [pair.row for pair in scored.pairs]
        write_probe(folder, target.step, rows, logps, None if start is None else start.logps)
        return record

    def _start(self, target: Target, data: DataConfig) -> Scored | None:
        """The pairs under the model that changes are relative to; None where the checkpoint has no run."""
        config = self.config
        model = start_config(config, target)
        if model is None:
            return None
        start = replace(target, name=model.path, path=model.path)

        def check(facts: Mapping[str, Any]) -> None:
            check_start(config, target, model.path, facts["weights_sha256"])

        return self._score_once(start, model, data, check, kept=True)

    def _score_once(
        self,
        target: Target,
        model: ModelConfig,
        data: DataConfig,
        check: Check = lambda facts: None,
        kept: bool = False,
    ) -> Scored:
        # What does not change a log-prob must not keep the runs of a sweep apart.
        read = replace(model, lr=1.0, batch_size=1, token_budget=1)
        seed = None if data.join_to is None else pairs_seed(self.config, target)
        key = repr((read, replace(data, limit=None, label_noise=0.0), seed, _needs_rejected(target)))
        if key not in self._known:
            self._known[key] = self._score(target, model, data, check, kept)
        check(self._known[key].facts)
        return self._known[key]

    def _score(self, target: Target, model: ModelConfig, data: DataConfig, check: Check, kept: bool = False) -> Scored:
        """The held-out pairs under a model.

        Args:
            target: whose run decides which pairs they are.
            model: what is loaded.
            data: the pairs.
            check: hears of the facts before anything is tokenised.
            kept: whether the log-probs come from the reference cache, as far as it has them, and go there.
        """
        config, console = self.config, self.console
        stay_offline_if_local(model.path, data)
        seed = pairs_seed(config, target)
        splits = load_pairs(data, seed, _needs_rejected(target))
        budget = model.token_budget
        ready = ready_policy(model, data, config.device, config.precision, budget, console)
        tokenizer = ready.policy.tokenizer
        if data.join_to is not None:
            splits = join_splits(splits, tokenizer, data, seed)
        facts = {
            "path": target.path,
            "weights_sha256": weights_fingerprint(ready.policy.model),
            **reading_facts(tokenizer, data),
            "data": data.path,
            "data_sha256": splits.fingerprint,
            "rows": ready.path,
            "compute": "bf16" if ready.compute.bf16 else "fp32",
        }
        check(facts)
        with blamed_on_drift(config, target, facts):
            tokens = tokenise_pairs(splits.heldout, tokenizer, data, cache=Path(config.output) / "cache" / "tokens")
        most = config.benchmark.pairs or len(tokens.pairs)
        pairs = [tokens.pairs[i] for i in choose_probe(len(tokens.pairs), most)]
        rows = {pair.row for pair in pairs}
        text = fingerprint([], [pair for pair in splits.heldout if pair.row in rows], frozenset())
        logps = self._logps(target.name, model, ready, pairs, facts["weights_sha256"] if kept else None)
        return Scored(target.name, pairs, text, logps, facts)

    def _logps(
        self, name: str, model: ModelConfig, ready: Ready, pairs: Sequence[TokenisedPair], weights_sha256: str | None
    ) -> PairLogps:
        """Through the cache that training runs share where the weights' hash is given."""
        policy, console = ready.policy.model, self.console
        if weights_sha256 is None:
            with console.phase(f"scoring {name}", len(pairs)) as phase:
                return score_pairs(policy, pairs, ready.compute, phase.advance)
        reference = identify(policy, weights_sha256, precision(ready.compute, policy))
        folder = Path(self.config.output) / "cache" / "reference"
        cache = ReferenceCache(folder, reference, model, base_parameters(policy))
        found = look_up(pairs, cache)
        if found.missing:
            with console.phase(f"scoring {name}", len(found.missing)) as phase:
                logps = complete(found, policy, ready.compute, cache, phase.advance)
        else:
            logps = complete(found, policy, ready.compute, cache)
        if found.hits:
            console.note(f"{name}: {found.describe()}")
        for notice in cache.notices:
            console.note(notice)
        return logps


def pairs_seed(config: EvalConfig, target: Target) -> int:
    """Of the pairs that are held out: the run's."""
    return config.seed if target.run is None else target.run.seed


def _needs_rejected(target: Target) -> bool:
    """Whether rows without a rejected response are left out, as the run's loss had it."""
    loss = None if target.run is None else LOSSES.get(target.run.loss)
    return target.run is not None and (loss is None or bool(loss.needs_rejected))


def _of_model(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Facts less those of the data, which are the checkpoint's."""
    return {name: value for name, value in facts.items() if name not in {"data", "data_sha256"}}


def _same_pairs(a: Scored, b: Scored) -> None:
    """Two checkpoints can be compared only where they read the same tokens."""
    same = len(a.pairs) == len(b.pairs) and all(
        np.array_equal(getattr(x, side), getattr(y, side))
        for x, y in zip(a.pairs, b.pairs, strict=True)
        for side in ("prompt", "chosen", "rejected")
    )
    if not same:
        raise DilError(
            f"{a.name} and {b.name} read these pairs as different tokens, so their log-probs cannot be "
            "compared", f"checkpoint={a.facts['path']}", "compare checkpoints with one tokenizer and template",
        )  # fmt: skip


def per_pair(logps: PairLogps, reduction: str) -> dict[str, Float64]:
    """Numbers of each pair, (P,), whose means are metrics; only what the input can give."""
    tokens = {"chosen": array(logps.chosen_tokens_B)}
    policy = {"chosen": array(logps.policy_chosen_B) / tokens["chosen"]}
    if has_rejected(logps):
        tokens["rejected"] = array(logps.rejected_tokens_B)
        policy["rejected"] = array(logps.policy_rejected_B) / tokens["rejected"]
    found = {f"logps/{side}": values for side, values in policy.items()}
    if "rejected" in policy:
        found["prefers_chosen"] = wins(policy["chosen"] - policy["rejected"])
    if logps.reference_chosen_B is None:
        return found
    reference = {"chosen": array(logps.reference_chosen_B)}
    if "rejected" in policy and logps.reference_rejected_B is not None:
        reference["rejected"] = array(logps.reference_rejected_B)
    total = {side: policy[side] * tokens[side] - reference[side] for side in reference}
    found |= {f"delta/{side}": values / tokens[side] for side, values in total.items()}
    if "rejected" in total:
        found["delta/margin"] = found["delta/chosen"] - found["delta/rejected"]
        found["accuracy_mean"] = wins(found["delta/margin"], ROUNDING * size(logps, "mean"))
        margin = found["delta/margin"] if reduction == "mean" else total["chosen"] - total["rejected"]
        found["accuracy"] = wins(margin, ROUNDING * size(logps, reduction))
    return found


def by_length(logps: PairLogps, reduction: str, buckets: int) -> list[dict[str, Any]]:
    """The means of `per_pair` over buckets of equal size by the tokens of the chosen response, the shortest first."""
    samples = per_pair(logps, reduction)
    tokens = logps.chosen_tokens_B.cpu().numpy()
    order = np.argsort(tokens, kind="stable")
    rows = []
    for bucket in np.array_split(order, min(buckets, len(order))):
        means = {name: float(values[bucket].mean()) for name, values in samples.items()}
        rows.append(
            {"tokens": [int(tokens[bucket].min()), int(tokens[bucket].max())], "pairs": len(bucket), "metrics": means}
        )
    return rows


def compare(a: PairLogps, b: PairLogps) -> dict[str, Any]:
    """a less b, pair by pair in nats per token: mean, 95 % bootstrap interval, p of a sign-flip test."""
    ours, theirs = per_pair(a, "mean"), per_pair(b, "mean")
    gaps = {
        side: ours[f"logps/{side}"] - theirs[f"logps/{side}"]
        for side in ("chosen", "rejected")
        if f"logps/{side}" in ours
    }
    if "rejected" in gaps:
        gaps["margin"] = gaps["chosen"] - gaps["rejected"]
    found: dict[str, Any] = {}
    for name, gap in gaps.items():
        interval = bootstrap(gap[:, None], lambda mean: mean[..., 0])
        found[name] = {"mean": interval.mean, "interval": _ends(interval), "p": sign_flip_p(gap)}
    return found


def _interval(name: str, samples: Mapping[str, Float64]) -> Interval | None:
    """Over the pairs, by the bootstrap."""
    if name == "chosen_cost":
        both = np.column_stack([samples["delta/chosen"], samples["delta/margin"]])
        return bootstrap(both, _cost)
    return bootstrap(samples[name][:, None], lambda mean: mean[..., 0]) if name in samples else None


def _cost(mean_K: Float64) -> Float64:
    chosen, margin = mean_K[..., 0], mean_K[..., 1]
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(margin >= MIN_MARGIN_GAIN, -chosen / margin, np.nan)


def _ends(interval: Interval | None) -> list[float] | None:
    return None if interval is None or interval.low is None or interval.high is None else [interval.low, interval.high]
