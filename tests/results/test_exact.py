"""Which problems are asked, and what counts as a right final answer."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from dil_cli.config.compose import compose
from dil_cli.data.load import load_pairs
from results import exact
from results.grid import NotRun


@pytest.mark.parametrize(
    ("solution", "number"),
    [
        ("She has <<2+2=4>>4 apples.\nA: 4", 4.0),
        ("A: 1,080", 1080.0),
        ("A: $12.50", 12.5),
        ("A: -3", -3.0),
        ("A: 4 apples", 4.0),
        ("A: 4\nA: 5", 5.0),
        ("It is 4", None),
        ("A: ", None),
        ("", None),
    ],
)
def test_the_final_answer_is_the_number_of_the_last_final_line(solution, number):
    assert exact.final_number(solution) == number


def test_no_problem_is_one_that_a_training_pair_is_about():
    asked = [" ".join(pair.prompt[-1].content.split()) for pair in exact.problems(exact.PROBLEMS)]
    pairs = load_pairs(compose("train", ["data=gsm8k_pairs"]).data, seed=0, needs_rejected=True)
    taught = {" ".join(pair.prompt[-1].content.split()) for pair in pairs.train}
    assert len(set(asked)) == exact.PROBLEMS
    assert not taught & set(asked)
    assert all(exact.final_number(pair.chosen) is not None for pair in exact.problems(exact.PROBLEMS))


def test_what_a_checkpoint_answers_is_measured_once_and_kept(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    two = exact.problems(2)
    solutions = {two[0].row: two[0].chosen, two[1].row: "I do not know."}
    asked = []

    def answer(*words):
        asked.append(words[-1])
        texts = {row: SimpleNamespace(text=text) for row, text in solutions.items()}
        return SimpleNamespace(pairs=words[-1], responses=texts)

    monkeypatch.setattr(exact, "answer", answer)
    for _ in range(2):
        exact.measure("bundled:tiny", 2)
    assert asked == [two]
    assert exact.measured("bundled:tiny", 2) == exact.Exact(right=[True, False], answered=[True, False])
    with pytest.raises(NotRun):
        exact.measured("bundled:tiny", 3)


def test_a_checkpoint_that_was_not_measured_says_so(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NotRun, match="no exact match of bundled:tiny"):
        exact.measured("bundled:tiny", 2)
