"""What was varied: the config keys that differ, the groups of runs that differ by their seed alone, the baseline."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from dil_cli.dynamics.style import LOSS_COLOURS
from dil_cli.errors import DilError
from dil_cli.report.record import Record
from dil_cli.report.sweep import Sweep, config_key

NOT_IDENTITY = (
    "output", "tracker", "device", "preset", "allow_custom", "resume", "profile", "optim.token_budget",
    "model.token_budget", "checkpoint.keep", "checkpoint.resume_minutes", "distributed",
)  # fmt: skip
"""As `config.identity` has it, which cannot be imported without torch; a test holds the two together."""

FIRST = ("loss.name", "model.path", "data.path")
"""Keys that name a whole group: what else differs only along with one of them needs no column of its own."""

Value = str | int | float | bool | None


@dataclass(frozen=True, eq=False)
class Group:
    """Runs that differ by their seed alone, in the order of the seeds. `values` are those of the experiment's keys."""

    values: tuple[Value, ...]
    label: str
    records: tuple[Record, ...]

    @property
    def loss(self) -> str:
        """The loss of all its runs."""
        return self.records[0].run.loss

    @property
    def reduction(self) -> str:
        """Sum or mean over tokens."""
        return self.records[0].run.reduction


@dataclass(frozen=True, eq=False)
class Experiment:
    """All finished runs, in groups.

    Args:
        keys: config keys that tell the groups apart; never the seed.
        x: the one of them that is a curve's x axis.
        groups: in the order in which every table and figure shows them.
        baseline: values of keys that single out what the others are compared with.
        along: keys that differ between the runs, but only together with `keys`: what a difference may come from too.
    """

    keys: tuple[str, ...]
    x: str | None
    groups: tuple[Group, ...]
    baseline: Mapping[str, Value]
    along: tuple[str, ...]

    @property
    def seeds(self) -> int:
        """The most seeds that a group has."""
        return max(len(group.records) for group in self.groups)

    def partner(self, group: Group) -> Group | None:
        """What `group` is compared with: the baseline under otherwise the same values; None where that is not one."""
        if not self.baseline or self.is_baseline(group):
            return None
        # With another loss or model come other settings of it: lsif has no beta.
        theirs = {key.partition(".")[0] for key in self.baseline if key in {"loss.name", "model.path"}}
        same = [
            i for i, key in enumerate(self.keys) if key not in self.baseline and key.partition(".")[0] not in theirs
        ]
        found = [
            other
            for other in self.groups
            if self.is_baseline(other) and all(other.values[i] == group.values[i] for i in same)
        ]
        return found[0] if len(found) == 1 else None

    def is_baseline(self, group: Group) -> bool:
        """Whether the baseline's values are this group's."""
        at = {key: i for i, key in enumerate(self.keys)}
        return bool(self.baseline) and all(
            _same(group.values[at[key]] if key in at else lookup(group.records[0], key), value)
            for key, value in self.baseline.items()
        )


def arrange(records: Sequence[Record], sweeps: Sequence[Sweep] = (), baseline: str | None = None) -> Experiment:
    """Group the records.

    Args:
        records: of finished runs, one or more.
        sweeps: what the swept keys, the x axis and the baseline are taken from, where one says.
        baseline: `loss=dpo`, or several, with commas: the user's word, over the sweep's.

    Raises:
        DilError: when no run is the baseline that the user named.
    """
    keys, along = _keys(records, [key for sweep in sweeps for key in sweep.swept])
    groups: dict[tuple[Value, ...], list[Record]] = {}
    for record in records:
        groups.setdefault(tuple(lookup(record, key) for key in keys), []).append(record)
    ordered = tuple(
        Group(values, label(keys, values, members[0]), tuple(sorted(members, key=lambda record: record.run.seed)))
        for values, members in sorted(groups.items(), key=lambda item: tuple(map(_rank, item[0])))
    )
    numeric = [key for i, key in enumerate(keys) if _numeric([group.values[i] for group in ordered])]
    named = next((sweep.x for sweep in sweeps if sweep.x in keys), None)
    experiment = Experiment(
        keys=tuple(keys),
        x=named or (numeric[0] if len(numeric) == 1 else None),
        groups=ordered,
        baseline=_parse(baseline or next((sweep.baseline for sweep in sweeps if sweep.baseline), None) or "loss=dpo"),
        along=tuple(along),
    )
    if baseline and not any(map(experiment.is_baseline, ordered)):
        raise DilError(
            f"no run here has {baseline}", f"--baseline {baseline}", f"one of: {'; '.join(g.label for g in ordered)}"
        )
    return experiment


def lookup(record: Record, key: str) -> Value:
    """A run's value of a config key; None where its config has none. `run` is its hash."""
    return record.run.hash if key == "run" else _config(record).get(key)


@cache
def _config(record: Record) -> dict[str, Value]:
    return flat(record.run.config)


