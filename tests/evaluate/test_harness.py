"""`dil eval` through lm-eval on real questions: lm-eval's own numbers, no stale answers, resumed after a kill."""

from __future__ import annotations

import gzip
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from dil_cli.config.paths import conf_dir
from dil_cli.models.load import BUNDLED

lm_eval = pytest.importorskip("lm_eval", reason="the extra 'eval' is not installed")

ROOT = Path(__file__).parent / "benchmarks"
FROM_ROOT = f"benchmark.root={ROOT}"
TASK = "leaderboard_bbh_boolean_expressions"
ONE_TASK = ("benchmark=task", f"benchmark.task={TASK}")
BENCHMARKS = sorted(path.stem for path in (conf_dir() / "benchmark").glob("*.yaml"))
HUB_IDS = {
    "TIGER-Lab/MMLU-Pro", "SaylorTwift/bbh", "TAUR-Lab/MuSR", "DigitalLearningGmbH/MATH-lighteval", "openai/gsm8k",
    "allenai/ai2_arc",
}  # fmt: skip


@pytest.fixture
def evaluate(dil_here) -> Callable[..., dict]:
    """`evaluate("checkpoint=...", "benchmark=...")` -> the last record, with the samples beside it."""

    def run(*argv: str) -> dict:
        code, out, err = dil_here("eval", *argv)
        assert code == 0, err
        path = [Path(line.removeprefix("record ")) for line in out.splitlines() if line.startswith("record ")][-1]
        with gzip.open(path.with_suffix("") / "samples.jsonl.gz", "rt") as file:
            samples = file.readlines()
        return json.loads(path.read_text()) | {"samples": [json.loads(line) for line in samples], "said": out}

    return run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A data root of the test's own."""
    return Path(shutil.copytree(ROOT, tmp_path / "root"))


def own_command(folder: Path, model: Path, tasks: dict[str, tuple[str, str]], *options: str) -> tuple[dict, dict]:
    """lm-eval's own command line on tasks that differ from lm-eval's in where their data lies: results, samples.

    Args:
        folder: to work in.
        model: the checkpoint.
        tasks: name to lm-eval's YAML and the hub id of its data.
        options: of the command.
    """
    yaml = folder / "tasks"
    yaml.mkdir()
    source = Path(lm_eval.__file__).parent / "tasks"
    for name, (file, hub_id) in tasks.items():
        text = f"include: {source / file}\ntask: {name}\ndataset_path: {ROOT / hub_id}\n"
        (yaml / f"{name}.yaml").write_text(text)
    command = [
        sys.executable, "-m", "lm_eval", "run", "--model", "hf", "--model_args", f"pretrained={model},dtype=float32",
        "--tasks", *tasks, "--include_path", str(yaml), "--batch_size", "8", "--device", "cpu", "--log_samples",
        "--output_path", str(folder / "own"), *options,
    ]  # fmt: skip
    env = os.environ | {"HF_HOME": str(folder / "hf")}
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr[-2000:]
    (results,) = (folder / "own").rglob("results_*.json")
    samples = {}
    for name in tasks:
        (path,) = (folder / "own").rglob(f"samples_{name}_*.jsonl")
        samples[name] = [json.loads(line) for line in path.read_text().splitlines()]
    return json.loads(results.read_text())["results"], samples


def own_prompt(sample: dict) -> str:
    return sample["arguments"]["gen_args_0"]["arg_0"]


