"""The processes of one run and all that they say to each other. A world of one says nothing.

Shape suffixes: B pairs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dil_cli.errors import RunFailed

T = TypeVar("T")

BUCKET_BYTES = 64 * 2**20
"""Gradients are summed in pieces of about this size: few messages, and little memory beside the gradient itself."""


@dataclass(frozen=True)
class World:
    """This process among `size` of them; the main one, of rank 0, writes and speaks for all.

    `sharded`: each holds its part of the weights, so that a forward pass is one of all processes or of none.
    """

    rank: int = 0
    size: int = 1
    sharded: bool = False

    @property
    def is_main(self) -> bool:
        """Whether this process writes and speaks."""
        return self.rank == 0

    @property
    def alone(self) -> bool:
        """Whether there is no other process."""
        return self.size == 1

    def wait(self) -> None:
        """Until all processes have come here."""
        if not self.alone:
            dist.all_reduce(torch.zeros(1))  # on the CPU; a barrier would take the GPUs' backend

    def on_main(self, call: Callable[[], T]) -> T:
        """What `call` gives in the main process, which alone makes it; what it raises there is raised in all."""
        if self.alone:
            return call()
        value: T | None = None
        error: Exception | None = None
        if self.is_main:
            try:
                value = call()
            except Exception as raised:
                error = raised
        value, error = self.from_main((value, error))
        if error is not None:
            raise error
        return cast(T, value)

    def from_main(self, value: Any) -> Any:
        """The main process's `value` in all of them."""
        if self.alone:
            return value
        box = [value]
        dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
        return box[0]

    def gathered(self, value: T) -> list[T]:
        """Every process's `value`, by rank."""
        if self.alone:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    @contextmanager
    def main_first(self) -> Iterator[None]:
        """The main process does this before the others, who then find what it has cached."""
        if not self.is_main:
            self.wait()
        yield
        if self.is_main:
            self.wait()

    def largest(self, *values: int) -> list[int]:
        """Of each value the largest that any process has."""
        if self.alone:
            return list(values)
        all_values = torch.tensor(values)
        dist.all_reduce(all_values, op=dist.ReduceOp.MAX)
        return [int(value) for value in all_values]

    def require_same(self, what: str, value: str) -> None:
        """Every process must have found the same `value`.

        Raises:
            RunFailed: in every process, where they differ.
        """
        found = self.gathered(value)
        if len(set(found)) > 1:
            other = next(rank for rank, theirs in enumerate(found) if theirs != found[0])
            raise RunFailed(
                f"{what} differs between processes: {found[0]} in the first, {found[other]} in number {other + 1}",
                "start of the run", "give every process the same files, packages and kind of device",
            )  # fmt: skip

    def joined(self, columns: Sequence[Tensor]) -> list[Tensor]:
        """The columns (B,) of all pairs, of which each process has those of its own and zeros elsewhere; on the CPU."""
        if self.alone:
            return list(columns)
        whole = torch.stack([column.double() for column in columns])  # exact for float32 and for counts
        dist.all_reduce(whole)
        return [values_B.to(column.dtype) for values_B, column in zip(whole, columns, strict=True)]

    def add_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The sum of the processes' gradients in each of them; None where no process has one.

        Nothing to do where the weights are sharded: the backward pass has summed them.
        """
        if self.alone or self.sharded:
            return
        trained = [p for p in parameters if p.requires_grad]
        # A process whose pairs left a weight out (an expert, say) has no gradient for it, others may.
        there = self.largest(*(int(p.grad is not None) for p in trained))
        gradients: list[Tensor] = []
        for parameter, any_has in zip(trained, there, strict=True):
            if any_has:
                parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
                gradients.append(parameter.grad)
        for bucket in _buckets(gradients):
            flat = torch.cat([gradient.flatten() for gradient in bucket])
            dist.all_reduce(flat)
            for gradient, summed in zip(bucket, torch.split(flat, [g.numel() for g in bucket]), strict=True):
                gradient.copy_(summed.view_as(gradient))


ALONE = World()


def _buckets(tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Neighbours of one type, together, up to about `BUCKET_BYTES`."""
    for _, alike in groupby(tensors, key=lambda x: x.dtype):
        bucket: list[Tensor] = []
        size = 0
        for tensor in alike:
            bucket.append(tensor)
            size += tensor.numel() * tensor.element_size()
            if size >= BUCKET_BYTES:
                yield bucket
                bucket, size = [], 0
        if bucket:
            yield bucket
