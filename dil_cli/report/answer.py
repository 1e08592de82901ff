"""The question and its answer in words, never stronger than the intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from dil_cli.report import numerics
from dil_cli.report.estimates import BY_KEY, Metric, difference, estimate
from dil_cli.report.experiment import Experiment, Group, lookup, short, text
from dil_cli.report.runs import Run
from dil_cli.report.series import settings
from dil_cli.report.wording import Places, listed

DIL = ("lsif", "bce", "ukl")
"""The losses of the paper, of which it claims that they lower the chosen likelihood least while margins grow."""

BASELINES = ("dpo", "simpo")
"""What the paper compares them with in its figure 2."""

WIDER_DIL = ("power", "jeffreys", "brier", "rulsif", "kliep", "bregman", "ukl_official")
"""Other members of the family, which are no evidence for or against it."""

CHOSEN, MARGIN, COST = BY_KEY["delta/chosen"], BY_KEY["delta/margin"], BY_KEY["chosen_cost"]
ACCURACY = BY_KEY["accuracy_mean"]


@dataclass(frozen=True)
class Answer:
    """What the top of the page says: the question, what follows from the numbers, what they do not show."""

    question: str
    findings: tuple[str, ...]
    limits: tuple[str, ...]


def answer(experiment: Experiment, questions: Sequence[str] = (), runs: Sequence[Run] = ()) -> Answer:
    """The answer to the sweep's question, or to the one that the runs themselves pose.

    Args:
        experiment: the finished runs.
        questions: of the sweeps; one that several ask is put once.
        runs: all runs, the failed ones among them.
    """
    places = Places(experiment)
    findings = [
        *numerics.findings(experiment, places, runs),
        *_directions(experiment, places),
        *_against_baseline(experiment, places),
        *_claim(experiment, places),
    ]
    return Answer(
        " ".join(dict.fromkeys(questions)) or _question(experiment), tuple(findings), tuple(_limits(experiment))
    )


def _question(experiment: Experiment) -> str:
    losses = {group.loss for group in experiment.groups}
    if len(losses) > 1:
        return "Which loss lowers the likelihood of the chosen responses least while the margin grows?"
    if experiment.keys:
        names = " and ".join(short(key) for key in experiment.keys)
        return f"What does {names} change in the likelihoods of held-out responses under {losses.pop()}?"
    return f"What does {losses.pop()} do to the likelihoods of held-out responses?"


def _directions(experiment: Experiment, places: Places) -> list[str]:
    """Which groups' numbers moved, and which way."""
    sentences = []
    for metric, subject, up, down in (
        (CHOSEN, "The chosen responses", "became more likely", "became less likely"),
        (MARGIN, "The margin", "grew", "shrank"),
    ):
        kept = [(group, found) for group in experiment.groups if (found := estimate(group, metric)) is not None]
        moved: list[tuple[str, list[tuple[Group, float | None]]]] = [
            (f"{verb} under", [(group, found.mean) for group, found in kept if found.sign() == sign])
            for sign, verb in ((-1, down), (1, up))
        ]
        unclear = [group for group, found in kept if found.sign() == 0 and found.interval.low is not None]
        moved.append(("no change was seen under", [(group, None) for group in unclear]))
        parts = places.told(moved, metric)
        without = [group for group, found in kept if found.interval.low is None]
        parts += [f"nothing can be said of {places.named(without)}, for want of an interval"] if without else []
        if parts and parts[0].startswith("no change"):
            parts[0] = parts[0].replace("no change", f"No change of {subject[0].lower()}{subject[1:]}", 1)
            sentences.append(f"{'; '.join(parts)}.")
        elif parts:
            sentences.append(f"{subject} {'; '.join(parts)}.")
    return sentences


def _against_baseline(experiment: Experiment, places: Places) -> list[str]:
    """The paired differences from the baseline."""
    pairs = [(group, other) for group in experiment.groups if (other := experiment.partner(group)) is not None]
    baseline = ", ".join(f"{key.removesuffix('.name')} {value}" for key, value in experiment.baseline.items())
    sentences = []
    for metric, what, more, less in (
        (CHOSEN, "chosen likelihood", "more chosen likelihood was kept by", "less chosen likelihood was kept by"),
        (MARGIN, "margin", "the margin is larger under", "the margin is smaller under"),
        (
            ACCURACY,
            "accuracy per token",
            "accuracy per token is higher under",
            "accuracy per token is lower under",
        ),
        (
            COST,
            "the cost of a nat of margin",
            "a nat of margin cost more chosen likelihood under",
            "a nat of margin cost less chosen likelihood under",
        ),
    ):
        gaps = [(group, gap) for group, partner in pairs if (gap := difference(group, partner, metric)) is not None]
        apart: list[tuple[str, list[tuple[Group, float | None]]]] = [
            (words, [(group, gap.mean) for group, gap in gaps if gap.sign() == sign])
            for sign, words in ((1, more), (-1, less))
        ]
        unclear = [group for group, gap in gaps if gap.sign() == 0 and gap.interval.low is not None]
        apart.append((f"no difference in {what} was seen for", [(group, None) for group in unclear]))
        parts = places.told(apart, metric, signed=True)
        if parts:
            sentences.append(f"Compared with {baseline}, {'; '.join(parts)}.")
    return sentences


