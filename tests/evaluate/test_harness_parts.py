"""What `dil eval` puts round lm-eval: answers that are kept, rows made into scores, vLLM's arguments."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dil_cli.config.compose import compose
from dil_cli.config.harness_schema import Backend, HarnessConfig, Recipe
from dil_cli.config.help import describe
from dil_cli.config.paths import conf_dir
from dil_cli.config.schema import EvalConfig
from dil_cli.errors import DilError
from dil_cli.evaluate.backend import vllm_arguments
from dil_cli.evaluate.data_root import content_sha256
from dil_cli.evaluate.remember import Answers, Remembering, request_key
from dil_cli.evaluate.scores import _cell, _scores, trained_on_questions
from dil_cli.evaluate.target import Target, model_config
from dil_cli.tracking.console import make_console


def test_what_is_put_is_read_again_and_a_broken_line_is_passed_over(tmp_path: Path):
    path = tmp_path / "a" / "answers.jsonl"
    answers = Answers(path)
    assert answers.put("x", (-0.1 - 0.2, True))
    assert not answers.put("x", (0.0, False)), "the first stays"
    assert answers.put("y", "text\nof two lines \u2028")
    answers.close()
    with path.open("ab") as file:
        file.write(b'{"key": "z", "ans')
    again = Answers(path)
    assert again["x"] == (-0.1 - 0.2, True)
    assert again["y"] == "text\nof two lines \u2028"
    assert "z" not in again
    again.put("z", "whole")
    again.close()
    assert Answers(path)["z"] == "whole"


class Model:
    """Says how often it was asked; `max_length` words."""

    max_length, max_gen_toks = 6, 2

    def __init__(self) -> None:
        self.asked: list[str] = []

    def set_cache_hook(self, hook: object) -> None:
        self.hook = hook

    def tok_encode(self, text: str) -> list[str]:
        return text.split()

    def generate_until(self, requests: list, disable_tqdm: bool) -> list[str]:
        self.asked += [request.args[0] for request in requests]
        return [f"{request.args[0]}!{len(self.asked)}" for request in requests]

    def loglikelihood(self, requests: list, disable_tqdm: bool) -> list[tuple[float, bool]]:
        self.asked += [request.args[0] for request in requests]
        return [(-float(len(request.args[1])), False) for request in requests]


def request(*args: object) -> SimpleNamespace:
    return SimpleNamespace(args=args)


def test_only_what_is_not_known_is_asked_and_sampling_always(tmp_path: Path, capsys):
    model, path = Model(), tmp_path / "answers.jsonl"
    lm = Remembering(model, Answers(path), make_console(), "toy")
    greedy, sampled = {"until": ["."]}, {"until": ["."], "do_sample": True}
    first = lm.generate_until([request("a", greedy), request("b", greedy), request("a", greedy)])
    assert model.asked == ["a", "b"], "twice the same prompt is asked once"
    assert first[0] == first[2] == "a!2"
    assert lm.generate_until([request("b", greedy), request("c", greedy)]) == ["b!2", "c!3"]
    assert (lm.known, lm.computed) == (2, 3)
    assert "toy (1 are known): 1 ..." in capsys.readouterr().out
    assert lm.generate_until([request("a", {"until": ["?"]})]) == ["a!4"], "another stop word is another question"
    both = lm.generate_until([request("a", sampled), request("a", sampled)])
    assert len(both) == 2
    assert model.asked[-2:] == ["a", "a"]
    assert len(path.read_text().splitlines()) == 4, "what was drawn is not kept"


def test_prompts_that_are_cut_are_counted(tmp_path: Path):
    lm = Remembering(Model(), Answers(tmp_path / "answers.jsonl"), make_console(), "toy")
    lm.generate_until([request("one two three four", {}), request("one two three four five", {})])
    assert (lm.prompts, lm.cut) == (2, 1), "two words of six are the answer's"
    lm.loglikelihood([request("1 2 3 4 5", " 6 7"), request("1 2 3 4 5", " 6"), request("1 2 3 4 5 6", " 7 8")])
    assert (lm.prompts, lm.cut) == (4, 2), "the last token is predicted and not read; two choices have one prompt"


def test_a_key_is_of_kind_prompt_and_all_arguments():
    keys = [
        request_key("loglikelihood", ("a", "b")), request_key("generate_until", ("a", "b")),
        request_key("loglikelihood", ("ab", "")), request_key("loglikelihood", ("a", {"until": ["x"]})),
    ]  # fmt: skip
    assert len(set(keys)) == 4
    assert request_key("generate_until", ("a", {"x": 1, "y": 2})) == request_key(
        "generate_until", ["a", {"y": 2, "x": 1}]
    )


def test_a_row_of_lm_evals_as_scores():
    row = {
        "alias": "x", "sample_len": 3, "acc,none": 0.5, "acc_stderr,none": 0.1, "exact_match,strict-match": 0.25,
        "exact_match_stderr,strict-match": "N/A", "exact_match_original,none": 0.0, "words,none": "many",
    }  # fmt: skip
    assert _scores(row, []) == {"metrics": {"acc": 0.5, "exact_match,strict-match": 0.25}, "stderr": {"acc": 0.1}}
    wanted = _scores(row, ["exact_match,strict-match"])
    assert wanted == {"metrics": {"exact_match,strict-match": 0.25}, "stderr": {}}


@pytest.mark.parametrize(
    ("stderr", "shown"), [({"acc": 0.125}, "50.00 +- 12.50"), ({"acc": 0.0}, "50.00 +- -"), ({}, "50.00 +- -")]
)
def test_no_error_is_shown_where_none_is_known(stderr, shown):
    """Of one question lm-eval has none, and 0 where all questions have the same score."""
    assert _cell({"metrics": {"acc": 0.5}, "stderr": stderr}) == shown


@pytest.mark.parametrize(
    ("source", "path", "data", "warned"),
    [
        ("bundled", "gsm8k_pairs", "openai/gsm8k", True), ("bundled", "gsm8k_pairs", "SaylorTwift/bbh", False),
        ("bundled", "gsm8k", "openai/gsm8k", False), ("local", "gsm8k_pairs", "openai/gsm8k", False),
    ],
)  # fmt: skip
def test_a_score_on_questions_that_were_trained_on(source, path, data, warned, tmp_path: Path):
    """gsm8k_pairs has GSM8K's test questions; gsm8k its training problems."""
    run: Any = SimpleNamespace(config={"data": {"source": source, "path": path}})
    assert trained_on_questions(Target("x", "x", tmp_path, run), {data: None}) is warned
    assert not trained_on_questions(Target("x", "x", tmp_path, None), {data: None})


