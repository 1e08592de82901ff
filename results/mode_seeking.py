"""Page 6: reverse KL's mode seeking, and the theory of the paper, where every density is known exactly.

`blocks()` are the tables of docs/results/mode_seeking.md, `draw()` its figures. Nothing is trained but tables of
logits and bells: some minutes on one thread, no run folders.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import torch

from dil_cli.report.intervals import Interval, paired_difference, t_interval
from dil_cli.report.tables import MINUS
from results import tables
from results.modes import figures, preferred, restricted, samples, theory
from results.modes.losses import PAPER, PAPER_BOTH, WIDER, dpo, on_means
from results.modes.theory import Optimum
from results.modes.world import PROMPTS, World, build, kl

FORWARD, BACKWARD = "KL(pi* \\|\\| pi)", "KL(pi \\|\\| pi*)"

MARGINS = (0.5, 1.0)
"""Margins, in nats, at which losses are shown on drawn pairs."""

FURTHER = (0.5, 1.0, 1.5)
"""Margins at which LSIF is compared with DPO."""


@dataclass(frozen=True)
class Numbers:
    """All that the page shows, and the figures are drawn from."""

    world: World
    preferred: list[preferred.Preferred]
    bells: list[restricted.Bell]
    bells_on_preferences: list[restricted.Bell]
    trainings: list[samples.Training]


@cache
def numbers() -> Numbers:
    """Computed once a process, for tables and figures."""
    torch.set_num_threads(1)  # the tensors are too small for more
    world = build()
    return Numbers(
        world,
        preferred.on_preferences(world),
        restricted.on_theory(world),
        restricted.on_preferences(world),
        samples.train_all(world),
    )


def draw(folder: Path) -> None:
    """The figures of the page."""
    made = numbers()
    folder.mkdir(parents=True, exist_ok=True)
    figures.bells(made.world, made.bells, folder / "mode_seeking.png")
    figures.preferences(made.world, made.preferred, folder / "mode_seeking_preferences.png")
    figures.trainings(made.trainings, folder / "mode_seeking_training.png")


def blocks() -> dict[str, str]:
    """The tables of the page by key."""
    made = numbers()
    return {
        "imitation": _imitation(made.world),
        "optimum": _optimum(made.world),
        "breaks": _breaks(made.world),
        "cpc": _cpc(made.world),
        "preferences": _preferences(made.preferred),
        "dropped": _dropped(made.world),
        "bells": _bells(made.bells),
        "bells_on_preferences": _bells(made.bells_on_preferences),
        "differences": _differences(made.trainings),
        **{f"training {family}": _trainings(made.trainings, family) for family in samples.FAMILIES},
    }


def _imitation(world: World) -> str:
    rows = [
        (i.family, i.beta, _tiny(i.gradient), _tiny(i.value), "" if math.isnan(i.optimum) else _tiny(i.optimum))
        for i in theory.imitation(world)
    ]
    return _table(("policies", "beta", "gradients differ by", "values differ by", "log pi at the minimum"), rows)


def _optimum(world: World) -> str:
    pairs = theory.theory_pairs(world)
    rows = []
    for name, loss in {**PAPER, **WIDER}.items():
        free, policy = (theory.optimum(world, pairs, loss, normalised) for normalised in (False, True))
        up_to = "" if free.error < 1e-6 else " up to a constant"
        free_error = _tiny(min(free.error, free.error_up_to_constants)) + up_to
        rows.append((f"`{name}`", free_error, _tiny(free.gradient), _tiny(policy.error), _tiny(policy.gradient)))
    return _table(("loss", "free ratio: error", "gradient", "normalised policy: error", "gradient"), rows)


def _breaks(world: World) -> str:
    pairs, rows = theory.theory_pairs(world), []
    for name, loss in on_means().items():
        end = theory.optimum(world, theory.with_lengths(pairs), loss, normalised=True)
        rows.append((f"`{name}` under `mean`, 1 to 8 tokens", *_distances(world, end)))
    for name, loss in PAPER_BOTH.items():
        rows.append((f"`{name}`", *_distances(world, theory.optimum(world, pairs, loss, normalised=True))))
    return _table(("loss", FORWARD, BACKWARD, "gradient"), rows)


def _distances(world: World, end: Optimum) -> tuple[str, str, str]:
    forward, backward = kl(world.optimum(), end.policy_XY).mean(), kl(end.policy_XY, world.optimum()).mean()
    return _nats(float(forward)), _nats(float(backward)), _tiny(end.gradient)


def _cpc(world: World) -> str:
    rows = [
        (
            c.pairs,
            c.beta,
            "policy" if c.normalised else "free ratio",
            _tiny(c.end.error_up_to_constants),
            _tiny(c.end.error) if c.normalised else "{:.2f} to {:.2f}".format(*c.end.constants),
            _tiny(c.end.gradient),
        )
        for c in theory.cpc(world)
    ]
    ends = _table(
        ("pairs", "`loss.beta`", "minimised over", "error up to constants", "error, or the constants", "gradient"), rows
    )
    pairs = theory.theory_pairs(world)
    shifts = [
        (f"`{name}`", _tiny(theory.shift_changes(world, loss, pairs)))
        for name, loss in {"dpo, beta 1": dpo(), **PAPER}.items()
    ]
    return f"{ends}\n\n{_table(('loss', 'changes at pi* by'), shifts)}"


def _preferences(rows: list[preferred.Preferred]) -> str:
    heads = (
        "pairs from", "reward times", "policy", FORWARD, BACKWARD, "closest beta", f"{BACKWARD} there",
        "chosen log-prob", "reward", "gradient",
    )  # fmt: skip
    most = float(preferred.BETAS[-1])
    return _table(
        heads,
        [
            (
                row.pairs,
                row.scale,
                row.name if row.name in preferred.FIXED else f"`{row.name}`",
                _nats(row.closeness.forward),
                _nats(row.closeness.backward),
                f"{row.closeness.best_beta:.2f}" if row.closeness.best_beta < most else f"{most:g} or more",
                _nats(row.closeness.best_backward),
                _signed(row.closeness.chosen),
                f"{row.closeness.reward:.2f}",
                "" if row.gradient is None else _tiny(row.gradient),
            )
            for row in rows
        ],
    )


def _dropped(world: World) -> str:
    rows = [
        (scale, f"{low:.2f} to {high:.2f}", f"{responses:.0%}", f"{share:.0%}")
        for scale, (low, high, responses, share) in preferred.masses(world).items()
    ]
    return _table(
        ("reward times", "mass of the free optimum", "responses `lsif` drops", "chosen ones among all chosen"), rows
    )


def _bells(bells: list[restricted.Bell]) -> str:
    parts = []
    for x, prompt in enumerate(PROMPTS):
        rows = [
            (
                f"`{bell.name}`" if bell.name != restricted.REVERSE_KL else bell.name,
                _shares(bell.masses),
                _nats(bell.forward),
                _nats(bell.backward),
                bell.minima,
                _tiny(bell.gradient),
                _shares(bell.trained_masses),
                "yes" if bell.trained_is_best else "no",
            )
            for bell in bells
            if bell.prompt == x
        ]
        goal = _shares(restricted.target_masses(x))
        heads = (
            "loss",
            "on each mode",
            FORWARD,
            BACKWARD,
            "minima",
            "gradient",
            "from the reference",
            "the best one",
        )
        parts.append(f"Prompt with {prompt.name}; pi* has {goal} on its modes.\n\n{_table(heads, rows)}")
    return "\n\n".join(parts)


def _trainings(trainings: list[samples.Training], family: str) -> str:
    heads = (
        "pairs", "loss", *(f"chosen at margin {margin:g}" for margin in MARGINS), "chosen", "rejected",
        "chosen, all pairs", FORWARD, BACKWARD, "reward",
    )  # fmt: skip
    rows = []
    for t in trainings:
        if t.family == family:
            along = [list(samples.at_margin(t, margin, t.chosen_ST).values()) for margin in MARGINS]
            ends = (t.chosen_ST, t.rejected_ST, t.new_chosen_ST, t.forward_ST, t.backward_ST, t.reward_ST)
            values = [*along, *(end_ST[:, -1].tolist() for end_ST in ends)]
            rows.append((t.size, f"`{t.name}`", *(_of_seeds(value) for value in values)))
    return _table(heads, rows, text=2)


def _differences(trainings: list[samples.Training]) -> str:
    """Chosen log-prob at equal margin: LSIF less DPO, paired by seed."""
    at = {(t.family, t.size, t.name): t for t in trainings}
    rows = []
    for family in samples.FAMILIES:
        for size in samples.SIZES:
            for other in ("dpo, beta 1", "dpo, beta 0.1"):
                both = at[family, size, "lsif"], at[family, size, other]
                cells = []
                for margin in FURTHER:
                    lsif, dpo_ = (samples.at_margin(t, margin, t.chosen_ST) for t in both)
                    difference = paired_difference(lsif, dpo_)
                    cells.append(_interval(difference) if difference else "not reached")
                rows.append((family, size, f"`lsif` less `{other}`", *cells))
    return _table(("policies", "pairs", "difference", *(f"at margin {margin:g}" for margin in FURTHER)), rows, text=3)


def _of_seeds(values: Sequence[float]) -> str:
    """Mean and 95 % interval; of fewer seeds than all, with their number."""
    return _interval(t_interval(values)) if len(values) >= len(samples.SEEDS) / 2 else "not reached"


def _interval(at: Interval) -> str:
    if at.n < len(samples.SEEDS) / 2:
        return "not reached"
    count = "" if at.n == len(samples.SEEDS) else f" ({at.n} seeds)"
    return f"{at.mean:.2f} [{at.low:.2f}, {at.high:.2f}]{count}".replace("-", MINUS)


def _shares(masses: Iterable[float]) -> str:
    return " / ".join(f"{mass:.2f}" for mass in masses)


def _signed(value: float) -> str:
    return f"{MINUS}infinite" if math.isinf(value) else f"{value:+.2f}".replace("-", MINUS)


def _nats(value: float) -> str:
    return "infinite" if math.isinf(value) else f"{abs(value):.3f}"


def _tiny(value: float) -> str:
    return "0" if value == 0 else f"{value:.0e}" if value < 1e-3 else f"{value:.2g}"


def _table(heads: Sequence[str], lines: Iterable[Sequence[object]], text: int = 1) -> str:
    return tables.rows(heads, [[str(cell) for cell in line] for line in lines], text)
