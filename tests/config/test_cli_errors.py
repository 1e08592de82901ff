"""Wrong input gives what, where, fix: exact texts, exit code 2, nothing written."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

CASES = {
    "unknown command": (["tran"], "no command 'tran'; did you mean train?", "dil tran", "dil --help"),
    "unknown option": (
        ["train", "--multrun"], "no option --multrun; did you mean --multirun?", "dil train --multrun",
        "dil train --help",
    ),
    "typo in a choice": (
        ["train", "loss=ukk"], "no 'ukk' in loss; did you mean ukl?", "dil train loss=ukk", "loss=ukl",
    ),
    "typo in a preset": (
        ["train", "preset=simpo_mistral"], "no 'simpo_mistral' in preset; did you mean simpo_mistral7b?",
        "dil train preset=simpo_mistral", "preset=simpo_mistral7b",
    ),
    "a sum of nothing": (
        ["train", "loss=combine"], "loss=combine adds losses, and loss.terms names none", "loss.terms",
        "loss.terms.dpo=0.9 loss.terms.sft=0.1",
    ),
    "typo in a sum": (
        ["train", "loss=combine", "loss.terms.dpo=0.9", "loss.terms.stf=0.1"],
        "no loss is named 'stf'; did you mean sft?", "loss.terms.stf", "loss.terms.sft",
    ),
    "typo in a term": (
        ["train", "loss=combine", "loss.terms.dpo.weight=0.9", "loss.terms.dpo.betta=1"],
        "no key 'loss.terms.dpo.betta' here; did you mean beta?", "loss.terms.dpo.betta", "dil losses dpo",
    ),
    "code allowed and not there": (
        ["train", "allow_custom=true"], "allow_custom=true allows nothing, there is no Python file to run",
        "DIR/loss/*.py of --config-dir DIR",
        "--config-dir ./myconf, which holds loss/mine.py; or leave allow_custom out",
    ),
    "typo in a group": (["train", "lss=ukl"], "no key 'lss' here; did you mean loss?", "dil train lss=ukl", "loss=ukl"),
    "typo in a key": (
        ["train", "optim.lrr=1"], "no key 'optim.lrr' here; did you mean optim.lr?", "dil train optim.lrr=1",
        "optim.lr=1",
    ),
    "key of another group": (
        ["train", "loss.lr=1"], "no key 'loss.lr' here; did you mean optim.lr?", "dil train loss.lr=1", "optim.lr=1",
    ),
    "key of another loss": (
        ["train", "loss.beta=1"],
        "no key 'loss.beta' here; loss has reduction, exp_cap, reference_samples; "
        "beta belongs to dpo, cdpo, robust_dpo and 15 others",
        "dil train loss.beta=1", "loss=dpo loss.beta=1",
    ),
    "key forced in": (
        ["train", "+optim.lrr=1"], "no key 'optim.lrr' here; did you mean optim.lr?", "dil train optim.lrr=1",
        "optim.lr=1",
    ),
    "wrong type": (
        ["train", "optim.lr=fast"], "optim.lr is wrong: 'fast' is not a number", "dil train optim.lr=fast",
        "dil train --cfg job shows its default",
    ),
    "not a choice": (
        ["train", "loss.reduction=max"], "loss.reduction is wrong: 'max' is not one of mean, sum",
        "dil train loss.reduction=max", "dil train --cfg job shows its default",
    ),
    "out of range": (
        ["train", "optim.lr=-1"], "optim.lr is -1.0, it must be a finite number above 0", "optim.lr",
        "optim.lr=${model.lr}",
    ),
    "does not apply": (
        ["train", "loss=simpo", "loss.reduction=sum"], "loss.reduction is sum, simpo is defined for mean only",
        "loss.reduction", "loss.reduction=mean",
    ),
    "missing value": (["train", "data=local"], "data.path must be set", "data.path", "data.path=..."),
    "a list of choices": (
        ["train", "loss=[dpo,ukl]"], "loss takes one choice", "dil train loss=[dpo,ukl]",
        "loss=lsif, or with -m loss=a,b for several runs",
    ),
    "no choice": (
        ["train", "optim=null"], "optim takes one choice", "dil train optim=null",
        "optim=adamw, or with -m optim=a,b for several runs",
    ),
    "several choices without -m": (
        ["train", "loss=dpo,ukl"], "several values make several runs, which -m asks for", "dil train loss=dpo,ukl",
        "dil train -m loss=dpo,ukl",
    ),
    "a key taken out": (
        ["train", "~optim.lr"], "nothing can be taken out of a config, only changed", "dil train ~optim.lr",
        "optim.lr=...",
    ),
    "no value for an option": (
        ["train", "--cfg", "banana"], "--cfg takes job, hydra, all", "dil train --cfg banana", "--cfg job",
    ),
    "a key without a name": (
        ["train", "=5"], "'=5' is not of the form key=value", "dil train =5",
        "key=value; quote what the shell or Hydra would split: 'data.path=\"my file.jsonl\"'",
    ),
    "the last of two values": (
        ["train", "optim.batch_size=8", "optim.batch_size=1.5"],
        "optim.batch_size is wrong: '1.5' is not a whole number", "dil train optim.batch_size=1.5",
        "dil train --cfg job shows its default",
    ),
    "output that is a file": (
        ["train", "output=/dev/null/x"], "no run folder can be made: /dev/null is a file", "output=/dev/null/x",
        "output=outputs",
    ),
    "run folder that is a file": (
        ["train", "hydra.run.dir=/dev/null/x"], "[Errno 20] Not a directory: '/dev/null/x'", "dil train",
        "dil train --help",
    ),
    "not an override": (
        ["train", "ukl"], "'ukl' is not of the form key=value", "dil train ukl",
        "key=value; quote what the shell or Hydra would split: 'data.path=\"my file.jsonl\"'",
    ),
    "folder without a name": (
        ["train", "name=a/b"], "name is 'a/b', it must be a folder name without a slash", "name", "name=my-run",
    ),
    "no such file": (
        ["train", "data=local", "data.path=no.jsonl"], "there is no file or folder no.jsonl", "data.path",
        "data.path=/path/to/pairs.jsonl",
    ),
    "no such bundled model": (
        ["train", "model=local", "model.path=bundled:big"], "no bundled model 'big'", "model.path=bundled:big",
        "bundled models: tiny",
    ),
    "no such model folder": (
        ["train", "model=local", "model.path=./nowhere"], "there is no model folder ./nowhere", "model.path=./nowhere",
        "model.path=/path/to/folder or a hub id org/name",
    ),
    "hub model offline": (
        ["train", "model=mistral7b"],
        "the model alignment-handbook/zephyr-7b-sft-full is not on this machine "
        "and the hub cannot be reached (offline)",
        "model.path=alignment-handbook/zephyr-7b-sft-full",
        "download it where there is a network, then model.path=/path/to/folder",
    ),
    "hub data offline": (
        ["train", "data=ultrafeedback"],
        "the data set HuggingFaceH4/ultrafeedback_binarized is not on this machine "
        "and the hub cannot be reached (offline)",
        "data.path=HuggingFaceH4/ultrafeedback_binarized",
        "download it where there is a network, then data.path=/path/to/folder",
    ),
    "no such device": (
        ["train", "device=cuda"], "this machine has no cuda device", "device=cuda", "device=auto",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_three_exact_lines(case, dil_here, tmp_path: Path):
    argv, what, where, fix = CASES[case]
    if "device=cuda" in argv:
        torch = pytest.importorskip("torch")
        if torch.cuda.is_available():
            pytest.skip("there is one")
    code, _, err = dil_here(*argv)
    assert err.splitlines() == [f"error: {what}", f"where: {where}", f"fix:   {fix}"]
    assert code == 2
    assert not list(tmp_path.iterdir()), "something was written"


def write(path: Path, *lines: str) -> str:
    path.write_text("\n".join(lines) + "\n")
    return f"data.path={path.name}"


GOOD = json.dumps({"prompt": "a", "chosen": "b", "rejected": "c"})


def test_missing_column_names_what_is_there(dil_here, tmp_path: Path):
    data = write(tmp_path / "d.jsonl", json.dumps({"prompt": "a", "chosen": "b"}))
    code, _, err = dil_here("train", "data=local", data)
    assert code == 2
    assert len(err.splitlines()) == 3
    assert "chosen, prompt" in err or "prompt, chosen" in err


def test_unparsable_row_is_named(dil_here, tmp_path: Path):
    data = write(tmp_path / "d.jsonl", GOOD, GOOD, '{"prompt": "a", "chosen":')
    code, _, err = dil_here("train", "data=local", data)
    assert code == 2
    assert "d.jsonl, row 3" in err
    assert len(err.splitlines()) == 3


def test_no_usable_pair(dil_here, tmp_path: Path):
    same = json.dumps({"prompt": "a", "chosen": "b", "rejected": "b"})
    code, _, err = dil_here("train", "data=local", write(tmp_path / "d.jsonl", same, same))
    assert code == 2
    assert err.splitlines()[0] == (
        "error: the data set has no usable pair: train: 2 rows, 0 usable, 2 skipped (2 identical responses)"
    )


def test_model_folder_without_tokenizer(dil_here, tmp_path: Path, model_folder: Path):
    bare = tmp_path / "bare"
    bare.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(model_folder / name, bare)
    code, _, err = dil_here("train", "model=local", "model.path=./bare")
    assert code == 2
    assert err.splitlines() == [
        "error: the model folder has no tokenizer",
        "where: model.path=./bare",
        "fix:   save the tokenizer beside the weights: tokenizer.save_pretrained(folder)",
    ]


def test_too_long_for_the_model(dil_here, model_folder: Path):
    lengths = ["data.max_length=4096", "data.max_prompt_length=100"]
    code, _, err = dil_here("train", "model=local", f"model.path={model_folder}", *lengths)
    assert code == 2
    assert err.splitlines()[0] == "error: data.max_length is 4096, the model has 512 positions"
    assert err.splitlines()[2] == "fix:   data.max_length=512"
    argv = ["data.max_length=4096", "data.max_prompt_length=600"]
    code, _, err = dil_here("train", "model=local", f"model.path={model_folder}", *argv)
    assert err.splitlines()[2] == "fix:   data.max_length=512 data.max_prompt_length=256"


def test_positions_that_depend_on_the_longest_row(dil_here, model_folder: Path, tmp_path: Path):
    folder = tmp_path / "longrope"
    shutil.copytree(model_folder, folder)
    config = json.loads((folder / "config.json").read_text())
    factors = [1.0] * 8
    config["rope_parameters"] = {
        "rope_type": "longrope", "rope_theta": 1e4, "short_factor": factors, "long_factor": [8 * x for x in factors],
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    lengths = ["data.max_length=100", "data.max_prompt_length=64"]
    code, _, err = dil_here("train", "model=local", f"model.path={folder}", *lengths)
    assert code == 2
    assert err.splitlines() == [
        "error: in a row of more than 64 tokens the model numbers positions in another way (longrope), so a pair's "
        "log-probs would depend on its neighbours",
        "where: data.max_length",
        "fix:   data.max_length=64 data.max_prompt_length=32",
    ]


def test_an_attention_that_cannot_be_had(dil_here, model_folder: Path):
    argv = ["model=local", f"model.path={model_folder}", "model.attention=flash_attention_2"]
    code, _, err = dil_here("train", *argv)
    assert code == 2
    assert err.splitlines() == [
        f"error: {model_folder} cannot have the attention flash_attention_2 here",
        "where: model.attention",
        "fix:   model.attention=packed",
    ]


def test_traceback_on_request(dil, tmp_path: Path):
    done = dil("train", "loss=ukk", DIL_TRACEBACK="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_options_may_stand_anywhere(dil_here, tmp_path: Path):
    mine = tmp_path / "conf" / "loss"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text("defaults:\n  - /schema/loss/dpo@_here_\nbeta: 0.02\n")
    code, out, _ = dil_here("train", "seed=3", "--config-dir", "conf", "loss=gentle", "--cfg=job", "optim.lr=1")
    assert code == 0
    assert "beta: 0.02" in out
    assert "seed: 3" in out


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["config.json", "model.safetensors", "nan", "encoder"])
def test_damaged_models_end_in_three_lines(damage, dil, tmp_path: Path, model_folder: Path):
    """In a process of its own: what transformers itself prints must not come on top."""
    folder = tmp_path / "m"
    shutil.copytree(model_folder, folder)
    if damage == "nan":
        from safetensors.torch import load_file, save_file

        weights = load_file(folder / "model.safetensors")
        weights["model.norm.weight"][0] = float("nan")
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
        expected = "the weights hold NaN or infinity (model.norm.weight)"
    elif damage == "encoder":
        config = {"model_type": "bert", "hidden_size": 32, "num_attention_heads": 2, "num_hidden_layers": 1}
        (folder / "config.json").write_text(json.dumps(config))
        expected = "bert is an encoder, dil trains causal language models"
    else:
        (folder / damage).write_bytes(b"{broken")
        what = "config.json" if damage == "config.json" else "weights"
        expected = f"the {what} of {folder} cannot be loaded"
    done = dil("train", "model=local", f"model.path={folder}", "data.max_length=128", "data.max_prompt_length=64")
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 3, done.stderr
    assert done.stderr.startswith(f"error: {expected}")
