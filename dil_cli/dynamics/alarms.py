"""Alarms on the probe set: the likelihoods go where a user would want to stop and look."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dil_cli.config.schema import AlarmConfig

MEANINGFUL_GAIN = 0.05
"""Nats per token of margin gained before its cost or its loss can raise an alarm. Chosen by hand: a third
of the default run's gain, so that the first measurements, mostly noise, stay silent."""

ProbeRow = Mapping[str, float | None]
"""A row of the record with `step` and `probe/...` keys."""


@dataclass(frozen=True)
class Alarm:
    """A limit that was crossed at `step`; `message` is one plain line for the user."""

    name: str
    step: int
    message: str
    value: float
    limit: float

    def row(self) -> dict[str, str | float]:
        """As a row of the record."""
        return {
            "alarm": self.name,
            "limit": self.limit,
            "message": self.message,
            "step": self.step,
            "value": self.value,
        }

    @classmethod
    def of_row(cls, row: Mapping[str, Any]) -> Alarm:
        """From a row of the record."""
        return cls(row["alarm"], row["step"], row["message"], row["value"], row["limit"])


def new_alarms(history: Sequence[ProbeRow], limits: AlarmConfig) -> list[Alarm]:
    """The alarms that the last row of `history` raises.

    An alarm is raised when its limit is crossed, and again only after it has cleared. The answer
    depends on the rows alone, so a resumed run goes on as if it had never stopped.

    Args:
        history: all probe rows of the run so far, step 0 first.
        limits: an alarm whose limit is None is off.
    """
    standing = {alarm.name for alarm in _standing(history[:-1], limits)}
    return [alarm for alarm in _standing(history, limits) if alarm.name not in standing]


def _standing(history: Sequence[ProbeRow], limits: AlarmConfig) -> list[Alarm]:
    """Every alarm whose limit is exceeded at the last row."""
    if not history:
        return []
    checks = (
        _chosen_fall(history[-1], limits.chosen_fall),
        _chosen_cost(history[-1], limits.chosen_cost),
        _margin_shrink(history, limits.margin_shrink),
    )
    return [alarm for alarm in checks if alarm is not None]


def _chosen_fall(row: ProbeRow, limit: float | None) -> Alarm | None:
    change = row.get("probe/delta/chosen")
    if limit is None or change is None or not -change > limit:
        return None
    message = (
        f"the chosen responses lost {-change:.2f} nats per token since step 0 (limit {limit:g}): "
        "the policy is unlearning the answers it should imitate"
    )
    return Alarm("chosen_fall", _step(row), message, -change, limit)


def _chosen_cost(row: ProbeRow, limit: float | None) -> Alarm | None:
    cost, gain = row.get("probe/chosen_cost"), row.get("probe/delta/margin")
    if limit is None or cost is None or gain is None or gain < MEANINGFUL_GAIN or not cost > limit:
        return None
    message = (
        f"each nat of margin cost {cost:.2f} nats of chosen likelihood (limit {limit:g}): "
        "the margin grows mainly because both responses become less likely"
    )
    return Alarm("chosen_cost", _step(row), message, cost, limit)


def _margin_shrink(history: Sequence[ProbeRow], limit: float | None) -> Alarm | None:
    gains = [(gain, _step(row)) for row in history if (gain := row.get("probe/delta/margin")) is not None]
    now = history[-1].get("probe/delta/margin")
    if limit is None or now is None:
        return None
    best, best_step = max(gains, key=lambda gain: gain[0])
    if best < MEANINGFUL_GAIN or not (best - now) / best > limit:
        return None
    given_back = (best - now) / best
    message = (
        f"the margin gave back {given_back:.0%} of its best gain, {best:+.3f} at step {best_step} "
        f"(limit {limit:.0%}): further steps undo what was learnt"
    )
    return Alarm("margin_shrink", _step(history[-1]), message, given_back, limit)


def _step(row: ProbeRow) -> int:
    return int(row["step"] or 0)
