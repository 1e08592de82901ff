"""A run's whole state between two steps, as tensors and JSON: what it takes to go on as if nothing had happened.

Policy, optimiser, random generators, and the reference: log-probs of the starting model, which a policy that has
learnt could not give again. Which pairs come next, the schedule and the alarms follow from the step and the record.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import fields
from functools import partial, reduce
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from dil_cli.artifacts.states import State, States
from dil_cli.distributed.tensors import part_like, put, to_write
from dil_cli.distributed.world import World
from dil_cli.distributed.zero3 import PartedAdamW
from dil_cli.errors import DilError
from dil_cli.train.step import Batch
from dil_cli.types import PairLogps, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

POLICY, OPTIMISER, REFERENCE, GENERATORS = (
    f"{name}.safetensors" for name in ("policy", "optimiser", "reference", "generators")
)

BINDING = {
    "the starting model": ("model", "weights_sha256"), "the tokenizer": ("tokenizer_sha256",),
    "the chat template": ("template_sha256",), "the data": ("data_sha256",), "the reference": ("reference_sha256",),
    "the probe set": ("probe_rows",), "the precision": ("compute",), "the layout of rows": ("rows",),
}  # fmt: skip
"""What must be the same when a run goes on, by its place in the manifest."""


def save_state(
    states: States,
    step: int,
    facts: dict[str, Any],
    model: PreTrainedModel,
    optimisers: Sequence[torch.optim.Optimizer],
    batch: Batch,
    probe_start: PairLogps,
    world: World,
) -> None:
    """Save the run after `step` steps; `facts` are what else it shall find again.

    All processes of `world` give their parts, and the main one writes them as wholes: any number can go on from there.
    """
    policy = {name: to_write(value, world) for name, value in _policy(model)}
    moments = {
        f"{number}.{parameter}.{name}": to_write(value, world)
        for number, optimiser in enumerate(optimisers)
        for parameter, state in _moments(optimiser)
        for name, value in _flat(state)
    }
    write = partial(_write, policy=policy, moments=moments, batch=batch, probe_start=probe_start)
    world.on_main(lambda: states.save(step, facts | {"generators": _generators()}, write))


def restore(state: State, model: PreTrainedModel, optimisers: Sequence[torch.optim.Optimizer]) -> None:
    """Put policy, optimiser and random generators back to where they were."""
    tensors = load_file(state.folder / POLICY)
    for name, value in _policy(model):
        put(value, tensors.pop(name))
    assert not tensors, f"the model lacks {list(tensors)}"
    moments = load_file(state.folder / OPTIMISER)
    for number, optimiser in enumerate(optimisers):
        own: dict[int, dict[str, Any]] = {}
        weights = [parameter for group in optimiser.param_groups for parameter in group["params"]]
        for key, value in moments.items():
            which, parameter, name = key.split(".", 2)
            if int(which) == number:
                like = weights[int(parameter)]
                own.setdefault(int(parameter), {})[name] = part_like(like, value) if value.ndim else value
        own = {parameter: _nested(state) for parameter, state in own.items()}
        if isinstance(optimiser, PartedAdamW):
            optimiser.load_moments(own)
        else:
            optimiser.load_state_dict(optimiser.state_dict() | {"state": own})
    _set_generators(state)


def saved_reference(state: State, pairs: Sequence[TokenisedPair]) -> tuple[Batch, PairLogps]:
    """The training pairs with their reference column, and the probe set as it was at step 0."""
    tensors = load_file(state.folder / REFERENCE)
    start = PairLogps(**{key.removeprefix("probe."): tensors[key] for key in tensors if key.startswith("probe.")})
    return Batch(pairs, tensors.get("chosen"), tensors.get("rejected")), start


def refuse_drift(began: dict[str, Any], now: dict[str, Any], folder: Path, say: Callable[[str], None]) -> None:
    """Nothing that the numbers depend on may have changed since the run in `folder` began.

    Args:
        began: the run's manifest.
        now: what it would be if the run began now.
        folder: the run's.
        say: is told of what may change the last digits.

    Raises:
        DilError: naming what changed.
    """
    changed = [name for name, path in BINDING.items() if _bound(began, path) != _bound(now, path)]
    if changed:
        raise DilError(
            f"{' and '.join(changed)} changed since this run began", str(folder),
            "put back what was there, or resume=never starts over",
        )  # fmt: skip
    before, after = (facts["environment"]["packages"] | {"device": facts["device"]} for facts in (began, now))
    other = [f"{name} {before.get(name)} -> {is_now}" for name, is_now in after.items() if before.get(name) != is_now]
    if other:
        say(f"not as when the run began: {', '.join(other)}; the last digits may differ")


def _bound(facts: dict[str, Any], path: Sequence[str]) -> Any:
    """A fact of a manifest, without the rounding errors it tells, which vary with the number of threads."""
    fact: Any = reduce(dict.__getitem__, path, facts)
    return re.sub(r"\d+e-\d+", "", fact) if isinstance(fact, str) else fact


def _write(
    folder: Path, policy: dict[str, Tensor], moments: dict[str, Tensor], batch: Batch, probe_start: PairLogps
) -> None:
    save_file(policy, folder / POLICY)
    save_file(_unshared(moments), folder / OPTIMISER)
    column = {"chosen": batch.reference_chosen_B, "rejected": batch.reference_rejected_B}
    probe = {f"probe.{field.name}": getattr(probe_start, field.name) for field in fields(probe_start)}
    save_file({key: value for key, value in (column | probe).items() if value is not None}, folder / REFERENCE)
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    save_file(
        {"torch": torch.get_rng_state(), **{f"cuda.{i}": value for i, value in enumerate(cuda)}}, folder / GENERATORS
    )


def _moments(optimiser: torch.optim.Optimizer) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """What it keeps of each parameter, by number."""
    if isinstance(optimiser, PartedAdamW):
        return optimiser.moments()
    return optimiser.state_dict()["state"].items()  # type: ignore[no-any-return]


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Tensor]]:
    """What an optimiser keeps of a parameter, as tensors alone: bitsandbytes has whole numbers and a dict among it."""
    for name, value in state.items():
        if isinstance(value, Mapping):
            yield from ((f"{name}.{inner}", tensor) for inner, tensor in _flat(value))
        else:
            yield name, torch.tensor(value) if isinstance(value, int) else value


def _nested(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """What `_flat` was given; torch's own counts of steps are float32."""
    nested: dict[str, Any] = {}
    for key, value in state.items():
        outer, _, inner = key.rpartition(".")
        place = nested.setdefault(outer, {}) if outer else nested
        place[inner] = int(value) if value.ndim == 0 and value.dtype is torch.int64 else value
    return nested