@pytest.mark.slow
def test_the_numbers_prompts_and_answers_are_those_of_lm_evals_own_command(evaluate, tmp_path: Path):
    """The bundled model, which ends its answers and is sometimes right, with its chat template."""
    tasks = {
        "here_gsm8k": ("gsm8k/gsm8k.yaml", "openai/gsm8k"),
        "here_navigate": ("leaderboard/bbh_mc/navigate.yaml", "SaylorTwift/bbh"),
        "here_causal_judgement": ("leaderboard/bbh_mc/causal_judgement.yaml", "SaylorTwift/bbh"),
    }
    theirs, samples = own_command(tmp_path, BUNDLED / "tiny", tasks, "--apply_chat_template")
    ours = {"here_gsm8k": evaluate("checkpoint=bundled:tiny", "benchmark=gsm8k", FROM_ROOT)}
    assert ours["here_gsm8k"]["shots"] == 5
    for name in ("navigate", "causal_judgement"):
        words = ("benchmark=task", f"benchmark.task=leaderboard_bbh_{name}", FROM_ROOT)
        ours[f"here_{name}"] = evaluate("checkpoint=bundled:tiny", *words)
    for name, record in ours.items():
        assert record["chat_template"]["used"]
        metrics = {k: v for k, v in theirs[name].items() if "," in k and "_stderr" not in k}
        assert {key if "match" in key else f"{key},none": v for key, v in record["metrics"].items()} == metrics
        for key, value in record["stderr"].items():
            metric, _, kind = key.partition(",")
            assert theirs[name][f"{metric}_stderr,{kind or 'none'}"] == value
        assert [own_prompt(s) for s in samples[name]] == [s["prompt"] for s in record["samples"]]
    assert [s["resps"] for s in samples["here_gsm8k"]] == [s["answers"] for s in ours["here_gsm8k"]["samples"]]
    for name in ("here_navigate", "here_causal_judgement"):
        # lm-eval writes numbers as text; another batch rounds another last digit.
        expected = [float(answer[0][0]) for s in samples[name] for answer in s["resps"]]
        found = [answer[0][0] for s in ours[name]["samples"] for answer in s["answers"]]
        assert found == pytest.approx(expected, abs=1e-4)
    assert any(record["metrics"].get("acc_norm", 0) > 0 for record in ours.values()), "all 0 would prove nothing"


def test_a_group_is_one_record_with_its_subtasks(evaluate, model_folder: Path):
    record = evaluate(f"checkpoint={model_folder}", "benchmark=bbh", FROM_ROOT, "benchmark.limit=1")
    assert record["benchmark"] == "bbh-limit1", "a part of the questions is no BBH score"
    assert len(record["tasks"]) == len(record["samples"]) == 24
    assert record["questions"] == {"scored": 24, "there": 72, "whole": 5761}
    assert "24 of 5,761 questions, the data has 72; not comparable" in record["said"]
    mean = sum(task["metrics"]["acc_norm"] for task in record["tasks"].values()) / 24
    assert record["metrics"] == {"acc_norm": pytest.approx(mean)}
    assert record["stderr"] == {}, "of one question there is none"
    assert record["shots"] == 3
    assert record["data"].keys() == {"SaylorTwift/bbh"}
    right = [sample["metrics"]["acc_norm"] for sample in record["samples"]]
    assert sum(right) / 24 == pytest.approx(mean)


def test_prompts_that_do_not_fit_are_counted(evaluate, model_folder: Path, dil_here):
    """512 positions and a token a byte: no prompt of five problems fits, one without examples does."""
    words = (f"checkpoint={model_folder}", "benchmark=gsm8k", FROM_ROOT, "benchmark.limit=2")
    record = evaluate(*words)
    assert record["prompts"] == {"number": 2, "cut": 2}
    assert "2 of 2 prompts lost their beginning, longer than 512 tokens" in record["said"]
    record = evaluate(f"checkpoint={model_folder}", *ONE_TASK, FROM_ROOT, "benchmark.shots=0")
    assert record["prompts"] == {"number": 3, "cut": 0}
    assert record["shots"] == 0
    assert record["benchmark"] == f"{TASK}-0shot"
    code, _, err = dil_here("eval", *words, "benchmark.max_length=256")
    assert code == 2
    assert "error: gsm8k lets the model write 256 tokens, it has 256 for prompt and answer" in err


