"""Held-out log-probs of a checkpoint against the model it started from, and against another checkpoint.

P pairs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dil_cli.config.schema import DataConfig, EvalConfig, ModelConfig
from dil_cli.data.join import join_splits
from dil_cli.data.load import load_pairs
from dil_cli.data.template import effective_template
from dil_cli.data.token_cache import tokenizer_fingerprint
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
from dil_cli.evaluate.target import Target, data_config, model_config, start_config
from dil_cli.losses import LOSSES
from dil_cli.models.load import weights_fingerprint
from dil_cli.report.intervals import Interval, bootstrap, sign_flip_p
from dil_cli.tracking.console import ConsoleSink
from dil_cli.train.ready import ready_policy, stay_offline_if_local
from dil_cli.types import PairLogps, TokenisedPair

HEADLINE = (
    "logps/chosen", "logps/rejected", "prefers_chosen", "delta/chosen", "delta/rejected", "delta/margin", "accuracy",
    "chosen_cost",
)  # fmt: skip
"""Metrics that tables show; the others of `pair_statistics` are in the record under `more`."""


@dataclass(frozen=True, eq=False)
class Scored:
    """A checkpoint's log-probs of the held-out pairs, and what they depend on."""

    name: str
    pairs: Sequence[TokenisedPair]
    logps: PairLogps
    facts: dict[str, Any]


class Likelihood:
    """The measurement of one or more checkpoints; a model that several are compared with is scored once."""

    def __init__(self, config: EvalConfig, console: ConsoleSink) -> None:
        self.config, self.console = config, console
        self._known: dict[str, Scored] = {}

    def evaluate(self, target: Target, against: Target | None = None) -> dict[str, Any]:
        """The record of one checkpoint; its pairs go to `eval/likelihood/` beside it.

        Args:
            target: the checkpoint.
            against: another one, to be compared with on the same pairs.

        Raises:
            DilError: when something cannot be read, or has drifted since the run.
        """
        config = self.config
        model, data = model_config(config, target), data_config(config, target)
        start = self._start(target, data)
        scored = _score(config, target, model, data, self.console)
        check_drift(config, target, scored.facts)
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
            "benchmark": "likelihood",
            "checkpoint": {"name": target.name, **scored.facts},
            "reference": None if start is None else {"name": start.name, **start.facts},
            "pairs": len(scored.pairs),
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
            record["against"] = {"name": against.name, **other.facts, "gaps": compare(scored.logps, other.logps)}
        write_probe(target.folder / "eval" / "likelihood", 0, [pair.row for pair in scored.pairs], logps, None)
        return record

    def _start(self, target: Target, data: DataConfig) -> Scored | None:
        """The pairs under the model that changes are relative to; None where the checkpoint has no run."""
        config = self.config
        model = start_config(config, target)
        if model is None:
            return None
        scored = self._score_once(replace(target, name=model.path, path=model.path), model, data)
        check_start(config, target, model.path, scored.facts["weights_sha256"])
        return scored

    def _score_once(self, target: Target, model: ModelConfig, data: DataConfig) -> Scored:
        key = repr((model, data, pairs_seed(self.config, target)))
        if key not in self._known:
            self._known[key] = _score(self.config, target, model, data, self.console)
        return self._known[key]


def pairs_seed(config: EvalConfig, target: Target) -> int:
    """Of the pairs that are held out: the run's."""
    return config.seed if target.run is None else target.run.seed


def _needs_rejected(target: Target) -> bool:
    """Whether rows without a rejected response are left out, as the run's loss had it."""
    loss = None if target.run is None else LOSSES.get(target.run.loss)
    return target.run is not None and (loss is None or bool(loss.needs_rejected))


def _score(config: EvalConfig, target: Target, model: ModelConfig, data: DataConfig, console: ConsoleSink) -> Scored:
    stay_offline_if_local(model.path, data)
    seed = pairs_seed(config, target)
    splits = load_pairs(data, seed, _needs_rejected(target))
    ready = ready_policy(model, data, config.device, config.precision, model.token_budget, console)
    tokenizer = ready.policy.tokenizer
    if data.join_to is not None:
        splits = join_splits(splits, tokenizer, data, seed)
    tokens = tokenise_pairs(splits.heldout, tokenizer, data, cache=Path(config.output) / "cache" / "tokens")
    most = config.benchmark.pairs or len(tokens.pairs)
    pairs = [tokens.pairs[i] for i in choose_probe(len(tokens.pairs), most)]
    template = effective_template(tokenizer, data)
    with console.phase(f"scoring {target.name}", len(pairs)) as phase:
        logps = score_pairs(ready.policy.model, pairs, ready.compute, phase.advance)
    facts = {
        "path": target.path,
        "weights_sha256": weights_fingerprint(ready.policy.model),
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
        "data": data.path,
        "data_sha256": splits.fingerprint,
        "rows": ready.path,
        "compute": "bf16" if ready.compute.bf16 else "fp32",
    }
    return Scored(target.name, pairs, logps, facts)


def check_drift(config: EvalConfig, target: Target, facts: Mapping[str, Any]) -> None:
    """What the numbers depend on must be what the run had, unless the user accepts another."""
    if target.run is None:
        return
    what = {"tokenizer": "tokenizer_sha256", "template": "template_sha256"}
    what |= {} if config.data is not None else {"data": "data_sha256"}
    for name, key in what.items():
        if name not in config.accept and facts[key] != target.run.manifest.get(key):
            raise DilError(
                f"the {name} of {target.name} is not what its run had", f"{key} in {target.run.folder}/manifest.json",
                f"bring it back, or go on all the same: accept=[{name}]",
            )  # fmt: skip


def check_start(config: EvalConfig, target: Target, path: str, weights_sha256: str) -> None:
    """The model that a run started from must be what it was, unless the user names or accepts another."""
    run = target.run
    if run is None or config.reference is not None or "reference" in config.accept:
        return
    if run.manifest.get("model", {}).get("weights_sha256") != weights_sha256:
        raise DilError(
            f"{path} is not the model any more that the run {run.folder.name} started from", f"model.path={path}",
            "bring it back, or go on all the same: accept=[reference]",
        )  # fmt: skip


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