def _unshared(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """With copies of those that share memory, as bitsandbytes' small tables do: safetensors holds none such."""
    seen: set[int] = set()
    own = {}
    for key, value in tensors.items():
        own[key] = value.clone() if value.data_ptr() in seen else value
        seen.add(value.data_ptr())
    return own


def _policy(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """What a step changes: the trained parameters, tied ones once, and the buffers that a checkpoint holds."""
    yield from ((name, value) for name, value in model.named_parameters() if value.requires_grad)
    kept = model.state_dict().keys()
    yield from ((name, value) for name, value in model.named_buffers() if name in kept)


def _generators() -> dict[str, Any]:
    """Python's and numpy's, which no code of ours draws from in training; a user's own loss may."""
    kind, words, *rest = np.random.get_state()
    return {"python": random.getstate(), "numpy": [kind, np.asarray(words).tolist(), *rest]}


def _set_generators(state: State) -> None:
    kept = state.facts["generators"]
    version, words, gauss = kept["python"]
    random.setstate((version, tuple(words), gauss))
    np.random.set_state(tuple(kept["numpy"]))
    tensors = load_file(state.folder / GENERATORS)
    torch.set_rng_state(tensors.pop("torch"))
    if torch.cuda.is_available() and len(tensors) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([tensors[f"cuda.{i}"] for i in range(len(tensors))])