def flat(config: Mapping[str, Any], prefix: str = "") -> dict[str, Value]:
    """A nested config with dotted keys; lists as JSON."""
    values: dict[str, Value] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            plain = isinstance(value, str | int | float | bool | None)
            values[f"{prefix}{key}"] = value if plain else json.dumps(value, sort_keys=True)
    return values


def short(key: str) -> str:
    """A key as a column's heading: the group's name for the key that names its choice, else the last part."""
    return {"loss.name": "loss", "model.path": "model", "data.path": "data", "optim.kind": "optim"}.get(
        key, key.rpartition(".")[2]
    )


def label(keys: Sequence[str], values: Sequence[Value], record: Record) -> str:
    """A group's values in a few words; its loss where it has none."""
    parts = [
        str(value) if key in {*FIRST, "name", "run"} else f"{short(key)} {'null' if value is None else text(value)}"
        for key, value in zip(keys, values, strict=True)
        if value is not None or not key.startswith("loss.")  # a loss need not have the setting, a null is one
    ]
    return ", ".join(parts) or record.run.loss


def _keys(records: Sequence[Record], swept: Sequence[str]) -> tuple[list[str], list[str]]:
    """The fewest keys that tell the runs apart, up to the seed; and those that differ only along with these."""
    configs = [_config(record) for record in records]
    differ = sorted(
        key
        for key in set().union(*configs)
        if key not in {"seed", "name"}
        and not any(key == other or key.startswith(f"{other}.") for other in NOT_IDENTITY)
        and len({_hashable(config.get(key)) for config in configs}) > 1
    )
    kept: list[str] = []
    along: list[str] = []
    first = [key for key in (*swept, *FIRST) if key in differ]
    # The model's section comes last: `optim.lr` is a copy of `model.lr`, and the one to be shown.
    for key in dict.fromkeys([*first, *sorted(differ, key=lambda key: (key.startswith("model."), key))]):
        if not _follows(key, kept, configs):
            kept.append(key)
        elif not _comes_with(key, [*kept, *along], configs):
            along.append(key)
    # Runs that are the same in every key but not in their hash: other data under one path, or a name of their own.
    for key in ("name", "run"):
        cells = [tuple(_hashable(lookup(record, k)) for k in [*kept, "seed"]) for record in records]
        if len(set(cells)) < len(cells) and len({lookup(record, key) for record in records}) > 1:
            kept.append(key)
    return sorted(kept, key=lambda key: key != "loss.name"), along  # a group is named by its loss first


def _follows(key: str, kept: Sequence[str], configs: Sequence[Mapping[str, Value]]) -> bool:
    """Whether the values of `kept` leave only one value of `key`."""
    seen: dict[tuple[Any, ...], Any] = {}
    return all(
        seen.setdefault(tuple(_hashable(config.get(k)) for k in kept), value := _hashable(config.get(key))) == value
        for config in configs
    )


def _comes_with(key: str, kept: Sequence[str], configs: Sequence[Mapping[str, Value]]) -> bool:
    """Whether `key` is part of a kept choice, or a copy of a kept key, as `optim.lr` is of `model.lr`."""
    choices = {k.partition(".")[0] for k in kept if k in FIRST}
    group, _, leaf = key.rpartition(".")
    return group.partition(".")[0] in choices or any(
        k.rpartition(".")[2] == leaf and all(config.get(k) == config.get(key) for config in configs) for k in kept
    )


def _hashable(value: Value) -> tuple[str, Value]:
    """0, 0.0 and False are three values."""
    return ("number", float(value)) if _is_number(value) and value is not None else (type(value).__name__, value)


def _is_number(value: Value) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _numeric(values: Sequence[Value]) -> bool:
    there = [value for value in values if value is not None]
    return len(set(there)) > 1 and all(map(_is_number, there))


def _rank(value: Value) -> tuple[int, float, str]:
    """Numbers by size, the paper's losses and its baselines in their usual order, other words by the alphabet."""
    if value is None:
        return (0, 0.0, "")
    if isinstance(value, int | float):
        return (1, float(value), "")
    order = list(LOSS_COLOURS)
    return (2, float(order.index(value) if value in order else len(order)), value)


def text(value: Value) -> str:
    """A config value in a table."""
    return "-" if value is None else f"{value:g}" if isinstance(value, float) else str(value)


def _parse(words: str) -> dict[str, Value]:
    parsed: dict[str, Value] = {}
    for word in words.split(","):
        key, equals, value = word.partition("=")
        if not (key and equals and value):
            raise DilError(f"'{word}' is no key=value", f"--baseline {words}", "--baseline loss=dpo")
        if key.strip() == "seed":
            raise DilError("runs that differ by the seed are one group", f"--baseline {words}", "--baseline loss=dpo")
        parsed[config_key(key.strip())] = value.strip()
    return parsed


def _same(value: Value, word: Value) -> bool:
    """Whether a config value is what the user typed."""
    if _is_number(value) and isinstance(word, str):
        try:
            return float(word) == value
        except ValueError:
            return False
    return str(value) == str(word)
