"""Judges: how replies are read, what the questions hold, and scores as the models themselves give them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from dil_cli.evaluate.judge import PROMPTS, Match, choose_prompt, read_verdict, transcript
from dil_cli.evaluate.winrate import summarise
from dil_cli.report.intervals import wilson
from dil_cli.types import Message

POST = (Message("user", "SUBREDDIT: r/x\n\nTITLE: t\n\nPOST: My cat {a} left.\n\nTL;DR:"),)
TALK = (Message("user", "Hello"), Message("assistant", " Hi. "), Message("user", "Bye {b}"))


@pytest.mark.parametrize(
    ("reply", "verdict"),
    [
        ("A is shorter.\nVerdict: A", "A"), ("verdict: b.", "B"), ("**Verdict:** tie", "tie"),
        ("**Verdict: A**\n", "A"),
        ("Verdict: Reply B", "B"), ("A", "A"), ("'B'", "B"), ("tie", "tie"), ("Verdict: A\nVerdict: A", "A"),
        ("<think>Verdict: A</think>\nVerdict: B", "B"),
        ("", None), ("I prefer A.", None), ("a", None), ("A\nB", None), ("Verdict: A\nVerdict: B", None),
        ("Verdict: A or B", None), ("Verdict: C", None), ("Verdict: A, B", None), ("AB", None), ("AAAA", None),
        ("My Verdict: A", None),
    ],
)  # fmt: skip
def test_replies_are_read_and_not_guessed(reply, verdict):
    assert read_verdict(reply) == verdict


def test_a_question_holds_prompt_and_responses_as_they_are():
    for prompts, name in (([POST], "summary"), ([TALK], "dialogue"), ([POST, TALK], "dialogue")):
        assert choose_prompt(None, prompts).name == name
    asked = choose_prompt(None, [POST]).fill(POST, "uses {b} and {prompt} \\1", " second ")
    assert "<post>\nSUBREDDIT: r/x\n\nTITLE: t\n\nPOST: My cat {a} left.\n</post>" in asked
    assert "<summary_a>\nuses {b} and {prompt} \\1\n</summary_a>" in asked
    assert "<summary_b>\nsecond\n</summary_b>" in asked
    assert transcript(TALK) == "User: Hello\n\nAssistant: Hi.\n\nUser: Bye {b}"
    assert sorted(path.stem for path in PROMPTS.iterdir()) == ["dialogue", "summary"]


def test_wilson_of_5_0_and_8_of_10():
    assert wilson(0.5, 10).low == pytest.approx(0.2366, abs=1e-4)
    assert wilson(0.0, 10).high == pytest.approx(0.2775, abs=1e-4)
    assert wilson(0.0, 10).low == pytest.approx(0, abs=1e-12)
    interval = wilson(0.8, 10)
    assert (interval.low, interval.high) == (pytest.approx(0.4902, abs=1e-4), pytest.approx(0.9433, abs=1e-4))


def test_rates_by_hand():
    import numpy as np

    from dil_cli.evaluate.judge import Outcome

    outcomes = [
        Outcome(1.0, (True, False)), Outcome(0.75, (False,)), Outcome(0.5, (True, True)), Outcome(0.0, (False, True)),
        Outcome(None, (True,)), Outcome(0.5),
    ]  # fmt: skip
    policy, opponent = np.array([4.0, 1, 1, 1, 9, 2]), np.array([2.0, 2, 2, 2, 1, 2])
    metrics, intervals, more = summarise(outcomes, policy, opponent)
    assert metrics == {
        "win_rate": pytest.approx(2.75 / 5), "tie_rate": 0.4, "unparsed": pytest.approx(1 / 6), "length_policy": 3,
        "length_opponent": pytest.approx(11 / 6),
    }  # fmt: skip
    assert intervals.keys() == metrics.keys()
    assert (more["wins"], more["ties"], more["losses"], more["unparsed"], more["contradicted"]) == (2, 2, 1, 1, 1)
    assert more["first_shown_wins"] == pytest.approx(5 / 8)
    assert more["win_rate_when_longer"] == 1
    assert more["win_rate_when_shorter"] == pytest.approx(1.25 / 3)
    assert "win_rate" not in summarise([Outcome(None)] * 3, policy[:3], opponent[:3])[0]


@pytest.fixture
def judged(dil_here, match_words, tmp_path: Path):
    """`judged("judge=logprob", ...)` -> the record and the stored lines."""

    def run(*argv: str) -> tuple[dict, list[dict], list[dict]]:
        words = [word for word in match_words if not word.startswith("judge")]
        code, out, err = dil_here("eval", *words, *argv)
        assert code == 0, err
        written = next(line for line in out.splitlines() if line.startswith("record "))
        path = Path(written.removeprefix("record "))
        lines = [
            [json.loads(line) for line in (path.parent / "winrate" / f"{name}.jsonl").read_text().splitlines()]
            for name in ("generations", "verdicts")
        ]
        return json.loads(path.read_text()), *lines

    return run


def matches(generations: list[dict], tmp_path: Path) -> list[Match]:
    rows = [json.loads(line) for line in (tmp_path / "pairs.jsonl").read_text().splitlines()]
    return [
        Match(
            line["row"],
            (Message("user", rows[line["row"] - 1]["prompt"]),),
            line["text"].strip(),
            rows[line["row"] - 1]["chosen"],
        )
        for line in generations
    ]


def whole(match: Match, response: str) -> tuple[str, str]:
    """As the template of `model_folder` writes it."""
    return f"<user>{match.prompt[0].content}<assistant>", f"{response}<end>"


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_a_log_prob_judges(reduction, judged, model_folder: Path, tmp_path: Path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    words = ["judge=logprob", f"judge.path={model_folder}", "judge.max_length=256", "judge.max_prompt_length=128"]
    record, generations, scores = judged(*words, f"judge.reduction={reduction}")
    model, tokenizer = AutoModelForCausalLM.from_pretrained(model_folder), AutoTokenizer.from_pretrained(model_folder)

    def score(match: Match, response: str) -> float:
        prompt, ending = (tokenizer(text)["input_ids"] for text in whole(match, response))
        with torch.no_grad():
            logps = model(torch.tensor([prompt + ending])).logits[0].log_softmax(-1)
        picked = [float(logps[len(prompt) - 1 + i, token]) for i, token in enumerate(ending)]
        return sum(picked) / (len(picked) if reduction == "mean" else 1)

    check(record, generations, scores, score, tmp_path)


def test_a_reward_model_judges(judged, model_folder: Path, tmp_path: Path, dil_here, match_words):
    from transformers import AutoTokenizer, LlamaConfig, LlamaForSequenceClassification

    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    torch.manual_seed(3)
    shape = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "num_labels": 1,
        "max_position_embeddings": 256, "initializer_range": 0.3,
    }  # fmt: skip
    model = LlamaForSequenceClassification(LlamaConfig(vocab_size=len(tokenizer), **shape)).eval()
    folder = tmp_path / "reward"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    words = ["judge=reward_model", f"judge.path={folder}", "judge.max_length=256", "judge.max_prompt_length=128"]
    record, generations, scores = judged(*words)

    def score(match: Match, response: str) -> float:
        ids = tokenizer("".join(whole(match, response)))["input_ids"]
        with torch.no_grad():
            return float(model(torch.tensor([ids])).logits)

    check(record, generations, scores, score, tmp_path)
    assert 0 < record["metrics"]["win_rate"] < 1, "or the sign could be wrong"
    tied, _, again = judged(*words, "judge.tie=1000")
    assert tied["metrics"]["win_rate"] == 0.5
    assert again == scores, "scores do not depend on what counts as a tie"
    keep = [word for word in match_words if not word.startswith("judge")]
    code, _, err = dil_here("eval", *keep, "judge=reward_model", f"judge.path={model_folder}")
    assert code == 2
    assert "is no reward model: it lacks score.weight" in err
    assert f"judge.path={model_folder}" in err


def check(record: dict, generations: list[dict], scores: list[dict], score, tmp_path: Path) -> None:
    """Stored scores and the win rate are those that `score` gives."""
    stored = {(line["row"], line["side"]): line["score"] for line in scores}
    wins = []
    for match in matches(generations, tmp_path):
        ours, theirs = score(match, match.policy), score(match, match.opponent)
        assert stored[match.row, "policy"] == pytest.approx(ours, rel=1e-4, abs=1e-5)
        assert stored[match.row, "opponent"] == pytest.approx(theirs, rel=1e-4, abs=1e-5)
        wins.append(float(ours > theirs))
    assert len(wins) == record["pairs"] == 10
    assert record["metrics"]["win_rate"] == pytest.approx(sum(wins) / 10)


def test_a_judge_that_is_the_policy_is_told(dil_here, match_words, model_folder: Path, adapters):
    words = [word for word in match_words if not word.startswith("judge")]
    words += ["judge=logprob", f"judge.path={model_folder}", "judge.max_length=256", "judge.max_prompt_length=128"]
    warned = "the judge has the weights of this very checkpoint"
    code, out, err = dil_here("eval", *words)
    assert code == 0, err
    assert warned in out
    code, out, err = dil_here("eval", *words, f"checkpoint={adapters['one']}")
    assert code == 0, err
    assert warned not in out, "an adapter on it is another model"