def test_content_is_names_and_bytes_and_nothing_else(tmp_path: Path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "a").write_text("1")
    seen = [content_sha256(tmp_path)]
    (tmp_path / ".cache").mkdir()
    (tmp_path / ".cache" / "left").write_text("x")
    assert content_sha256(tmp_path) == seen[0]
    (tmp_path / "d" / "a").write_text("2")
    seen.append(content_sha256(tmp_path))
    (tmp_path / "d" / "a").rename(tmp_path / "d" / "b")
    seen.append(content_sha256(tmp_path))
    assert len(set(seen)) == 3


def vllm(model_folder: Path, tmp_path: Path, adapter: dict | None = None, **values: object) -> dict:
    recipe = {"gsm8k": Recipe(task="gsm8k")}
    benchmark = HarnessConfig(name="gsm8k", tasks=recipe, backend=Backend.vllm, **values)
    config = EvalConfig(checkpoint="x", benchmark=benchmark)
    target = Target("x", str(model_folder), tmp_path, None)
    return vllm_arguments(config, target, model_config(config, target), adapter)


def test_vllm_is_made_with_arguments_that_lm_eval_takes(model_folder: Path, tmp_path: Path):
    """Read from lm-eval's source: vLLM itself has no place on this machine, so nothing was run through it."""
    spec = importlib.util.find_spec("lm_eval.models.vllm_causallms")
    assert spec is not None
    assert spec.origin is not None
    tree = ast.parse(Path(spec.origin).read_text())
    made = next(node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == "__init__")
    taken = {argument.arg for argument in made.args.args}
    arguments = vllm(model_folder, tmp_path, {"r": 64}, tensor_parallel=4, max_length=2048, batch_size="auto")
    # What lm-eval does not know it hands to vllm.LLM.
    assert set(arguments) - taken == {"gpu_memory_utilization", "load_format"}
    assert arguments["tensor_parallel_size"] == 4
    assert arguments["max_model_len"] == 2048
    assert arguments["dtype"] == "bfloat16"
    assert (arguments["lora_local_path"], arguments["max_lora_rank"]) == (str(model_folder), 64)
    assert "lora_local_path" not in vllm(model_folder, tmp_path)


PAPER = {
    "mmlu_pro": ("leaderboard_mmlu_pro", 5, "acc"), "bbh": ("leaderboard_bbh", 3, "acc_norm"),
    "musr": ("leaderboard_musr", 0, "acc_norm"), "math": ("leaderboard_math_hard", 4, "exact_match"),
    "gsm8k": ("gsm8k", 5, "exact_match,strict-match"), "arc": ("arc_challenge", 25, "acc_norm"),
}  # fmt: skip
"""The paper's benchmarks: lm-eval's task, shots, the metric that is shown."""


def test_every_benchmark_composes_and_the_paper_is_all_six():
    names = {path.stem for path in (conf_dir() / "benchmark").glob("*.yaml")}
    assert names >= {"likelihood", "paper", "task", *PAPER}
    whole = compose("eval", ["checkpoint=x", "benchmark=paper"]).benchmark.recipes()
    assert list(whole) == list(PAPER)
    for name, (task, shots, metric) in PAPER.items():
        alone = compose("eval", ["checkpoint=x", f"benchmark={name}"]).benchmark
        assert alone.recipes() == {name: whole[name]}
        assert (whole[name].task, whole[name].shots, whole[name].metrics[0]) == (task, shots, metric)
        assert 10 < len(describe(conf_dir() / "benchmark" / f"{name}.yaml")) < 110


def test_a_benchmark_has_recipes_or_a_task():
    assert HarnessConfig(name="task", task="hellaswag").recipes() == {"hellaswag": Recipe(task="hellaswag")}
    with pytest.raises(DilError, match=r"benchmark.task is hellaswag, it must stay null"):
        HarnessConfig(name="arc", tasks={"arc": Recipe(task="arc_challenge")}, task="hellaswag")
