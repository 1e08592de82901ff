"""Every experiment: its jobs, their number, their cost, and the same grid on another model."""

from __future__ import annotations

import itertools
import re
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import hydra
import pytest
import yaml
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import flag_override

from dil_cli.config.compose import compose, register_schemas, to_dataclass
from dil_cli.config.help import NESTED, choices, command_help
from dil_cli.config.identity import run_hash, to_yaml
from dil_cli.config.paths import conf_dir
from dil_cli.config.presets import presets_of
from dil_cli.config.schema import TrainConfig
from dil_cli.losses import LOSSES

EXPERIMENTS = choices([conf_dir()], "experiment")
QUICK = [name for name in EXPERIMENTS if name.startswith("quick/")]
PAPER = [name for name in EXPERIMENTS if name.startswith("paper_")]
GRIDS = [name for name in EXPERIMENTS if not name.endswith("_sft") and not name.startswith("results/")]
LARGE = {"baselines", "length_stability"}
FULL = [name for name in GRIDS if name not in QUICK]

PAIRS = {"gsm8k_pairs": (1693, 370, 342), "hh_sample": (319, 80, 291)}
"""Bundled pairs to train on and held out, and tokens of a mean one: prompt once and both responses."""
JOINED = {128: 195, 256: 391 * 1.02, 512: 799 * 1.18, 1024: 1620 * 1.48, 2048: 3280 * 1.86}
"""Tokens of a mean GSM8K pair joined and cut to a length, times what one takes longer than in a short pair."""
TRAINED, MEASURED = 18 * 342, 55 * 342
"""Tokens a second on 2 cores, tiny model."""
OF_A_RUN, OF_THE_START = 2, 6
"""Seconds."""


class Grid(NamedTuple):
    """What an experiment sweeps, as Hydra's own parser has it: key to its values, `key=value` each.

    `base` is the run that the experiment makes without its grid.
    """

    base: TrainConfig
    sweeper: Any
    axes: dict[str, list[str]]

    @property
    def jobs(self) -> list[tuple[str, ...]]:
        return list(itertools.product(*self.axes.values()))

    @property
    def corners(self) -> list[tuple[str, ...]]:
        """As few jobs as have every value of every axis."""
        longest = max(map(len, self.axes.values()))
        return [tuple(values[i % len(values)] for values in self.axes.values()) for i in range(longest)]


@cache
def grid(name: str) -> Grid:
    register_schemas()
    with hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
        composed = hydra.compose("train", [f"experiment={name}"], return_hydra_config=True)
    sweeper = composed.hydra.sweeper.copy()
    axes = {}
    for override in OverridesParser.create().parse_overrides([f"{k}={v}" for k, v in sweeper.params.items()]):
        key = override.get_key_element()
        values = (
            override.sweep_string_iterator() if override.is_sweep_override() else [override.get_value_element_as_str()]
        )
        axes[key] = [f"{key}={value}" for value in values]
    HydraConfig.instance().set_config(composed)
    with flag_override(composed, ["struct", "readonly"], [False, False]):
        del composed["hydra"]
    return Grid(to_dataclass(composed), sweeper, axes)


def comments(name: str) -> list[str]:
    lines = EXPERIMENTS[name].read_text(encoding="utf-8").splitlines()
    assert lines[0] == "# @package _global_"
    return [line.removeprefix("# ") for line in itertools.takewhile(lambda line: line.startswith("# "), lines[1:])]


def seconds(config: TrainConfig, length: int | None, epochs: float) -> tuple[float, float]:
    """Of one run without its reference, and of the reference, which runs share."""
    train, heldout, tokens = PAIRS[config.data.path]
    tokens = JOINED.get(length, tokens)
    train, probe = min(train, config.data.limit or train), min(heldout, config.probe.pairs)
    steps = epochs * train * tokens / TRAINED
    return OF_A_RUN + steps + config.probe.times * probe * tokens / MEASURED, (train + probe) * tokens / MEASURED


def cost(name: str) -> float:
    """Seconds of a whole grid; only these keys change what a run costs."""
    base, axes = grid(name).base, grid(name).axes
    lengths = [int(word.partition("=")[2]) for word in axes.get("data.join_to", [])] or [base.data.join_to]
    epochs = [float(word.partition("=")[2]) for word in axes.get("optim.epochs", [])] or [base.optim.epochs]
    total, references = 0.0, 0.0
    for length, passes in itertools.product(lengths, epochs):
        run, reference = seconds(base, length, passes)
        total += run * len(grid(name).jobs) / (len(lengths) * len(epochs))
        references += reference * len(axes.get("precision", [""])) / len(epochs)
    return total + references + OF_THE_START


