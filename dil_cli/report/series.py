"""How the groups become lines of a figure: series that share axes, and the settings that each get axes of their own."""

from __future__ import annotations

from dataclasses import dataclass

from dil_cli.dynamics.style import Line, series_lines
from dil_cli.report.experiment import Experiment, Group, Value, label


@dataclass(frozen=True, eq=False)
class Setting:
    """Groups that differ by their loss and its settings alone; `series` is each one's label, loss first."""

    title: str
    groups: tuple[tuple[str, Group], ...]


def settings(experiment: Experiment) -> list[Setting]:
    """All groups, by the values of the keys that are not the loss's; one setting where the loss is not varied."""
    keys = experiment.keys
    own = [i for i, key in enumerate(keys) if "loss.name" not in keys or key.startswith("loss.")]
    others = [i for i in range(len(keys)) if i not in own]
    found: dict[tuple[Value, ...], list[tuple[str, Group]]] = {}
    for group in experiment.groups:
        found.setdefault(tuple(group.values[i] for i in others), []).append((_label(experiment, group, own), group))
    return [
        Setting(_label(experiment, groups[0][1], others) if others else "", tuple(groups)) for groups in found.values()
    ]


def shown(all_settings: list[Setting], most: int) -> list[Setting]:
    """At most so many of the settings, spread evenly, the first and the last among them."""
    last = len(all_settings) - 1
    return all_settings if last < most else [all_settings[round(i * last / (most - 1))] for i in range(most)]


def along_x(experiment: Experiment) -> dict[str, list[tuple[float, Group]]]:
    """Series over the numeric key, at least two points each, by label."""
    if experiment.x is None:
        return {}
    at = experiment.keys.index(experiment.x)
    others = [i for i in range(len(experiment.keys)) if i != at]
    found: dict[str, list[tuple[float, Group]]] = {}
    for group in experiment.groups:
        value = group.values[at]
        if isinstance(value, int | float):
            found.setdefault(_label(experiment, group, others), []).append((float(value), group))
    return {name: sorted(points, key=lambda point: point[0]) for name, points in found.items() if len(points) > 1}


def lines(experiment: Experiment) -> dict[str, Line]:
    """The line of every series, the same in every figure of the report."""
    by_loss = "loss.name" in experiment.keys
    named = [(group.loss if by_loss else name, name) for s in settings(experiment) for name, group in s.groups]
    named += [(points[0][1].loss if by_loss else name, name) for name, points in along_x(experiment).items()]
    return series_lines(named)


def _label(experiment: Experiment, group: Group, at: list[int]) -> str:
    return label([experiment.keys[i] for i in at], [group.values[i] for i in at], group.records[0])
