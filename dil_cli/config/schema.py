"""What can be configured: one dataclass per config group, checked when it is built.

The defaults that a group's members share stand here, what makes a member itself in its YAML.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from dil_cli.config.adapting import PeftConfig
from dil_cli.config.distributing import SHARDED, DistributedConfig, Sharding
from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.config.judging import WinrateConfig, check_judge
from dil_cli.errors import (
    DilError,
    require,
    require_file_name,
    require_not_negative,
    require_path,
    require_positive,
)


class DataSource(str, Enum):
    """Where pairs come from."""

    bundled = "bundled"
    hub = "hub"
    local = "local"


class Precision(str, Enum):
    """Compute type of the forward and backward pass over float32 weights."""

    auto = "auto"
    fp32 = "fp32"
    bf16 = "bf16"


class WeightType(str, Enum):
    """Type the weights are held and updated in."""

    fp32 = "fp32"
    bf16 = "bf16"


class Device(str, Enum):
    """Where the policy lives."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"
    mps = "mps"


class Optimiser(str, Enum):
    """Update rule; adamw_8bit keeps AdamW's moments in a byte each, muon orthogonalises the hidden matrices' update and
    leaves the rest to AdamW.
    """

    adamw = "adamw"
    adamw_8bit = "adamw_8bit"
    muon = "muon"


class Schedule(str, Enum):
    """Learning rate after warm-up."""

    cosine = "cosine"
    linear = "linear"
    constant = "constant"


class Resume(str, Enum):
    """What becomes of an unfinished run: auto goes on with it if it can, must does or fails, never starts over."""

    auto = "auto"
    never = "never"
    must = "must"


class WandbMode(str, Enum):
    """auto is online where a key is configured, else offline."""

    auto = "auto"
    online = "online"
    offline = "offline"
    disabled = "disabled"


ATTENTIONS = ("packed", "sdpa", "eager", "flash_attention_2", "flash_attention_3")


def _check_reading(model: ModelConfig | ReadConfig) -> None:
    """What training and `dil eval` ask of the model's group alike."""
    require(
        model.attention in ATTENTIONS, "model.attention", model.attention, f"be one of {', '.join(ATTENTIONS)}",
        "packed",
    )  # fmt: skip
    for key, least, example in (("max_length", 2, 1024), ("max_prompt_length", 1, 512), ("token_budget", 1, 4096)):
        require(getattr(model, key) >= least, f"model.{key}", getattr(model, key), f"be {least} or more", example)


@dataclass(kw_only=True)
class ModelConfig:
    """A policy's weights, tokenizer and the training scale that suits it.

    `path` is a hub id, a folder, or `bundled:NAME` for a model that ships with dil. `dtype` is of the weights
    themselves: bf16 halves the memory of everything and loses every change below 0.4 % of a weight.
    `attention: packed` takes packed rows where the model is seen to be right in them, padded ones elsewhere; the
    other choices are transformers' own, over padded rows.
    """

    path: str
    revision: str | None = None
    dtype: WeightType = WeightType.fp32
    attention: str = "packed"
    gradient_checkpointing: bool = False
    trust_remote_code: bool = False
    lr: float
    batch_size: int
    max_length: int
    max_prompt_length: int
    token_budget: int

    def __post_init__(self) -> None:
        require_path("model.path", self.path, "/path/to/folder")
        require_positive("model.lr", self.lr, 5e-7)
        require(self.batch_size >= 1, "model.batch_size", self.batch_size, "be 1 or more", 64)
        _check_reading(self)