def test_answers_are_kept_and_edited_questions_are_asked_again(evaluate, model_folder: Path, root: Path):
    words = (f"checkpoint={model_folder}", *ONE_TASK, f"benchmark.root={root}")
    first = evaluate(*words)
    assert first["answers"]["known"] == 0
    assert first["answers"]["computed"] == 6
    again = evaluate(*words)
    assert (again["answers"]["known"], again["answers"]["computed"]) == (6, 0)
    assert f"{TASK}: all 6 answers are known" in again["said"]
    assert (again["metrics"], again["samples"]) == (first["metrics"], first["samples"])

    file = root / "SaylorTwift" / "bbh" / "boolean_expressions" / "test.jsonl"
    times = (file.stat().st_atime_ns, file.stat().st_mtime_ns)
    swapped = file.read_text().replace('True"}', '?"}').replace('False"}', 'True"}').replace('?"}', 'False"}')
    file.write_text(swapped)
    edited = evaluate(*words)
    assert edited["metrics"]["acc_norm"] == pytest.approx(1 - first["metrics"]["acc_norm"])
    assert edited["answers"]["computed"] == 0, "only the right answers are other ones"
    assert edited["data"] != first["data"]

    file.write_text(swapped.replace("not", "NOT"))  # as long as before, and not younger
    os.utime(file, ns=times)
    asked = evaluate(*words)
    assert asked["answers"]["computed"] > 0
    assert all("NOT" in sample["prompt"] for sample in asked["samples"] if "NOT" in sample["doc"]["input"])
    assert any("NOT" in sample["doc"]["input"] for sample in asked["samples"])


@pytest.mark.slow
def test_killed_in_the_middle_it_goes_on(evaluate, model_folder: Path, tmp_path: Path):
    words = (f"checkpoint={model_folder}", "benchmark=bbh", FROM_ROOT, "benchmark.batch_size=1")
    process = subprocess.Popen(
        [sys.executable, "-m", "dil_cli", "eval", *words], cwd=tmp_path, stdout=subprocess.DEVNULL
    )
    deadline = time.monotonic() + 200
    lines = 0
    while lines < 40 and process.poll() is None and time.monotonic() < deadline:
        lines = sum(path.read_bytes().count(b"\n") for path in tmp_path.glob("outputs/cache/answers/*/bbh.jsonl"))
        time.sleep(0.005)
    assert process.poll() is None, "it was over before it could be killed"
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not list(tmp_path.glob("outputs/eval/*/eval/bbh.json"))
    (kept,) = tmp_path.glob("outputs/cache/answers/*/bbh.jsonl")
    with kept.open("ab") as file:
        file.write(b'{"key": "0123')  # what a kill in the middle of a line leaves
    resumed = evaluate(*words)
    assert resumed["answers"]["known"] >= 40
    whole = evaluate(*words, f"output={tmp_path / 'elsewhere'}")
    assert whole["answers"]["known"] == 0
    assert whole["answers"]["computed"] == resumed["answers"]["known"] + resumed["answers"]["computed"]
    for part in ("metrics", "stderr", "tasks", "samples"):
        assert resumed[part] == whole[part]


def test_no_adapter_gets_the_answers_of_its_base_or_of_another(evaluate, model_folder: Path, adapters):
    words = (*ONE_TASK, FROM_ROOT)
    base = evaluate(f"checkpoint={model_folder}", *words)
    records = {name: evaluate(f"checkpoint={folder}", *words) for name, folder in adapters.items()}
    answers = {name: [sample["answers"] for sample in record["samples"]] for name, record in records.items()}
    answers["base"] = [sample["answers"] for sample in base["samples"]]
    texts = [json.dumps(values) for values in answers.values()]
    assert len(set(texts)) == 4, "each must be another model"
    assert all(record["answers"]["known"] == 0 for record in records.values())
    assert len({record["answers"]["cache"] for record in [base, *records.values()]}) == 4
    for name, folder in adapters.items():
        again = evaluate(f"checkpoint={folder}", *words)
        assert again["answers"]["computed"] == 0
        assert [sample["answers"] for sample in again["samples"]] == answers[name]
        assert again["checkpoint"]["adapter"]["base"] == str(model_folder)