def _claim(experiment: Experiment, places: Places) -> list[str]:
    """What the runs say of the paper's claim: against the baselines of its figure 2, then against other losses."""
    claim = "The paper's claim, that DIL (lsif, bce, ukl) lowers the chosen likelihood least while margins grow,"
    runs = "in these runs of one seed each" if experiment.seeds == 1 else "in these runs"
    of_paper, of_others = _Verdict(), _Verdict()
    for setting in settings(experiment):
        groups = [group for _, group in setting.groups]
        for ours in (group for group in groups if group.loss in DIL):
            of_paper.judge(ours, [group for group in groups if group.loss in BASELINES])
            of_others.judge(ours, [g for g in groups if g.loss not in {*DIL, *BASELINES, *WIDER_DIL}])
    sentences = []
    if said := of_paper.words(places):
        there = [loss for loss in BASELINES if loss in of_paper.compared]
        sentences.append(f"{claim} {said[0]} {runs} against {' and '.join(there)}: {said[1]}")
    if said := of_others.words(places):
        start = "Against other losses the claim" if sentences else claim
        tail = "" if sentences else " against the other losses"
        sentences.append(f"{start} {said[0]} {runs}{tail}: {said[1]}")
    return sentences


@dataclass
class _Verdict:
    """What is seen of the claim against one set of losses: of pairs, and of groups of DIL's by themselves."""

    pairs: dict[int, list[tuple[Group, Group]]] = field(default_factory=lambda: {1: [], 0: [], -1: []})
    shrank: list[Group] = field(default_factory=list)
    unseen: list[Group] = field(default_factory=list)
    aside: list[Group] = field(default_factory=list)
    apart: list[tuple[Group, Group]] = field(default_factory=list)
    compared: set[str] = field(default_factory=set)

    def judge(self, ours: Group, others: Sequence[Group]) -> None:
        """Compare one group of DIL's with others; those whose margin did not grow are no part of the claim."""
        rivals = [group for group in others if _moved(group, MARGIN) > 0]
        self.aside += [group for group in others if group not in rivals and group not in self.aside]
        if not rivals:
            return
        self.compared |= {rival.loss for rival in rivals}
        if _moved(ours, MARGIN) <= 0:
            (self.shrank if _moved(ours, MARGIN) < 0 else self.unseen).append(ours)
            return
        for rival in rivals:
            gap = difference(ours, rival, CHOSEN)
            (self.apart if gap is None else self.pairs[gap.sign()]).append((ours, rival))

    def words(self, places: Places) -> tuple[str, str] | None:
        """The verdict and its reasons; None when nothing could be compared. One counter-example decides."""
        against = places.against(self.pairs[-1], "kept less than")
        against += [f"the margin shrank under {places.named(self.shrank)}"] if self.shrank else []
        unclear = places.against(self.pairs[0], "was not seen to differ from")
        unclear += places.against(self.apart, "has neither a seed nor pairs in common with")
        unclear += [f"no growth of the margin was seen under {places.named(self.unseen)}"] if self.unseen else []
        held = places.against(self.pairs[1], "kept more than")
        aside = (
            f" Not compared, since no growth of their margin was seen: {places.named(self.aside)}."
            if self.aside
            else ""
        )
        for verb, reasons in (
            ("does not hold", against),
            ("is not decided", unclear),
            ("holds", held),
        ):
            if reasons:
                return verb, f"{listed(reasons, '; ')}.{aside}"
        return None


def _limits(experiment: Experiment) -> list[str]:
    """What the numbers do not show."""
    groups = experiment.groups
    counts = sorted({len(group.records) for group in groups})
    limits = []
    if counts == [1]:
        limits.append(
            "Each group has one seed, and nothing is claimed about seeds: the intervals are bootstrap intervals over "
            "the probe pairs, so they say how far these runs' means hold for other pairs, not for another training run."
        )
    elif counts[0] == 1:
        ones = [group.label for group in groups if len(group.records) == 1]
        limits.append(f"One seed only, with nothing claimed about seeds: {listed(ones)}.")
    if counts[-1] > 1:
        limits.append(f"Intervals over {_span(counts)} seeds are Student's t, 95 %; each comparison is one of many.")
    reductions = {group.reduction for group in groups}
    if len(reductions) > 1:
        limits.append(
            "The losses read log-probs under different reductions (loss.reduction, in every row): a margin per token "
            "is not what a loss on whole-response sums optimises."
        )
    if experiment.along:
        limits.append(
            f"Other settings differ along with {' and '.join(map(short, experiment.keys))}, and a difference may come "
            f"from them: {', '.join(experiment.along)}."
        )
    alone = [g for g in groups if experiment.partner(g) is None and not experiment.is_baseline(g)]
    if any(map(experiment.is_baseline, groups)) and alone:
        limits.append(
            f"Not compared with a baseline, of which there is none or more than one under the same settings: "
            f"{listed([group.label for group in alone])} (--baseline names one, such as loss=dpo,loss.beta=0.1)."
        )
    return [*limits, _scale(groups)]


def _scale(groups: Sequence[Group]) -> str:
    """The models, data and learning rates beyond which nothing was seen."""
    found: dict[str, dict[str, None]] = {"model.path": {}, "data.path": {}, "optim.lr": {}}
    for group in groups:
        for key, values in found.items():
            # A folder of one machine by its name: the config's table has all of it.
            values[text(lookup(group.records[0], key)).rstrip("/").rpartition("/")[2]] = None
    models, data, rates = (listed(sorted(values)) for values in found.values())
    return f"Nothing was seen beyond model {models}, data {data}, learning rate {rates}."


def _moved(group: Group, metric: Metric) -> int:
    """1 or -1 when the interval says that the metric rose or fell."""
    found = estimate(group, metric)
    return 0 if found is None else found.sign()


def _span(counts: Sequence[int]) -> str:
    several = [count for count in counts if count > 1]
    return str(several[0]) if len(several) == 1 else f"{several[0]} to {several[-1]}"