@pytest.mark.slow
def test_there_is_something_to_run():
    assert len(FULL) == len(QUICK) == 13
    assert [f"quick/{name}" for name in FULL] == QUICK
    assert sum(len(grid(name).jobs) for name in GRIDS) > 500


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in LARGE else name for name in GRIDS]
)
def test_every_value_of_a_grid_makes_a_run_and_its_number_is_as_stated(name):
    made = grid(name)
    corners = made.corners if name in FULL else made.jobs[-1:]
    configs = [compose("train", [f"experiment={name}", *words]) for words in corners]
    assert len({run_hash(config, "") for config in configs}) == len(corners)
    (number,) = re.findall(r"(\d+) runs\b", " ".join(comments(name)[:2]))
    assert len(made.jobs) == len(set(made.jobs)) == int(number)
    assert made.sweeper.question.endswith("?")
    assert any(made.sweeper.baseline in values for values in made.axes.values())
    assert made.sweeper.x is None or len(made.axes[made.sweeper.x]) >= 3


def test_each_loss_of_a_grid_has_each_reduction_of_it():
    made = grid("reduction")
    for name in ("length_stability", "quick/length_stability", "quick/reduction"):
        assert set(grid(name).axes["loss"]) <= set(made.axes["loss"])
        assert grid(name).axes["loss.reduction"] == made.axes["loss.reduction"]
    for words in itertools.product(made.axes["loss"], made.axes["loss.reduction"]):
        compose("train", ["experiment=reduction", *words])


@pytest.mark.parametrize("name", GRIDS)
def test_the_stated_cost_follows_from_the_rates(name):
    text = " ".join(comments(name))
    if name in PAPER:
        assert re.search(r"Cost: \d+ x [\d,]+k? pairs x 1 epoch\.", text)
        return
    if name in QUICK:
        stated, unit = re.search(r"([\d.]+) minutes: ", text), 60
        assert cost(name) <= 8 * 60
    else:
        stated, unit = re.search(r"Cost: ([\d.]+) hours on 2 cores \(tiny.*?\); ", text), 3600
    assert float(stated.group(1)) == pytest.approx(cost(name) / unit, abs=0.06)


@pytest.mark.parametrize("name", [name for name in FULL if name not in PAPER])
def test_a_grid_runs_on_another_model_with_nothing_of_tiny_left(name):
    made = grid(name)
    model = yaml.safe_load((conf_dir() / "model" / "mistral7b.yaml").read_text())
    # The losses with published values and one without stand for the others.
    some = ("loss=lsif", "loss=dpo", "loss=simpo", "loss=cal_dpo", "loss=simper")
    corners = [words for words in made.corners if words[0] in some] if name == "baselines" else made.jobs[-1:]
    assert corners
    for words in corners:
        config = compose("train", ["model=mistral7b", "data=ultrafeedback", f"experiment={name}", *words])
        loss = config.loss.name
        of_loss = [float(p.values["model.lr"]) for p in presets_of(loss) if p.model == "mistral7b"]
        factor = next((float(w.partition("=")[2]) for w in words if w.startswith("optim.lr_factor=")), 1.0)
        assert config.optim.lr == config.model.lr == (of_loss or [float(model["lr"])])[0]
        assert config.optim.lr_factor == factor
        assert bool(config.preset) == bool(of_loss)
        assert (config.model.path, config.model.batch_size) == (model["path"], 128)
        assert (config.optim.batch_size, config.optim.token_budget) == (128, model["token_budget"])
        assert config.data.path == "HuggingFaceH4/ultrafeedback_binarized"
        assert config.data.limit in {None, 5 * 128}
        if config.data.join_to is None:
            assert (config.data.max_length, config.data.max_prompt_length) == (1024, 512)
        else:
            assert config.data.max_length == 2 * config.data.max_prompt_length == config.data.join_to
        assert not re.search("tiny|gsm8k|bundled", to_yaml(config))


def test_no_experiment_holds_a_rate_a_batch_size_or_a_path():
    def keys(node: Any) -> set[str]:
        return set(node) | {key for value in node.values() for key in keys(value)} if isinstance(node, dict) else set()

    for name in GRIDS:
        found = keys(yaml.safe_load(EXPERIMENTS[name].read_text()))
        assert not found & {"lr", "muon_lr", "batch_size", "token_budget", "path", "output", "name"}, name