def test_an_adapter_scores_as_the_model_it_was_merged_into(evaluate, adapters, merged: Path):
    found = [
        [answer[0][0] for sample in evaluate(f"checkpoint={path}", *ONE_TASK, FROM_ROOT)["samples"]
         for answer in sample["answers"]]
        for path in (adapters["one"], merged)
    ]  # fmt: skip
    assert found[0] == pytest.approx(found[1], abs=1e-4)


def test_the_template_is_the_checkpoints_and_said(evaluate, dil_here, model_folder: Path, tmp_path: Path):
    words = (*ONE_TASK, FROM_ROOT, "benchmark.limit=1")
    used = evaluate(f"checkpoint={model_folder}", *words)
    assert used["chat_template"]["used"]
    assert "add_generation_prompt" in used["chat_template"]["text"]
    assert "Chat template: the checkpoint's" in used["said"]
    # The three examples are turns, and the question is the last.
    assert used["samples"][0]["prompt"].count("<user>") == 4
    assert used["samples"][0]["prompt"].endswith("<assistant>")
    bare = evaluate(f"checkpoint={model_folder}", *words, "benchmark.chat_template=false")
    assert bare["chat_template"] == {"used": False, "shots": None, "text": None}
    assert "<user>" not in bare["samples"][0]["prompt"]
    assert bare["benchmark"] == f"{TASK}-limit1-no_template", "another way to ask is another benchmark"
    assert bare["answers"]["known"] == 0
    plain = Path(shutil.copytree(model_folder, tmp_path / "plain"))
    (plain / "chat_template.jinja").unlink()
    assert not evaluate(f"checkpoint={plain}", *words)["chat_template"]["used"]
    code, _, err = dil_here("eval", f"checkpoint={plain}", *words, "benchmark.chat_template=true")
    assert code == 2
    assert err.splitlines()[0] == "error: plain has no chat template"


def test_a_sweeps_scores_stand_beside_each_checkpoint_and_in_the_report(dil_here, small_run, tmp_path: Path):
    code, _, err = dil_here("sweep", *small_run, "loss=ukl,dpo", "optim.epochs=1")
    assert code == 0, err
    (sweep,) = (tmp_path / "outputs" / "sweeps").iterdir()
    code, out, err = dil_here("eval", f"checkpoint={sweep}", *ONE_TASK, FROM_ROOT)
    assert code == 0, err
    assert out.count("loading the questions") == 1
    table = [line.split("|") for line in out.splitlines() if "+-" in line and "|" in line]
    assert sorted(row[1].strip() for row in table) == ["dpo", "ukl"]
    code, _, err = dil_here("report", str(sweep), "--format", "csv", "--out", "report")
    assert code == 0, err
    assert f"{TASK},acc_norm,ukl,mean,3," in (tmp_path / "report" / "tables" / "evaluations.csv").read_text()


@pytest.mark.parametrize("drifted", ["template", "tokenizer"])
def test_what_is_not_the_runs_any_more_is_refused(drifted, dil_here, evaluate, small_run, tmp_path: Path):
    code, _, err = dil_here("train", *small_run, "optim.epochs=0.2")
    assert code == 0, err
    (checkpoint,) = tmp_path.glob("outputs/*/checkpoints/*")
    if drifted == "template":
        file = checkpoint / "chat_template.jinja"
        file.write_text("Be brief. " + file.read_text())
    else:
        file = checkpoint.parents[1] / "manifest.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | {"tokenizer_sha256": "0" * 64}))
    words = (f"checkpoint={checkpoint}", *ONE_TASK, FROM_ROOT, "benchmark.limit=1")
    code, _, err = dil_here("eval", *words)
    assert code == 2
    assert err.startswith(f"error: the {drifted} of {checkpoint.parents[1].name} {checkpoint.name} is not what its run")
    assert f"accept=[{drifted}]" in err.splitlines()[2]
    assert not (checkpoint / "eval").exists()
    assert evaluate(*words, f"accept=[{drifted}]")["accepted"] == [drifted]
    if drifted == "template":
        assert evaluate(*words, "benchmark.chat_template=false")["accepted"] == [], "nothing depends on it"


