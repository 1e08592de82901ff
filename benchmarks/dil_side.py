"""dil's side of the benchmark: every call into `dil_cli` is in this file.

What is timed is what `dil train` runs: `dil_cli.train.loop.train` with its statistics, and `score_pairs` for the
reference column.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from dil_cli.config.schema import OptimConfig, Schedule
from dil_cli.data.rows import read_file
from dil_cli.data.schemas import Skip, recognise, to_pair
from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute, score_pairs
from dil_cli.losses import LOSSES
from dil_cli.models.matmul import choose_matmul
from dil_cli.train.loop import train
from dil_cli.train.optimiser import build_optimisers, clip_gradient
from dil_cli.train.step import Batch, accumulate_gradient
from dil_cli.types import PairLogps, PreferencePair, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from benchmarks.pairs import Pair


@dataclass(frozen=True)
class _Plan:
    """The steps of one call: `dil_cli.train.batches.StepPlan` with batches that are given."""

    batches: Sequence[Sequence[int]]

    @property
    def total(self) -> int:
        return len(self.batches)

    @property
    def steps_per_epoch(self) -> int:
        return len(self.batches)

    def pairs_at(self, step: int) -> list[int]:
        return list(self.batches[step])


class Dil:
    """DPO by dil on given pairs, AdamW, no schedule."""

    def __init__(
        self,
        model: PreTrainedModel,
        pairs: Sequence[Pair],
        *,
        bf16: bool = False,
        token_budget: int = 2048,
        lr: float = 1e-5,
        beta: float = 0.1,
        clip: float = 1.0,
        checkpointing: bool = False,
    ) -> None:
        self.model = model
        self.pairs = [TokenisedPair(row, *pair) for row, pair in enumerate(pairs, start=1)]
        self.loss = LOSSES["dpo"](beta=beta)
        plain = Compute(device=model.device, bf16=bf16, token_budget=token_budget, pad_id=0)
        longest = max(len(p.prompt) + max(len(p.chosen), len(p.rejected)) for p in self.pairs)
        self.matmul = choose_matmul(model.device, model.config.hidden_size)
        self.choice = choose_layout(model, plain, longest)
        self.compute = self.choice.compute
        self.optim = OptimConfig(
            lr=lr, batch_size=len(pairs), token_budget=token_budget, schedule=Schedule.constant, warmup=0.0, clip=clip
        )
        if checkpointing:
            enable: Any = model.activation_checkpointing_enable  # as `models/load.py` does
            enable(activation_checkpointing_kwargs={"use_reentrant": False})
        self.optimisers = build_optimisers(model, self.optim)
        self.reference: PairLogps | None = None

    @property
    def path(self) -> str:
        """Which of dil's ways of computing is at work, for the record."""
        return f"{self.choice.line}; float32 products: {self.matmul}; token_budget {self.compute.token_budget}"

    def score(self) -> None:
        """The reference pass over all pairs; what it finds is the reference from now on."""
        self.reference = score_pairs(self.model, self.pairs, self.compute)

    def train(self, batches: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
        """One optimiser step a batch of indices; a row of metrics each."""
        rows: list[dict[str, Any]] = []
        plan: Any = _Plan(batches)
        train(
            self.model, self.loss, self.optimisers, self._batch(), plan, self.optim, self.compute,
            after_step=lambda step, row: rows.append(row),
        )  # fmt: skip
        return rows

    def gradient(self, batch: Sequence[int]) -> tuple[float, float]:
        """Mean loss of a batch and the norm of its gradient; no step is taken."""
        self.model.zero_grad(set_to_none=True)
        gradient = accumulate_gradient(self.model, self.loss, self._batch().part(batch), self.compute)
        norm = clip_gradient(self.model, None)
        self.model.zero_grad(set_to_none=True)
        return float(gradient.loss_B.double().mean()), norm

    def _batch(self) -> Batch:
        assert self.reference is not None, "score() first"
        return Batch(self.pairs, self.reference.policy_chosen_B, self.reference.policy_rejected_B)


def read_pairs(file: Path) -> list[PreferencePair]:
    """The usable pairs of a data file, whatever its layout."""
    pairs = []
    schema = None
    for row in read_file(file):
        schema = schema or recognise(row)
        try:
            pairs.append(to_pair(row, schema))
        except Skip:
            continue
    return pairs


def thread_count() -> int:
    """Threads dil computes with in this process."""
    return torch.get_num_threads()