@dataclass(kw_only=True)
class DataConfig:
    """Preference pairs: where they are, how they are cut, which are held out.

    With `heldout_split` the source's own held-out split is used; with `heldout_fraction` that
    fraction of the training prompts is held out instead (all pairs of a prompt on one side).
    `subset` and `revision` are the hub's; a local folder in its place needs neither. `template` is a
    Jinja chat template for tokenizers without one. `score_prompt` trains on the prompt's tokens too.
    `join_to` makes long pairs of short ones, of at least so many tokens (`data/join.py`); `limit` and
    `label_noise` then count joined pairs.
    """

    source: DataSource
    path: str
    subset: str | None = None
    revision: str | None = None
    train_split: str = "train"
    heldout_split: str | None = None
    heldout_fraction: float | None = None
    limit: int | None = None
    label_noise: float = 0.0
    join_to: int | None = None
    max_length: int
    max_prompt_length: int
    template: str | None = None
    score_prompt: bool = False
    notice: str | None = None

    def __post_init__(self) -> None:
        require_path("data.path", self.path, "pairs.jsonl")
        for key in ("subset", "revision"):
            value = getattr(self, key)
            applies = value is None or self.source is DataSource.hub
            require(applies, f"data.{key}", value, "stay null unless data.source=hub", "null")
        require(self.limit is None or self.limit > 0, "data.limit", self.limit, "be above 0 or null", 100)
        require(0 <= self.label_noise <= 1, "data.label_noise", self.label_noise, "lie in 0 to 1", 0.1)
        require(self.max_length >= 2, "data.max_length", self.max_length, "be 2 or more", 1024)
        require(
            1 <= self.max_prompt_length < self.max_length, "data.max_prompt_length", self.max_prompt_length,
            f"lie in 1 to data.max_length - 1 = {self.max_length - 1}", self.max_length // 2,
        )  # fmt: skip
        require(
            self.join_to is None or 2 <= self.join_to <= self.max_length, "data.join_to", self.join_to,
            f"lie in 2 to data.max_length = {self.max_length}, or be null", self.max_length,
        )  # fmt: skip
        if (self.heldout_split is None) == (self.heldout_fraction is None):
            raise DilError(
                "set one of data.heldout_split and data.heldout_fraction and leave the other null",
                where=f"data.heldout_split={self.heldout_split} data.heldout_fraction={self.heldout_fraction}",
                fix="data.heldout_split=null data.heldout_fraction=0.1",
            )
        if self.heldout_fraction is not None:
            require(
                0 < self.heldout_fraction < 1, "data.heldout_fraction", self.heldout_fraction,
                "lie between 0 and 1", 0.1,
            )  # fmt: skip


@dataclass(kw_only=True)
class OptimConfig:
    """The optimiser and its schedule. `batch_size` is in pairs, `token_budget` in tokens of one micro-batch.

    `lr_factor` multiplies `lr`, and `muon_lr` with it: a grid of factors is a grid round any model's own rate.
    """

    kind: Optimiser = Optimiser.adamw
    lr: float
    lr_factor: float = 1.0
    batch_size: int
    token_budget: int
    epochs: float = 1.0
    schedule: Schedule = Schedule.cosine
    warmup: float = 0.1
    weight_decay: float = 0.0
    beta1: float = 0.9
    beta2: float = 0.999
    eps: float = 1e-8
    clip: float | None = 1.0
    muon_lr: float | None = None
    muon_momentum: float | None = None

    def __post_init__(self) -> None:
        require_positive("optim.lr", self.lr, "${model.lr}")
        require_positive("optim.lr_factor", self.lr_factor, 1)
        # The first step would take every weight out of float32; and so many epochs never end.
        rate = self.lr * self.lr_factor
        if rate > 3e38:
            raise DilError(
                f"the learning rate is {rate:g}, it must be at most 3e38",
                f"optim.lr={self.lr:g} optim.lr_factor={self.lr_factor:g}", "optim.lr=${model.lr} optim.lr_factor=1",
            )  # fmt: skip
        require_positive("optim.epochs", self.epochs, 1)
        require(self.epochs <= 1e6, "optim.epochs", self.epochs, "be at most 1e6", 1)
        require_positive("optim.eps", self.eps, 1e-8)
        require(self.batch_size > 0, "optim.batch_size", self.batch_size, "be above 0", 32)
        require(self.token_budget > 0, "optim.token_budget", self.token_budget, "be above 0", 8192)
        require(0 <= self.warmup < 1, "optim.warmup", self.warmup, "be a fraction in 0 to 1 of all steps", 0.1)
        require_not_negative("optim.weight_decay", self.weight_decay, 0.0)
        require(0 <= self.beta1 < 1, "optim.beta1", self.beta1, "lie in 0 to 1", 0.9)
        require(0 <= self.beta2 < 1, "optim.beta2", self.beta2, "lie in 0 to 1", 0.999)
        require(self.clip is None or self.clip > 0, "optim.clip", self.clip, "be above 0 or null", 1.0)
        for key, example in (("muon_lr", 0.02), ("muon_momentum", 0.95)):
            value = getattr(self, key)
            if self.kind is not Optimiser.muon:
                require(value is None, f"optim.{key}", value, "stay null unless optim=muon", "null")
            elif value is None:
                raise DilError(f"optim.kind=muon needs optim.{key}", f"optim.{key}", "optim=muon, which sets it")
            else:
                require_positive(f"optim.{key}", value, example)
        momentum = self.muon_momentum
        require(momentum is None or momentum < 1, "optim.muon_momentum", momentum, "lie in 0 to 1", 0.95)