ERRORS = {
    "unknown task": (
        ["benchmark=task", "benchmark.task=helaswag"],
        [f"error: lm-eval {lm_eval.__version__} has no task 'helaswag'; did you mean hellaswag?",
         "where: benchmark.task=helaswag", "fix:   benchmark.task=hellaswag"],
    ),
    "unknown benchmark": (
        ["benchmark=piqa"],
        [f"error: no 'piqa' in benchmark; it has {', '.join(BENCHMARKS)}",
         "where: dil eval benchmark=piqa",
         "fix:   benchmark=task benchmark.task=piqa, if lm-eval has a task of this name"],
    ),
    "nothing like it": (
        ["benchmark=task", "benchmark.task=nope"],
        [f"error: lm-eval {lm_eval.__version__} has no task 'nope'", "where: benchmark.task=nope",
         "fix:   lm-eval ls tasks lists them"],
    ),
    "no root": (
        ["benchmark=gsm8k", "benchmark.root=nowhere"],
        ["error: there is no folder nowhere", "where: benchmark.root=nowhere",
         "fix:   dil eval --stage nowhere benchmark=gsm8k says what to download there"],
    ),
    "one set is missing": (
        ["benchmark=arc", FROM_ROOT],
        ["error: the data root has no allenai/ai2_arc", f"where: {FROM_ROOT}",
         f"fix:   hf download allenai/ai2_arc --repo-type dataset --local-dir {ROOT}/allenai/ai2_arc"],
    ),
    "several are": (
        ["benchmark=paper", FROM_ROOT],
        [f"error: 4 of 6 data sets are not in {ROOT}: TIGER-Lab/MMLU-Pro, TAUR-Lab/MuSR, "
         "DigitalLearningGmbH/MATH-lighteval, allenai/ai2_arc", f"where: {FROM_ROOT}",
         f"fix:   dil eval --stage {ROOT} benchmark=paper says how to get them"],
    ),
    "no network": (
        ["benchmark=task", "benchmark.task=hellaswag"],
        ["error: the data of hellaswag (Rowan/hellaswag) is not here and the hub cannot be reached (offline)",
         "where: benchmark.root=null",
         "fix:   dil eval --stage DIR benchmark=task benchmark.task=hellaswag, then benchmark.root=DIR"],
    ),
    "no task": (
        ["benchmark=task"],
        ["error: benchmark.task must be set", "where: benchmark.task", "fix:   benchmark.task=hellaswag"],
    ),
    "shots": (
        ["benchmark=bbh", FROM_ROOT, "benchmark.shots=4"],
        [f"error: {TASK} has 3 examples to put in a prompt, 4 are wanted", "where: benchmark.shots",
         "fix:   benchmark.shots=3"],
    ),
    "metric": (
        ["benchmark=arc", "benchmark.tasks.arc.task=gsm8k", FROM_ROOT, "benchmark.tasks.arc.shots=1"],
        ["error: gsm8k has no metric acc_norm; it has exact_match,flexible-extract, exact_match,strict-match",
         "where: benchmark.tasks.arc.metrics", "fix:   metrics: [exact_match,flexible-extract]"],
    ),
    "vllm": (
        ["benchmark=gsm8k", FROM_ROOT, "benchmark.backend=vllm"],
        ["error: the backend vllm needs vLLM, which is not installed", "where: benchmark.backend=vllm",
         "fix:   pip install vllm (a GPU is needed), or benchmark.backend=hf"],
    ),
    "vllm's": (
        ["benchmark=gsm8k", "benchmark.tensor_parallel=2"],
        ["error: benchmark.tensor_parallel is 2, it must stay 1 unless benchmark.backend=vllm",
         "where: benchmark.tensor_parallel", "fix:   benchmark.tensor_parallel=1"],
    ),
    "pairs": (
        ["benchmark=gsm8k", "data=hh"],
        ["error: data is of benchmark=likelihood, this one does not read it", "where: data=Anthropic/hh-rlhf",
         "fix:   leave data out"],
    ),
    "lengths": (
        ["benchmark=gsm8k", "model.max_length=2048"],
        ["error: model.max_length is of benchmark=likelihood, this one does not read it",
         "where: model.max_length=2048", "fix:   benchmark.max_length=..."],
    ),
    "limit": (
        ["benchmark=gsm8k", "benchmark.limit=0"],
        ["error: benchmark.limit is 0, it must be above 0 or null", "where: benchmark.limit",
         "fix:   benchmark.limit=null"],
    ),
    "accept": (
        ["benchmark=gsm8k", "accept=[template,data]"],
        ["error: accept is of benchmark=likelihood, this one does not read it", "where: accept=[data]",
         "fix:   leave accept out"],
    ),
    "batch": (
        ["benchmark=gsm8k", "benchmark.batch_size=all"],
        ["error: benchmark.batch_size is all, it must be above 0, or auto", "where: benchmark.batch_size",
         "fix:   benchmark.batch_size=8"],
    ),
    "stage": (
        ["--stage", "folder"],
        ["error: benchmark is likelihood, it must be one that needs downloads where --stage is given",
         "where: benchmark", "fix:   benchmark=paper"],
    ),
}  # fmt: skip


