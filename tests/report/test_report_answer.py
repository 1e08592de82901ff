"""The words are derived from the numbers and never say more than an interval allows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from run_folders import STEPS, write_run

from dil_cli.report.answer import Answer, answer
from dil_cli.report.build import read
from dil_cli.report.experiment import arrange
from dil_cli.report.numerics import numerics_table
from dil_cli.report.record import read_records
from dil_cli.report.runs import find_runs
from dil_cli.report.tables import MINUS

KEEPS, LOSES, GAINS_NOTHING = (-0.1, -0.3), (-0.4, -0.6), (-0.05, -0.05)


def answer_of(path: Path, *questions: str) -> Answer:
    runs, _ = find_runs([path])
    return answer(arrange(read_records(runs)[0]), questions, runs)


def write(path: Path, seeds: int = 4, between_seeds: float = 0.01, **effects: tuple[float, float]) -> Path:
    for loss, effect in effects.items():
        for seed in range(seeds):
            write_run(path, loss, seed, effect=effect, between_seeds=between_seeds)
    return path


def claim(found: Answer) -> str:
    return next(sentence for sentence in found.findings if sentence.startswith("The paper's claim"))


def test_the_claim_holds_where_every_interval_says_so(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=KEEPS, dpo=LOSES, simpo=LOSES))
    assert "holds in these runs against dpo and simpo: lsif kept more than dpo and simpo." in claim(found)
    assert found.question == "Which loss lowers the likelihood of the chosen responses least while the margin grows?"
    assert answer_of(tmp_path, "Why?", "How?", "Why?").question == "Why? How?"  # of three sweeps
    (ranked,) = (sentence for sentence in found.findings if "accuracy per token" in sentence)
    assert ranked == "Compared with loss dpo, no difference in accuracy per token was seen for lsif and simpo."


def test_the_claim_does_not_hold_where_one_interval_says_otherwise(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=KEEPS, ukl=LOSES, dpo=(-0.2, -0.4)))
    assert "does not hold in these runs against dpo: ukl kept less than dpo." in claim(found)
    assert "holds in these runs against" not in claim(found).replace("does not hold", "")


def test_the_claim_is_undecided_where_an_interval_holds_0(tmp_path: Path):
    found = answer_of(write(tmp_path, between_seeds=0.1, lsif=(-0.4, -0.6), dpo=(-0.41, -0.61)))
    assert "is not decided in these runs against dpo: lsif was not seen to differ from dpo." in claim(found)
    assert any("no difference in chosen likelihood was seen for lsif" in sentence for sentence in found.findings)


def test_a_margin_that_did_not_grow_supports_nothing(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=GAINS_NOTHING, dpo=LOSES))
    assert "is not decided in these runs against dpo: no growth of the margin was seen under lsif." in claim(found)
    found = answer_of(write(tmp_path / "shrinks", lsif=(-0.3, -0.1), dpo=LOSES))
    assert "does not hold in these runs against dpo: the margin shrank under lsif." in claim(found)


def test_a_rival_whose_margin_did_not_grow_is_set_aside(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=KEEPS, dpo=LOSES, simpo=GAINS_NOTHING))
    assert "holds in these runs against dpo: lsif kept more than dpo." in claim(found)
    assert "Not compared, since no growth of their margin was seen: simpo." in claim(found)


def test_other_losses_are_judged_apart_from_the_papers_baselines(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=(-0.2, -0.4), dpo=LOSES, slic=KEEPS))
    assert "holds in these runs against dpo:" in claim(found)
    assert "Against other losses the claim does not hold in these runs: lsif kept less than slic." in found.findings


def test_without_both_sides_nothing_is_said_of_the_claim(tmp_path: Path):
    found = answer_of(write(tmp_path, dpo=LOSES, simpo=LOSES))
    assert not any("claim" in sentence for sentence in found.findings)
    found = answer_of(write(tmp_path / "one", lsif=KEEPS))
    assert not any("claim" in sentence for sentence in found.findings)
    assert found.question == "What does lsif do to the likelihoods of held-out responses?"


def test_directions_follow_the_intervals(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=KEEPS, dpo=LOSES, sft=(0.2, 0.25)))
    chosen, margin = found.findings[:2]
    assert chosen.startswith("The chosen responses became less likely under lsif (")
    assert "; became more likely under sft (+" in chosen
    assert "grew under lsif (+0.2" in margin
    assert "shrank under sft (" in margin
    unclear = answer_of(write(tmp_path / "wide", between_seeds=0.3, lsif=(0.01, -0.2)))
    assert "No change of the chosen responses was seen under lsif" in unclear.findings[0]


def test_one_seed_claims_nothing_about_seeds(tmp_path: Path):
    found = answer_of(write(tmp_path, seeds=1, lsif=KEEPS, dpo=LOSES))
    assert "Each group has one seed, and nothing is claimed about seeds" in found.limits[0]
    assert "bootstrap" in found.limits[0]
    write(tmp_path, seeds=3, simpo=LOSES)
    found = answer_of(tmp_path)
    assert "One seed only, with nothing claimed about seeds: lsif and dpo." in found.limits[0]
    assert "over 3 seeds are Student's t" in found.limits[1]


def test_what_else_differs_is_said(tmp_path: Path):
    write_run(tmp_path, "lsif", 0, optim__lr=1e-4)
    write_run(tmp_path, "dpo", 0)
    found = answer_of(tmp_path)
    assert any("a difference may come from them: optim.lr." in limit for limit in found.limits)
    assert any("different reductions" in limit for limit in found.limits)


def test_a_series_at_several_settings_is_named_once(tmp_path: Path):
    for noise in (0.0, 0.1, 0.25, 0.5, 0.6):
        same = noise == 0.6
        write_run(tmp_path, "lsif", 0, effect=KEEPS, between_seeds=0, data__label_noise=noise)
        write_run(tmp_path, "dpo", 0, effect=KEEPS if same else LOSES, between_seeds=0, data__label_noise=noise)
    found = answer_of(tmp_path, "Does noise matter?")
    assert found.question == "Does noise matter?"
    assert "under lsif at every setting (" in found.findings[0]
    assert "more chosen likelihood was kept by lsif at 4 of 5 settings (+0.3" in found.findings[2]
    assert "no difference in chosen likelihood was seen for lsif at label_noise 0.6." in found.findings[2]
    said = claim(found)
    assert "not decided in these runs of one seed each against dpo: lsif was not seen to differ from dpo at" in said
    assert "label_noise 0.6" in said


def test_a_baseline_that_is_not_one_is_said(tmp_path: Path):
    write_run(tmp_path, "lsif", 0)
    for beta in (0.1, 0.01):
        write_run(tmp_path, "dpo", 0, loss__beta=beta)
    found = answer_of(tmp_path)
    assert not any(sentence.startswith("Compared with") for sentence in found.findings)
    assert any("more than one under the same settings: lsif (--baseline" in limit for limit in found.limits)


def steps_of(folder: Path, **columns: list[float]) -> None:
    """Put values of the first steps into a run's record."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    trained = [row for row in rows if "grad_norm" in row]
    for name, values in columns.items():
        for row, value in zip(trained, values, strict=True):
            row[name.replace("__", "/")] = value
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_guards_lost_gradients_and_failures_come_first(tmp_path: Path):
    root = tmp_path / "runs"
    lsif, dpo, slic = (write_run(root, loss, 0) for loss in ("lsif", "dpo", "slic"))
    steps_of(lsif, guard__frac=[0.0, 0.5] * (STEPS // 2), grad_norm=[4.0] * STEPS)
    steps_of(dpo, grad_norm=[10.0] * (STEPS - 5) + [0.01] * 5)
    steps_of(slic, guard__frac=[0.0] * STEPS, grad_norm=[1.0] * STEPS)
    found = answer_of(root).findings
    assert found[0] == "No run failed: a loss or a gradient that is not finite would have ended it."
    assert found[1] == "The guard of the exponentials acted under lsif (25.0 %) of the pairs of a step."
    assert found[2] == "The gradient's norm fell below 0.01 of its first value under dpo."
    table = numerics_table(read([root], None).experiment)
    assert [[cell.data or cell.text for cell in row] for row in table.rows] == [
        ["lsif", "mean", (25.0,), (50.0,), (4.0,), (4.0,), (4.0,)],
        ["dpo", "sum", (None,), (None,), (10.0,), (0.01,), (10.0,)],
        ["slic", "mean", (0.0,), (0.0,), (1.0,), (1.0,), (1.0,)],
    ]
    (slic / "result.json").unlink()
    (slic / "failure.json").write_text(json.dumps({"step": 7, "what": "the loss is not finite"}))
    assert answer_of(root).findings[0] == f"1 of 3 runs failed: {slic.name} (the loss is not finite)."


def test_of_many_groups_the_two_ends_are_named(tmp_path: Path):
    for i, loss in enumerate(("lsif", "bce", "ukl", "dpo", "simpo", "slic", "ipo", "cpo", "kto", "nca", "bco", "sppo")):
        for seed in range(4):
            write_run(tmp_path, loss, seed, effect=(-0.1 - i / 100, 0.2), between_seeds=0.001)
    first = answer_of(tmp_path).findings[0].replace(MINUS, "-")
    assert re.fullmatch(
        r"The chosen responses became less likely under 12 of 12 groups "
        r"\(-0\.2[12]\d under sppo to -0\.(09|10)\d under lsif\)\.",
        first,
    ), first


def test_no_change_is_a_sentence(tmp_path: Path):
    for loss in ("lsif", "dpo"):
        write_run(tmp_path, loss, 0, effect=(0.0, 0.0), between_seeds=0.5)
        write_run(tmp_path, loss, 1, effect=(0.0, 0.0), between_seeds=0.5)
    assert answer_of(tmp_path).findings[:2] == (
        "No change of the chosen responses was seen under lsif and dpo.",
        "No change of the margin was seen under lsif and dpo.",
    )


def test_what_shares_no_seed_is_not_compared(tmp_path: Path):
    for seed in range(3):
        write_run(tmp_path, "lsif", seed, effect=KEEPS)
        write_run(tmp_path, "dpo", seed + 3, effect=LOSES)
    assert "is not decided in these runs against dpo: lsif has neither a seed nor pairs in common" in claim(
        answer_of(tmp_path)
    )


def test_a_higher_accuracy_is_said(tmp_path: Path):
    found = answer_of(write(tmp_path, lsif=(-0.1, -0.5), ukl=(-0.1, -0.05), dpo=(-0.1, -0.15)))
    (ranked,) = (sentence for sentence in found.findings if "accuracy per token" in sentence)
    assert re.fullmatch(
        r"Compared with loss dpo, accuracy per token is higher under lsif \(\+\d+\.\d pp\); accuracy per token is "
        rf"lower under ukl \({MINUS}\d+\.\d pp\)\.",
        ranked,
    )
