from __future__ import annotations

import pytest

from dil_cli.config.schema import AlarmConfig
from dil_cli.dynamics.alarms import Alarm, new_alarms

LIMITS = AlarmConfig()


def row(step, chosen=0.0, margin=0.0):
    values = {"step": step, "probe/delta/chosen": chosen, "probe/delta/margin": margin}
    if margin >= 0.01:
        values["probe/chosen_cost"] = -chosen / margin
    return values


def straight_run(chosen, margin, times=10):
    """A run whose changes grow evenly to their final values."""
    return [row(i, chosen * i / times, margin * i / times) for i in range(times + 1)]


def names_raised(history, limits=LIMITS):
    return [(alarm.step, alarm.name) for n in range(1, len(history) + 1) for alarm in new_alarms(history[:n], limits)]


@pytest.mark.parametrize(
    ("chosen", "margin"),
    [(-0.106, 0.159), (-0.159, 0.210), (-0.188, 0.229), (-0.120, 0.087), (-0.381, 0.233)],
    ids=["lsif", "ukl", "bce", "dpo-0.1", "dpo-0.01"],
)
def test_the_pilots_quiet_losses_raise_none(chosen, margin):
    assert names_raised(straight_run(chosen, margin)) == []


def test_the_pilots_simpo_raises_cost_and_fall_once_each():
    # margin 0.0234 a step: meaningful from step 3; chosen 0.077 a step: more than 0.5 from step 7
    assert names_raised(straight_run(-0.77, 0.234)) == [(3, "chosen_cost"), (7, "chosen_fall")]


def test_chosen_fall_says_what_it_means():
    (alarm,) = new_alarms([row(0), row(20, chosen=-0.77)], LIMITS)
    assert alarm == Alarm(
        name="chosen_fall",
        step=20,
        message="the chosen responses lost 0.77 nats per token since step 0 (limit 0.5): "
        "the policy is unlearning the answers it should imitate",
        value=0.77,
        limit=0.5,
    )


def test_chosen_cost_says_what_it_means():
    (alarm,) = new_alarms([row(0), row(20, chosen=-0.3, margin=0.1)], LIMITS)
    assert (alarm.name, alarm.step, alarm.limit) == ("chosen_cost", 20, 2.0)
    assert alarm.value == pytest.approx(3.0)
    assert alarm.message == (
        "each nat of margin cost 3.00 nats of chosen likelihood (limit 2): "
        "the margin grows mainly because both responses become less likely"
    )


def test_cost_of_a_meaningless_margin_raises_nothing():
    assert new_alarms([row(0), row(5, chosen=-0.2, margin=0.03)], LIMITS) == []


def test_margin_shrink_compares_with_the_best():
    history = [row(0), row(5, margin=0.1), row(10, margin=0.2), row(15, margin=0.16)]
    assert new_alarms(history, LIMITS) == []  # a fifth given back
    (alarm,) = new_alarms([*history, row(20, margin=0.14)], LIMITS)
    assert (alarm.name, alarm.step) == ("margin_shrink", 20)
    assert alarm.value == pytest.approx(0.3)
    assert alarm.message == (
        "the margin gave back 30% of its best gain, +0.200 at step 10 (limit 25%): further steps undo what was learnt"
    )


def test_a_margin_that_never_grew_cannot_shrink():
    assert new_alarms([row(0), row(5, margin=0.02), row(10, margin=-0.3)], LIMITS) == []


def test_an_alarm_is_raised_again_only_after_it_cleared():
    falls = [0.0, -0.6, -0.7, -0.4, -0.55, -0.56]
    history = [row(step, chosen=fall) for step, fall in enumerate(falls)]
    assert names_raised(history) == [(1, "chosen_fall"), (4, "chosen_fall")]


def test_a_limit_is_crossed_only_above_it_and_null_turns_it_off():
    assert new_alarms([row(0), row(1, chosen=-0.5)], LIMITS) == []
    off = AlarmConfig(chosen_fall=None, chosen_cost=None, margin_shrink=None)
    assert names_raised([row(0), row(1, -5.0, 0.5), row(2, -5.0, -1.0)], off) == []


def test_rows_without_a_number_raise_nothing():
    assert new_alarms([], LIMITS) == []
    nulls = {"step": 3, "probe/delta/chosen": None, "probe/delta/margin": None, "probe/chosen_cost": None}
    assert new_alarms([{"step": 0, "probe/logps/chosen": -1.0}, nulls], LIMITS) == []
    sft = [{"step": s, "probe/delta/chosen": c} for s, c in ((0, 0.0), (1, -0.9))]
    assert [alarm.name for alarm in new_alarms(sft, LIMITS)] == ["chosen_fall"]