@dataclass(kw_only=True)
class AlarmConfig:
    """Limits on the probe set; null turns an alarm off.

    chosen_fall: nats per token that the chosen likelihood may lose since step 0.
    chosen_cost: chosen likelihood lost per margin gained, both in nats per token.
    margin_shrink: the part of its best value that the margin may give back.
    """

    chosen_fall: float | None = 0.5
    chosen_cost: float | None = 2.0
    margin_shrink: float | None = 0.25

    def __post_init__(self) -> None:
        for key in ("chosen_fall", "chosen_cost", "margin_shrink"):
            value = getattr(self, key)
            require(value is None or value > 0, f"probe.alarms.{key}", value, "be above 0 or null", 0.5)


@dataclass(kw_only=True)
class ProbeConfig:
    """The fixed held-out pairs on which the dynamics are measured.

    pairs: how many (all, if the held-out split has fewer); times: measurements after step 0,
    spread evenly over the run, the last one at its end.
    """

    pairs: int = 256
    times: int = 4
    alarms: AlarmConfig = field(default_factory=AlarmConfig)

    def __post_init__(self) -> None:
        require(self.pairs > 0, "probe.pairs", self.pairs, "be above 0", 256)
        require(self.times > 0, "probe.times", self.times, "be above 0", 4)


@dataclass(kw_only=True)
class CheckpointConfig:
    """What is kept of a policy on its way, and how often a run's whole state is saved, from which a killed one goes on.

    every: optimiser steps between checkpoints; 0 keeps only the one at the end.
    keep: of these the newest so many and the best, by `probe/loss` at the last measurement before it; null is all.
    resume_minutes: minutes of training between states, more where saving takes over a twentieth of that; 0 saves one
        after every step, null none but when told to stop.
    """

    every: int = 0
    keep: int | None = None
    resume_minutes: float | None = 5.0

    def __post_init__(self) -> None:
        require(self.every >= 0, "checkpoint.every", self.every, "be 0 or more", 0)
        require(self.keep is None or self.keep > 0, "checkpoint.keep", self.keep, "be above 0 or null", 2)
        require(
            self.keep is None or self.every > 0,
            "checkpoint.keep",
            self.keep,
            "stay null unless checkpoint.every is set",
            "null",
        )
        if self.resume_minutes is not None:
            require_not_negative("checkpoint.resume_minutes", self.resume_minutes, 5)