def test_the_papers_settings_stand_in_its_experiments():
    mistral, llama = (compose("train", [f"experiment={name}"]) for name in ("paper_mistral7b", "paper_llama3_8b"))
    for config in (mistral, llama):
        optim = config.optim
        assert (optim.kind.value, optim.batch_size, optim.epochs, optim.warmup) == ("adamw", 128, 1, 0.1)
        assert (optim.schedule.value, config.precision.value, config.seed) == ("cosine", "bf16", 42)
        assert config.data.path == "HuggingFaceH4/ultrafeedback_binarized"
    assert (mistral.data.max_length, mistral.data.max_prompt_length) == (1024, 512)
    assert (llama.data.max_length, llama.data.max_prompt_length) == (2048, 1800)
    factors = [0.6, 1.0, 1.2, 2.0]
    assert [float(word.partition("=")[2]) for word in grid("lr_grid").axes["optim.lr_factor"]] == factors
    assert [mistral.model.lr * factor for factor in factors] == pytest.approx([3e-7, 5e-7, 6e-7, 1e-6])


def test_dpo_on_tldr_has_the_beta_its_authors_took_there():
    for data, beta in (("hh", 0.1), ("tldr", 0.5)):
        config = compose("train", [f"experiment=paper_pythia_{data}", "loss=dpo"])
        assert (config.loss.beta, config.optim.clip, config.optim.batch_size) == (beta, 10, 64)
        assert config.data.path in {"Anthropic/hh-rlhf", "openai/summarize_from_feedback"}
    own = compose("train", ["experiment=paper_pythia_tldr", "loss=dpo", "preset=none"])
    assert (own.preset, own.loss.beta) == (None, 0.1)


@pytest.mark.slow
def test_the_papers_experiments_run_on_tiny_by_command_line():
    for name in PAPER:
        config = compose("train", [f"experiment={name}", "model=tiny", "data=gsm8k_pairs", "loss=dpo"])
        assert (config.model.path, config.data.path, config.preset) == ("bundled:tiny", "gsm8k_pairs", None)
        assert config.optim.lr == 3e-4


def test_baselines_are_all_losses_but_the_wider_dil_family_and_sums():
    swept = {word.partition("=")[2] for word in grid("baselines").axes["loss"]}
    left_out = {"ukl_official", "power", "jeffreys", "brier", "rulsif", "kliep", "bregman", "combine"}
    assert swept == set(LOSSES) - left_out


def test_experiments_share_the_runs_they_have_in_common():
    words = ["loss=dpo", "seed=1"]
    hashes = {
        run_hash(compose("train", [f"experiment={name}", *words, *more]), "")
        for name, more in {
            "baselines": [], "label_noise": ["data.label_noise=0"], "lr_grid": ["optim.lr_factor=1"],
            "epochs": ["optim.epochs=1"], "reduction": ["loss.reduction=sum"],
        }.items()
    }  # fmt: skip
    assert len(hashes) == 1


def test_help_has_a_line_for_each_experiment_and_one_for_all_quick_ones():
    text = command_help("train", "summary", [])
    for name in FULL:
        assert re.search(rf"^    {name} +{re.escape(comments(name)[0])}$", text, re.MULTILINE), name
    assert text.count("quick/") == 2
    assert NESTED["experiment/quick"] in text


def test_a_typo_in_a_quick_name_is_answered_with_the_name(dil_here):
    code, _, err = dil_here("train", "experiment=quick/fig2_dynamic", "--cfg", "job")
    assert code == 2
    assert err.splitlines() == [
        "error: no 'quick/fig2_dynamic' in experiment; did you mean quick/fig2_dynamics?",
        "where: dil train experiment=quick/fig2_dynamic",
        "fix:   experiment=quick/fig2_dynamics",
    ]
    _, _, err = dil_here("train", "hydra/launcher=basik", "--cfg", "job")
    assert err.splitlines()[0] == "error: no 'basik' in hydra/launcher; did you mean basic?"


def test_the_documentation_lists_every_experiment_with_its_numbers():
    text = (Path(__file__).parents[2] / "docs" / "experiments.md").read_text(encoding="utf-8")
    for name in FULL:
        made, quick = grid(name), grid(f"quick/{name}")
        row = next(line for line in text.splitlines() if line.startswith(f"| `{name}` | {made.sweeper.question} |"))
        (reckoned,) = re.findall(r"([\d.]+) minutes: ", " ".join(comments(f"quick/{name}")))
        hours = "".join(f"{stated} h" for stated in re.findall(r"([\d.]+) hours on", " ".join(comments(name))))
        *numbers, part = (cell.strip() for cell in row.split("|")[4:7])
        assert numbers == [str(len(made.jobs)), hours], name
        told = re.fullmatch(rf"{len(quick.jobs)} runs, ([\d.]+)( \\\*)? min", part)
        assert told, name
        assert float(told.group(1)) == pytest.approx(float(reckoned), rel=0.0 if told.group(2) else 0.25), name
        assert float(told.group(1)) < 10, name