SLOW = ("unknown task", "nothing like it")
"""For these lm-eval reads the index of all its tasks."""


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] if name in SLOW else []) for name in ERRORS]
)
def test_errors_have_three_lines_and_these_words(name, dil_here, model_folder: Path):
    words, said = ERRORS[name]
    code, _, err = dil_here("eval", f"checkpoint={model_folder}", *words)
    assert code == 2
    assert err.strip().splitlines() == said


def test_a_task_whose_data_is_damaged(dil_here, model_folder: Path, root: Path):
    (root / "openai" / "gsm8k" / "main" / "test.jsonl").write_text('{"question": "half a li')
    code, _, err = dil_here("eval", f"checkpoint={model_folder}", "benchmark=gsm8k", f"benchmark.root={root}")
    assert code == 2
    assert err.startswith("error: the data of gsm8k (openai/gsm8k) cannot be read: JSON parse error: ")
    assert len(err.strip().splitlines()) == 3


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        ("missing", "it lacks main/test.jsonl"), ("empty", "main/test.jsonl is empty"),
        ("all missing", "it holds no data files"),
    ],
)  # fmt: skip
def test_a_task_whose_data_is_there_in_part(damage, said, dil_here, model_folder: Path, root: Path):
    file = root / "openai" / "gsm8k" / "main" / "test.jsonl"
    if damage == "empty":
        file.write_text("")
    elif damage == "missing":
        file.unlink()
    else:
        shutil.rmtree(root / "openai" / "gsm8k")
        (root / "openai" / "gsm8k").mkdir()
    code, _, err = dil_here("eval", f"checkpoint={model_folder}", "benchmark=gsm8k", f"benchmark.root={root}")
    assert code == 2
    assert err.strip().splitlines() == [
        f"error: the data set openai/gsm8k is not whole: {said}", f"where: benchmark.root={root}",
        f"fix:   hf download openai/gsm8k --repo-type dataset --local-dir {root}/openai/gsm8k",
    ]  # fmt: skip