@dataclass(kw_only=True)
class TrackerConfig:
    """Weights & Biases: a view of the run's own record."""

    mode: WandbMode = WandbMode.auto
    project: str = "dil"
    group: str | None = None
    entity: str | None = None
    tags: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # What W&B refuses it would refuse after the start, or at `wandb sync`.
        require(
            0 < len(self.project) <= 128 and not set(self.project) & set("/\\#?%:") and self.project.isprintable(),
            "tracker.project", repr(self.project), "be 1 to 128 characters without / \\ # ? % :", "dil",
        )  # fmt: skip
        for key in ("group", "entity"):
            value = getattr(self, key)
            fine = value is None or (0 < len(value) <= 128 and value.isprintable())
            require(fine, f"tracker.{key}", repr(value), "be 1 to 128 characters, or null", "null")
        fine = all(isinstance(tag, str) and 0 < len(tag) <= 64 and tag.isprintable() for tag in self.tags)
        require(fine, "tracker.tags", self.tags, "be a list of words of 1 to 64 characters", "[a,b]")


@dataclass(kw_only=True)
class TrainConfig:
    """Everything `dil train` needs, and the run's identity (`config/identity.py`).

    `loss` is one of the dataclasses in `dil_cli.losses`, or a user's own. `preset` says where the published values
    for this loss on this model come from, where conf/preset has them. `allow_custom` lets Python files beside the
    user's YAML run (`config/custom.py`); it counts on the command line only. `profile` writes a trace of a few steps
    (`train/profiling.py`) into the run's folder.
    """

    name: str
    seed: int = 42
    output: str = "outputs"
    device: Device = Device.auto
    precision: Precision = Precision.auto
    preset: str | None = None
    allow_custom: bool = False
    resume: Resume = Resume.auto
    profile: bool = False
    model: ModelConfig
    data: DataConfig
    loss: Any
    peft: PeftConfig = field(default_factory=PeftConfig)  # before optim, whose rate is made with it
    optim: OptimConfig
    probe: ProbeConfig = field(default_factory=ProbeConfig)
    checkpoint: CheckpointConfig = field(default_factory=CheckpointConfig)
    tracker: TrackerConfig
    distributed: DistributedConfig = field(default_factory=DistributedConfig)

    def __post_init__(self) -> None:
        require_path("output", self.output, "outputs")
        require(0 <= self.seed < 2**32, "seed", self.seed, "lie in 0 to 2**32 - 1", 42)
        require_file_name("name", self.name, "my-run")
        muon = self.peft.trains_adapter and self.optim.kind is Optimiser.muon
        require(not muon, "optim.kind", "muon", "be adamw or adamw_8bit for adapters", "adamw")
        self._check_parts()
        # Its slopes come from a pass over the whole batch, which another dropout than the second pass's would not fit.
        coupled = bool(self.peft.dropout) and getattr(self.loss, "couples_batch", False)
        require(not coupled, "peft.dropout", self.peft.dropout, "be 0 with a loss that couples its batch", 0)

    def _check_parts(self) -> None:
        """What does not go with weights of which each process holds a part."""
        kind = self.distributed.kind
        if kind in SHARDED and self.optim.kind is not Optimiser.adamw:
            raise DilError(
                f"{self.optim.kind.value} needs whole weights, each process has its part of them",
                f"optim.kind={self.optim.kind.value} distributed.kind={kind.value}", "optim=adamw, or distributed=ddp",
            )  # fmt: skip
        if kind is Sharding.zero3 and self.model.dtype is WeightType.bf16:
            raise DilError(
                "DeepSpeed keeps weights in float32", f"model.dtype={self.model.dtype.value} distributed.kind=zero3",
                "model.dtype=fp32 precision=bf16, or distributed=fsdp2",
            )  # fmt: skip


@dataclass(kw_only=True)
class ReadConfig:
    """How a checkpoint is read that belongs to no run of dil; one that does is read as its run read the model."""

    revision: str | None = None
    dtype: WeightType = WeightType.fp32
    attention: str = "packed"
    trust_remote_code: bool = False
    max_length: int = 1024
    max_prompt_length: int = 512
    token_budget: int = 2048

    def __post_init__(self) -> None:
        _check_reading(self)
        require(
            self.max_prompt_length < self.max_length, "model.max_prompt_length", self.max_prompt_length,
            f"be below model.max_length = {self.max_length}", self.max_length // 2,
        )  # fmt: skip


