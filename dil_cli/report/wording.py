"""Many groups in few words: what holds of one series at several settings is said once."""

from __future__ import annotations

from collections.abc import Sequence

from dil_cli.report.estimates import Metric
from dil_cli.report.experiment import Experiment, Group
from dil_cli.report.series import settings
from dil_cli.report.tables import number

NAMED = 8
"""Names in a list; of the others it says how many they are."""

FEW = 3
"""Settings that are named one by one."""

MOST = 10
"""Names in a sentence; beyond, it counts groups and names the two ends."""


class Places:
    """Each group's series and setting, and how to speak of some of them."""

    def __init__(self, experiment: Experiment) -> None:
        self._of: dict[int, tuple[str, str]] = {}
        self._settings: dict[str, int] = {}
        for setting in settings(experiment):
            for series, group in setting.groups:
                self._of[id(group)] = (series, setting.title)
                self._settings[series] = self._settings.get(series, 0) + 1

    def told(
        self, parts: Sequence[tuple[str, Sequence[tuple[Group, float | None]]]], metric: Metric, signed: bool = False
    ) -> list[str]:
        """Each part that has groups, as its words and the groups with their numbers, where it has numbers.

        `fell under lsif (-0.1) and dpo (-0.3)`; of many: `fell under 11 of 24 groups (-0.5 under A to -0.1 under B)`.
        """
        names = sum(len(self._gather([group for group, _ in found])) for _, found in parts)
        told = []
        for words, found in parts:
            numbers = [(group, value) for group, value in found if value is not None]
            if not found:
                continue
            if names > MOST and len(found) > 1:
                told.append(f"{words} {len(found)} of {len(self._of)} groups{self._ends(numbers, metric, signed)}")
            elif numbers:
                told.append(f"{words} {self.with_numbers(numbers, metric, signed)}")
            else:
                told.append(f"{words} {self.named([group for group, _ in found])}")
        return told

    def _ends(self, found: Sequence[tuple[Group, float]], metric: Metric, signed: bool) -> str:
        if not found:
            return ""
        ends = (min(found, key=lambda pair: pair[1]), max(found, key=lambda pair: pair[1]))
        return f" ({' to '.join(f'{number(value, metric, signed)} under {group.label}' for group, value in ends)})"

    def named(self, groups: Sequence[Group]) -> str:
        """`lsif at every setting and dpo at label_noise 0.5`."""
        return listed([series + self._where(series, titles) for series, titles in self._gather(groups).items()])

    def with_numbers(self, found: Sequence[tuple[Group, float]], metric: Metric, signed: bool = False) -> str:
        """As `named`, each series with its number or the range of them."""
        names = []
        for series, titles in self._gather([group for group, _ in found]).items():
            values = sorted(value for group, value in found if self._of[id(group)][0] == series)
            ends = list(dict.fromkeys(number(value, metric, signed) for value in (values[0], values[-1])))
            names.append(f"{series}{self._where(series, titles)} ({' to '.join(ends)})")
        return listed(names)

    def against(self, pairs: Sequence[tuple[Group, Group]], verb: str) -> list[str]:
        """`lsif kept more than dpo and simpo at every setting`, an entry for each of the first and their settings."""
        rivals: dict[tuple[str, str], list[Group]] = {}
        for ours, rival in pairs:
            rivals.setdefault((self._of[id(ours)][0], self._of[id(rival)][0]), []).append(ours)
        clauses: dict[tuple[str, str], list[str]] = {}
        for (ours_series, rival_series), groups in rivals.items():
            where = self._where(ours_series, self._gather(groups)[ours_series])
            clauses.setdefault((ours_series, where), []).append(rival_series)
        return [f"{series} {verb} {listed(names)}{where}" for (series, where), names in clauses.items()]

    def _gather(self, groups: Sequence[Group]) -> dict[str, list[str]]:
        found: dict[str, list[str]] = {}
        for group in groups:
            series, title = self._of[id(group)]
            found.setdefault(series, []).append(title)
        return found

    def _where(self, series: str, titles: Sequence[str]) -> str:
        everywhere = self._settings[series]
        if not any(titles):
            return ""
        if len(titles) == everywhere > 1:
            return " at every setting"
        if len(titles) <= FEW:
            return f" at {listed(titles)}"
        return f" at {len(titles)} of {everywhere} settings"


def listed(names: Sequence[str], comma: str = ", ") -> str:
    """`a, b and c`; beyond a few, how many more."""
    if len(names) > NAMED:
        return f"{comma.join(names[:NAMED])} and {len(names) - NAMED} more"
    last = " and " if comma == ", " else comma
    return last.join([comma.join(names[:-1]), names[-1]] if len(names) > 1 else names)
