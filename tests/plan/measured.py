"""Train a step of a random model for real and say what memory it took: `python measured.py '{"shape": {...}, ...}'`.

Run as a process of its own, so that its resident memory is the model's and nothing else's.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dil_cli.data.packing import packed_tokens
from dil_cli.dynamics.measure import Compute, Layout
from dil_cli.losses import registry
from dil_cli.models.packed_attention import TILES, register
from dil_cli.train.optimiser import build_optimisers
from dil_cli.train.step import Batch, accumulate_gradient, apply_gradient
from dil_cli.types import TokenisedPair

LENGTHS = (60, 110, 90)


def pairs_of(number: int, vocabulary: int) -> list[TokenisedPair]:
    """Random pairs, all of `LENGTHS`."""
    draw = np.random.default_rng(0)
    return [
        TokenisedPair(row, *(draw.integers(0, vocabulary, n, dtype=np.int32) for n in LENGTHS)) for row in range(number)
    ]


def status(key: str) -> int:
    """Bytes of a line in /proc/self/status."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in lines if line.startswith(key)).split()[1]) * 1024


class Training:
    """A model, its optimiser, and steps of `rows` packed rows of `pairs` pairs."""

    def __init__(self, job: dict[str, Any]) -> None:
        from dil_cli.config.schema import OptimConfig, Optimiser

        register()
        torch.manual_seed(0)
        shape = AutoConfig.for_model(**job["shape"])
        self.model = AutoModelForCausalLM.from_config(
            shape, dtype=getattr(torch, job.get("dtype", "float32")), attn_implementation=TILES
        )
        if job["checkpointing"]:
            self.model.activation_checkpointing_enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.model.train()
        self.loss = registry.LOSSES["dpo"]()
        some = pairs_of(job["pairs"] * job["rows"], shape.vocab_size)
        budget = job["pairs"] * packed_tokens(some[0])
        self.compute = Compute(torch.device("cpu"), job["bf16"], budget, 0, Layout.shared)
        self.batch = Batch(some, torch.zeros(len(some)), torch.zeros(len(some)))
        kind = Optimiser(job.get("optim", "adamw"))
        optim = OptimConfig(kind=kind, lr=1e-5, batch_size=len(some), token_budget=budget)
        self.optimisers = build_optimisers(self.model, optim)

    def step(self, batch: Batch | None = None) -> None:
        """One optimiser step as `dil train` takes it."""
        batch = self.batch if batch is None else batch
        accumulate_gradient(self.model, self.loss, batch, self.compute)
        apply_gradient(self.model, self.optimisers, batch, 1.0, rescore=lambda b: None)


def resident(job: dict[str, Any]) -> dict[str, int]:
    """Growth of resident memory from before the model is there to the peak of its second step."""
    small = job | {"shape": job["shape"] | {"num_hidden_layers": 1, "hidden_size": 64, "intermediate_size": 64}}
    Training(small).step()  # libraries are loaded by it
    gc.collect()
    before = status("VmRSS")
    training = Training(job)
    training.step(training.batch.part([0]))
    Path("/proc/self/clear_refs").write_text("5")  # man 5 proc: resets VmHWM
    training.step()
    return {"resident": status("VmHWM") - before}


def allocated(job: dict[str, Any]) -> dict[str, int]:
    """Most bytes that torch's allocator had given away in the second step, by torch's profiler."""
    from torch.profiler import ProfilerActivity, profile

    training = Training(job)
    training.step(training.batch.part([0]))
    held = [*training.model.parameters(), *training.model.buffers()]
    held += [
        x for o in training.optimisers for s in o.state.values() for x in s.values() if isinstance(x, torch.Tensor)
    ]
    now = peak = sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in held}.values())
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        training.step()
    events = [e for e in profiler.profiler.kineto_results.events() if e.name() == "[memory]"]
    for event in sorted(events, key=lambda e: e.start_ns()):
        now += event.nbytes()
        peak = max(peak, now)
    return {"allocated": peak}


def saved(job: dict[str, Any]) -> dict[str, int]:
    """Bytes of the storages that autograd saved in a forward pass, the weights' left out."""
    from dil_cli.dynamics.measure import forward_pairs

    training = Training(job)
    weights = {p.untyped_storage()._cdata for p in training.model.parameters()}
    found: dict[int, torch.UntypedStorage] = {}

    def pack(x: torch.Tensor) -> torch.Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in weights:
            found[storage._cdata] = storage  # kept alive, so that no later one has its address
        return x

    row = training.batch.pairs[: job["pairs"]]
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        logps = forward_pairs(training.model, row, training.compute)
    assert logps.policy_chosen_B.requires_grad
    return {"saved": sum(storage.nbytes() for storage in found.values())}


if __name__ == "__main__":
    job = json.loads(sys.argv[1])
    print(json.dumps({"resident": resident, "allocated": allocated, "saved": saved}[job["what"]](job)))