def test_without_the_extra(dil_here, model_folder: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    code, _, err = dil_here("eval", f"checkpoint={model_folder}", "benchmark=gsm8k", FROM_ROOT)
    assert code == 2
    assert err.strip().splitlines()[::2] == [
        "error: the benchmarks need a package that is not installed: lm_eval", "fix:   pip install 'dil[eval]'",
    ]  # fmt: skip


def test_stage_names_every_data_set_and_the_model(dil_here, tmp_path: Path):
    code, out, err = dil_here("eval", "--stage", "my folder", "benchmark=paper", "checkpoint=org/model")
    assert code == 0, err
    downloads = [line.split() for line in out.splitlines() if line.startswith("hf download")]
    sets = {words[2] for words in downloads if "dataset" in words}
    assert sets == HUB_IDS
    assert [words[2] for words in downloads if "dataset" not in words] == ["org/model"]
    # Its lines are shell: a program in the place of hf sees where everything goes.
    (tmp_path / "hf").write_text('#!/bin/sh\nfor word; do last="$word"; done\nmkdir -p "$last"\n')
    (tmp_path / "hf").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}"}
    subprocess.run(["sh", "-c", out], cwd=tmp_path, env=env, check=True)
    assert all((tmp_path / "my folder" / name).is_dir() for name in [*HUB_IDS, "org/model"])
    code, out, _ = dil_here("eval", "--stage", "my folder", "benchmark=paper")
    assert code == 0
    assert not [line for line in out.splitlines() if line.startswith("hf")], "all of it is there now"


def test_stage_of_one_task(dil_here):
    code, out, _ = dil_here("eval", "--stage=DIR", "benchmark=task", "benchmark.task=hellaswag")
    assert code == 0
    assert "hf download Rowan/hellaswag --repo-type dataset --local-dir DIR/Rowan/hellaswag" in out


@pytest.mark.skipif("DIL_BENCHMARKS" not in os.environ, reason="DIL_BENCHMARKS names no folder with all data sets")
def test_the_papers_six_benchmarks(dil_here, tmp_path: Path):
    root = f"benchmark.root={os.environ['DIL_BENCHMARKS']}"
    code, out, err = dil_here("eval", "checkpoint=bundled:tiny", "benchmark=paper", root, "benchmark.limit=2")
    assert code == 0, err
    records = [json.loads(path.read_text()) for path in tmp_path.glob("outputs/eval/*/eval/*.json")]
    shots = {record["benchmark"].removesuffix("-limit2"): record["shots"] for record in records}
    assert shots == {"mmlu_pro": 5, "bbh": 3, "musr": 0, "math": 4, "gsm8k": 5, "arc": 25}
    headline = {record["benchmark"].removesuffix("-limit2"): next(iter(record["metrics"])) for record in records}
    assert headline == {
        "mmlu_pro": "acc", "bbh": "acc_norm", "musr": "acc_norm", "math": "exact_match",
        "gsm8k": "exact_match,strict-match", "arc": "acc_norm",
    }  # fmt: skip
    assert {record["benchmark"]: len(record["tasks"]) for record in records}["math-limit2"] == 7
    assert set().union(*(record["data"] for record in records)) == HUB_IDS
    assert "exact_match_original" not in out


def test_dil_cache_lists_and_removes_answers_and_questions(evaluate, dil_here, model_folder: Path, tmp_path: Path):
    evaluate(f"checkpoint={model_folder}", *ONE_TASK, FROM_ROOT, "benchmark.limit=1")
    code, out, _ = dil_here("cache", "list")
    assert code == 0
    assert "answers of a model" in out
    assert "questions of a data set" in out
    (answers,) = (tmp_path / "outputs" / "cache" / "answers").iterdir()
    code, out, _ = dil_here("cache", "prune", answers.name[:8])
    assert code == 0
    assert not answers.exists()
    code, out, _ = dil_here("cache", "prune", "--all")
    assert code == 0
    assert not [path for path in (tmp_path / "outputs" / "cache" / "questions").rglob("*") if path.is_file()]
    assert evaluate(f"checkpoint={model_folder}", *ONE_TASK, FROM_ROOT, "benchmark.limit=1")["answers"]["known"] == 0