@dataclass(kw_only=True)
class LikelihoodConfig:
    """Log-probs of held-out pairs: `pairs` of them, spread evenly (null: all), also by `buckets` of length."""

    name: str = "likelihood"
    pairs: int | None = None
    buckets: int = 4

    def __post_init__(self) -> None:
        require(self.pairs is None or self.pairs > 0, "benchmark.pairs", self.pairs, "be above 0 or null", 256)
        require(self.buckets > 0, "benchmark.buckets", self.buckets, "be above 0", 4)


@dataclass(kw_only=True)
class EvalConfig:
    """Everything `dil eval` needs.

    `checkpoint`: a run, a checkpoint, a sweep, a folder that holds runs, a model folder or a hub id. `against`: another
    one to compare with, pair by pair. `reference`: the model that changes are relative to; null is the one that the run
    started from. `accept` names what may have drifted since the run: data, template, tokenizer, reference. `judge` is
    of benchmark=winrate alone (`judging.py`). `stage`: say what to download into
    this folder for a machine without a network, and stop; it needs no checkpoint.
    """

    checkpoint: str | None = None
    stage: str | None = None
    against: str | None = None
    reference: str | None = None
    accept: list[str] = field(default_factory=list)
    output: str = "outputs"
    seed: int = 42
    device: Device = Device.auto
    precision: Precision = Precision.auto
    benchmark: Any
    judge: Any = None
    data: DataConfig | None = None
    model: ReadConfig = field(default_factory=ReadConfig)

    def __post_init__(self) -> None:
        if self.checkpoint is None and self.stage is None:
            raise DilError("checkpoint must be set", "checkpoint", "checkpoint=outputs/RUN, or a hub id")
        for key in ("checkpoint", "against", "reference", "stage"):
            if (value := getattr(self, key)) is not None:
                require_path(key, value, "outputs/RUN")
        require_path("output", self.output, "outputs")
        known = ("data", "template", "tokenizer", "reference")
        unknown = [name for name in self.accept if name not in known]
        require(not unknown, "accept", unknown, f"name some of {', '.join(known)}", "[data]")
        check_judge(self.benchmark, self.judge, self.against, self.reference)
        harness = isinstance(self.benchmark, HarnessConfig)
        require(harness or self.stage is None, "benchmark", getattr(self.benchmark, "name", ""),
                "be one that needs downloads where --stage is given", "paper")  # fmt: skip
        if harness:
            self._check_unused()

    def _check_unused(self) -> None:
        """A benchmark of lm-eval has its own questions and prompts; what says how pairs are read is refused."""
        plain = ReadConfig()
        pairs_only = ("dtype", "attention", "max_length", "max_prompt_length", "token_budget")
        given = {f"model.{key}": getattr(self.model, key) for key in pairs_only}
        given = {key: value for key, value in given.items() if value != getattr(plain, key.removeprefix("model."))}
        given |= {key: getattr(self, key) for key in ("against", "reference") if getattr(self, key)}
        read = [name for name in self.accept if name not in ("template", "tokenizer")]
        given |= {"accept": f"[{','.join(read)}]"} if read else {}
        given |= {} if self.seed == EvalConfig.seed else {"seed": self.seed}
        given |= {} if self.data is None else {"data": self.data.path}
        for key, value in given.items():
            instead = {"model.max_length": "benchmark.max_length", "model.dtype": "precision"}.get(key)
            fix = f"{instead}=..." if instead else f"leave {key} out"
            raise DilError(f"{key} is of benchmark=likelihood, this one does not read it", f"{key}={value}", fix)


ROOTS = {"train": TrainConfig, "sweep": TrainConfig, "doctor": TrainConfig, "eval": EvalConfig}
"""The whole config of each command that does something with pairs; `planning.py` adds that of `dil plan`."""

BENCHMARKS = {"likelihood": LikelihoodConfig, "harness": HarnessConfig, "winrate": WinrateConfig}
"""Schemas that the YAML of `benchmark=` inherits."""
