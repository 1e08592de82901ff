"""The model: whether it is there and fits, how it takes rows, and what a checkpoint of it needs of the disk."""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.artifacts.run_folder import RunFolder
from dil_cli.config.schema import Optimiser, TrainConfig, WeightType
from dil_cli.doctor.finding import Finding, error, ok, warning
from dil_cli.dynamics.measure import Layout
from dil_cli.errors import DilError
from dil_cli.models.adapter_files import base_config, check_start
from dil_cli.models.adapters import count_adapter
from dil_cli.models.load import read_config, resolve_source
from dil_cli.models.trained import load_trained
from dil_cli.tracking.console import make_console
from dil_cli.train.ready import pick_device, ready_policy
from dil_cli.train.sizes import device_memory, free_disk, machine_memory, size_text, states_at_once

ROOMY = 10
"""Checkpoints for which there should be room, and bytes that should be free in any case."""
LITTLE = 1_000_000_000


def model(config: TrainConfig, reachable: Callable[[], bool]) -> Iterator[Finding]:
    """Load it, unless it must be downloaded or does not fit, and see how it takes rows."""
    folder = _folder(config)
    if folder is None:
        name = config.model.path
        if reachable():
            yield warning(
                "model", f"{name} is not on this machine: dil train downloads it", "hf download it beforehand, to see"
            )
            return
        raise hub.offline_error(name, "model", "model")
    parameters = count_parameters(folder)
    if parameters is not None:
        finding = _fit(config, parameters)
        if finding is not None:
            yield finding
            return
    hub.work_offline()
    quiet = make_console(io.StringIO())
    load = partial(load_trained, peft=config.peft, seed=config.seed)
    ready = ready_policy(
        config.model, config.data, config.device, config.precision, config.optim.token_budget, quiet, load
    )
    policy = ready.policy
    number = policy.model.num_parameters()
    trained = sum(p.numel() for p in policy.model.parameters() if p.requires_grad)
    text = f"{config.model.path}: {number:,} parameters, loaded"
    yield ok("model", "; ".join([text, *policy.notices]), parameters=number, trained=trained,
             type=policy.model.config.model_type)  # fmt: skip
    facts = {"layout": ready.compute.layout.value, "attention": str(policy.model.config._attn_implementation)}
    if config.model.attention == "packed" and ready.compute.layout is Layout.padded:
        yield warning(
            "attention", ready.path, "runs work, more slowly; the reason may be for a bug report: dil doctor --json",
            **facts,
        )  # fmt: skip
    else:
        yield ok("attention", ready.path, **facts)


def disk(config: TrainConfig) -> Iterator[Finding]:
    """Whether runs can be written where they go, and how many checkpoints there is room for."""
    output = Path(config.output).expanduser().resolve()
    free = free_disk(output)
    try:
        RunFolder(output / "run").check_writable()
    except DilError as wrong:
        yield error("disk", wrong.what, "output=DIR that you may write", free_bytes=free)
        return
    folder = _folder_or_none(config)
    parameters = None if folder is None else count_parameters(folder)
    text = f"{size_text(free)} free in {output}"
    if parameters is None:
        yield ok("disk", text, free_bytes=free)
        return
    trained = _trained(config, parameters)
    checkpoint = trained * _trained_bytes(config)
    states = states_at_once(config.checkpoint)
    state = checkpoint + trained * _moment_bytes(config)
    text += f", a checkpoint takes {size_text(checkpoint)}, {states} resume states {size_text(states * state)}"
    facts = {"free_bytes": free, "checkpoint_bytes": checkpoint, "states_bytes": states * state}
    room = "make room, or output=DIR on a larger disk"
    if free < checkpoint + states * state:
        yield error("disk", text, room, **facts)
    elif free < max(ROOMY * checkpoint + states * state, LITTLE):
        yield warning("disk", text, f"{room}; dil train --dry-run tells what one run needs", **facts)
    else:
        yield ok("disk", text, **facts)


def count_parameters(folder: Path) -> int | None:
    """Parameters in the safetensors files of a folder, by their headers; None where there are none to read."""
    from safetensors import SafetensorError, safe_open

    total = 0
    for file in sorted(folder.glob("*.safetensors")):
        try:
            with safe_open(file, framework="pt") as tensors:
                total += sum(math.prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
        except (SafetensorError, OSError):
            return None  # loading says what is wrong with it
    return total or None


def _fit(config: TrainConfig, parameters: int) -> Finding | None:
    """The finding that the model cannot be loaded or trained for its size, before that is tried."""
    device = pick_device(config.device)
    held = parameters // 2 if config.peft.quantised else parameters * _bytes_each(config)
    each = _trained_bytes(config) + _moment_bytes(config)  # a trained number's gradient, and the optimiser's
    need, there = held + _trained(config, parameters) * each, device_memory(device)
    loading, machine = parameters * _bytes_each(config), machine_memory()
    text = f"{config.model.path}: {parameters:,} parameters"
    fix = "a machine with more memory, a smaller model, or model.dtype=bf16 with what it loses"
    facts = {"parameters": parameters, "need_bytes": need, "memory_bytes": there}
    if there is not None and need > there:
        what = f"need {size_text(need)} with gradients and optimiser, {device.type} has {size_text(there)}"
        return error("model", f"{text} {what}", fix, **facts)
    if machine is not None and loading > machine:
        what = f"are read into the machine's memory first: {size_text(loading)} of {size_text(machine)}"
        return error("model", f"{text} {what}", fix, **facts)
    return None


def _moment_bytes(config: TrainConfig) -> int:
    """What the optimiser keeps of each number it trains."""
    each = _trained_bytes(config)
    return {Optimiser.adamw: 2 * each, Optimiser.adamw_8bit: 2, Optimiser.muon: each}[config.optim.kind]


def _bytes_each(config: TrainConfig) -> int:
    return 2 if config.model.dtype is WeightType.bf16 else 4


def _trained_bytes(config: TrainConfig) -> int:
    return 4 if config.peft.trains_adapter else _bytes_each(config)


def _trained(config: TrainConfig, parameters: int) -> int:
    """How many of a model's parameters are trained, or those of the adapters beside them, by its shape."""
    if not config.peft.trains_adapter:
        return parameters
    import torch
    from transformers import AutoModelForCausalLM

    build: Any = AutoModelForCausalLM.from_config
    with torch.device("meta"):
        return count_adapter(build(read_config(config.model)), config.peft)


def _folder(config: TrainConfig) -> Path | None:
    """Where the model's files are, the hub's cache included; None where they are not on this machine.

    Raises:
        DilError: for a folder that is not there, as `dil train`.
    """
    check_start(config.model, config.peft)
    source = resolve_source(base_config(config.model))
    if Path(source).is_dir():
        return Path(source)
    from huggingface_hub import try_to_load_from_cache

    cached = try_to_load_from_cache(source, "config.json", revision=config.model.revision)
    return Path(cached).parent if isinstance(cached, str) else None


def _folder_or_none(config: TrainConfig) -> Path | None:
    try:
        return _folder(config)
    except DilError:
        return None
