"""Every YAML composes, and what it composes to is what the documentation says."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from dil_cli.config.compose import compose
from dil_cli.config.help import command_help, describe
from dil_cli.config.identity import describe as describe_config
from dil_cli.config.identity import run_hash, to_yaml
from dil_cli.config.paths import conf_dir
from dil_cli.losses import LOSSES

GROUPS = ["model", "data", "loss", "optim", "tracker", "preset", "experiment"]
CHOICES = [(group, path.stem) for group in GROUPS for path in sorted((conf_dir() / group).glob("*.yaml"))]


def overrides(group: str, choice: str) -> list[str]:
    needed = {
        "local": [f"{group}.path=somewhere"],
        "tiny_sft": ["model.path=somewhere"],
        "small_sft": ["model.path=x", "data.path=x"],
        "gsm8k": ["loss=sft"],
    }
    if group == "loss" and choice == "combine":
        needed["combine"] = ["loss.terms.dpo=0.9", "loss.terms.sft=0.1"]
    if choice == "dpo_pythia28_tldr":
        return ["loss=dpo", "model=pythia28", "data=tldr", f"preset={choice}"]
    if group == "preset" and choice != "none":
        model = choice.rpartition("_")[2] if "llama" not in choice else "llama3_8b"
        return [f"loss={choice.removesuffix('_' + model)}", f"model={model}"]
    return [f"{group}={choice}", *needed.get(choice, [])]


def test_there_is_something_to_compose():
    assert len(CHOICES) >= 60


@pytest.mark.parametrize(("group", "choice"), CHOICES, ids=lambda name: name)
def test_every_yaml_composes_and_says_what_it_is(group, choice):
    config = compose("train", overrides(group, choice))
    assert choice in config.name or group in {"optim", "tracker", "experiment", "preset"}
    assert bool(config.preset) == (group == "preset" and choice != "none")
    assert 10 < len(describe(conf_dir() / group / f"{choice}.yaml")) < 110


@pytest.mark.parametrize("model", [name for group, name in CHOICES if group == "model"])
def test_the_run_takes_the_scale_of_its_model(model):
    config = compose("train", overrides("model", model))
    assert (config.optim.lr, config.optim.batch_size) == (config.model.lr, config.model.batch_size)
    assert config.data.max_length == config.model.max_length
    assert config.data.max_prompt_length == config.model.max_prompt_length


def test_paper_command_composes_to_the_papers_setting():
    config = compose("train", ["loss=ukl", "model=mistral7b", "data=ultrafeedback"])
    assert config.model.path == "alignment-handbook/zephyr-7b-sft-full"
    assert config.data.path == "HuggingFaceH4/ultrafeedback_binarized"
    assert (config.data.train_split, config.data.heldout_split) == ("train_prefs", "test_prefs")
    assert (config.data.max_length, config.data.max_prompt_length) == (1024, 512)
    assert (config.optim.batch_size, config.optim.epochs, config.optim.warmup) == (128, 1, 0.1)
    assert type(config.loss) is LOSSES["ukl"]


PRESETS = {
    "dpo mistral7b": (5e-7, {"beta": 0.01}), "dpo llama3_8b": (5e-7, {"beta": 0.01}),
    "simpo mistral7b": (3e-7, {"beta": 2.0, "gamma": 1.6}), "simpo llama3_8b": (6e-7, {"beta": 2.0, "gamma": 1.0}),
    "simper mistral7b": (3e-7, {}), "simper llama3_8b": (6e-7, {}),
    "cal_dpo mistral7b": (5e-7, {"beta": 1e-3}), "cal_dpo llama3_8b": (5e-7, {"beta": 1e-3}),
    "dpo pythia28": (5e-7, {"beta": 0.1}),
}  # fmt: skip
"""Loss and model -> learning rate and settings that were published for them."""


@pytest.mark.parametrize("key", PRESETS)
def test_a_loss_takes_its_published_values_on_its_model(key):
    loss, model = key.split()
    lr, values = PRESETS[key]
    config = compose("train", [f"loss={loss}", f"model={model}"])
    assert config.optim.lr == config.model.lr == lr
    assert {name: getattr(config.loss, name) for name in values} == values
    assert re.search(r"arXiv|GitHub", config.preset)
    assert config.optim.batch_size == (64 if model == "pythia28" else 128)
    bare = compose("train", [f"loss={loss}", f"model={model}", "preset=none"])
    assert (bare.preset, bare.loss) == (None, LOSSES[loss]())
    own = compose(
        "train", [f"loss={loss}", f"model={model}", "optim.lr=1e-6", *(f"loss.{name}=0.5" for name in values)]
    )
    assert (own.optim.lr, [getattr(own.loss, name) for name in values]) == (1e-6, [0.5] * len(values))


def test_every_preset_is_listed_above_and_others_have_none():
    # The last is chosen by experiment=paper_pythia_tldr alone (test_experiments.py).
    listed = {key.replace(" ", "_") for key in PRESETS} | {"none", "dpo_pythia28_tldr"}
    assert {choice for group, choice in CHOICES if group == "preset"} == listed
    assert compose("train", ["loss=simpo"]).preset is None
    assert compose("train", ["experiment=tiny_sft", "model.path=x"]).preset is None


def test_a_preset_is_part_of_a_run_by_its_values_only():
    with_preset = compose("train", ["loss=simper", "model=mistral7b"])
    by_hand = compose("train", ["loss=simper", "model=mistral7b", "preset=none", "model.lr=3e-7"])
    assert run_hash(with_preset, "") == run_hash(by_hand, "")


def test_every_loss_has_a_yaml_and_every_yaml_a_loss():
    assert {name for group, name in CHOICES if group == "loss"} == set(LOSSES)


def test_a_user_may_write_experiment_with_or_without_plus(dil_here):
    words = ("experiment=tiny_sft", "+experiment=tiny_sft")
    texts = [dil_here("train", word, "model.path=x", "--cfg", "job")[1] for word in words]
    assert texts[0] == texts[1]
    assert "kind: muon" in texts[0]


def test_cfg_job_prints_and_writes_nothing(dil_here, tmp_path: Path):
    code, out, _ = dil_here("train", "loss=ukl", "model=mistral7b", "data=ultrafeedback", "--cfg", "job")
    assert code == 0
    assert "alignment-handbook/zephyr-7b-sft-full" in out
    assert not list(tmp_path.iterdir())


def test_help_lists_every_group_with_a_line_each():
    text = command_help("train", "summary", [])
    for group, choice in CHOICES:
        assert f"{group}=" in text
        assert describe(conf_dir() / group / f"{choice}.yaml") in text
    assert "* lsif" in text
    assert all(len(line) <= 120 for line in text.splitlines())


def test_config_dir_adds_a_users_group_and_shows_it_in_help(dil_here, tmp_path: Path):
    mine = tmp_path / "conf" / "loss"
    mine.mkdir(parents=True)
    (mine / "gentle.yaml").write_text("# DPO with a small beta\ndefaults:\n  - /schema/loss/dpo@_here_\nbeta: 0.02\n")
    folder = str(tmp_path / "conf")
    _, out, _ = dil_here("train", "--config-dir", folder, "--help")
    assert re.search(r"gentle +DPO with a small beta", out)
    code, out, _ = dil_here("train", "--config-dir", folder, "loss=gentle", "--cfg", "job")
    assert code == 0
    assert "beta: 0.02" in out


USERS_MISTAKES = {
    "key": ("dpo", "betta: 0.02", "no key 'loss.betta' here; did you mean loss.beta?", "loss/mine.yaml loss.betta"),
    "type": ("dpo", "beta: low", "loss.beta is wrong: 'low' is not a number", "loss/mine.yaml loss.beta"),
    "schema": (
        "simpoo",
        "beta: 1",
        "no schema /schema/loss/simpoo; did you mean /schema/loss/simpo?",
        "loss/mine.yaml",
    ),
    "yaml": ("dpo", "beta: [1", "the YAML cannot be read: expected ',' or ']', but got '<stream end>'", "line 4"),
}


@pytest.mark.parametrize("mistake", USERS_MISTAKES)
def test_mistakes_in_a_users_yaml_name_the_file(mistake, dil_here, tmp_path: Path):
    schema, line, what, where = USERS_MISTAKES[mistake]
    mine = tmp_path / "conf" / "loss"
    mine.mkdir(parents=True)
    (mine / "mine.yaml").write_text(f"defaults:\n  - /schema/loss/{schema}@_here_\n{line}\n")
    code, _, err = dil_here("train", "--config-dir", str(tmp_path / "conf"), "loss=mine")
    first, second, third = err.splitlines()
    assert first == f"error: {what}"
    assert second.startswith("where: ")
    assert second.endswith(where)
    assert third.startswith("fix:   ")
    assert code == 2


def test_hash_is_the_config_and_the_data_and_nothing_else():
    base = run_hash(compose("train", []), "data")
    same = ["output=elsewhere", "tracker=none", "device=cpu", "optim.token_budget=5", "model.token_budget=5"]
    for override in same:
        assert run_hash(compose("train", [override]), "data") == base, override
    for override in ("seed=1", "loss=bce", "loss.reduction=sum", "optim.lr=1e-4", "data.limit=10", "probe.pairs=7"):
        assert run_hash(compose("train", [override]), "data") != base, override
    assert run_hash(compose("train", []), "other data") != base


def test_losses_with_equal_fields_are_different_runs():
    name = "name=one"
    hashes = {run_hash(compose("train", [name, f"loss={loss}"]), "") for loss in ("lsif", "ukl", "bce", "sft")}
    assert len(hashes) == 4


def test_yaml_round_trip():
    import yaml

    config = compose("train", [])
    assert yaml.safe_load(to_yaml(config)) == describe_config(config)
