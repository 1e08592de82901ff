"""How fast could it be? The work a preference step cannot avoid, and the rate at which this machine multiplies.

Symbols, per pair: P prompt tokens, C and R tokens of the chosen and the rejected response.

The last token of a response is predicted, never read, and the prompt is the same for both responses. So the body must
see U = P + (C - 1) + (R - 1) tokens and the head C + R rows. Forward, in FLOPs (a multiply and an add are two):

    body       2 W U                W: weights of the layers' matrices (`Shape.body_weights`)
    attention  4 L H K              L layers, H hidden = heads x head size; once queries x keys, once weights x values
                                    K = P (P + 1) / 2 + sum over both responses of n P + n (n + 1) / 2, n = C - 1, R - 1
    head       2 H V (C + R)        V vocabulary

The backward pass of a matrix product is two products of the same size, so a step is three times its forward pass. A
reference pass adds one forward. Norms, activations, the softmax and the optimiser are left out: the limit is a bound.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from benchmarks.models import Shape
from benchmarks.pairs import Pair

TRAIN_FORWARDS = 3
"""A step in units of its forward pass."""


@dataclass(frozen=True)
class Work:
    """FLOPs of one forward pass over unique tokens."""

    body: float
    attention: float
    head: float

    @property
    def forward(self) -> float:
        """All of it."""
        return self.body + self.attention + self.head


def must_do(shape: Shape, pairs: Sequence[Pair]) -> Work:
    """Mean per pair of the work that no implementation can leave out (formulas at the top)."""
    body = attention = head = 0.0
    for pair in pairs:
        prompt, read = len(pair.prompt), [len(pair.chosen) - 1, len(pair.rejected) - 1]
        keys = prompt * (prompt + 1) / 2 + sum(n * prompt + n * (n + 1) / 2 for n in read)
        body += 2 * shape.body_weights * (prompt + sum(read))
        attention += 4 * shape.layers * shape.hidden * keys
        head += 2 * shape.hidden * shape.vocab * (len(pair.chosen) + len(pair.rejected))
    return Work(body / len(pairs), attention / len(pairs), head / len(pairs))


def matmul_rate(bf16: bool, device: str = "cpu", seconds: float = 0.3) -> float:
    """FLOP/s of this machine's best matrix product, square and in the shapes of the CPU model, at the threads given.

    Both of torch's float32 settings are tried (one of them is oneDNN, which is the faster on many CPUs).
    """
    dtype = torch.bfloat16 if bf16 else torch.float32
    size = 8192 if device == "cuda" else 1024
    before = torch.get_float32_matmul_precision()
    best = 0.0
    # On a GPU "medium" would measure TF32 or bfloat16 under the name of float32.
    settings = ("highest", "medium") if device == "cpu" and not bf16 else (before,)
    for setting in settings:
        torch.set_float32_matmul_precision(setting)
        for rows, inner, columns in ((size, size, size), (2048, 384, 1024)):
            a, b = (torch.randn(m, n, device=device).to(dtype) for m, n in ((rows, inner), (inner, columns)))
            best = max(best, 2 * rows * inner * columns / _seconds_of(a, b, device, seconds))
    torch.set_float32_matmul_precision(before)
    if device == "cuda":
        torch.cuda.empty_cache()  # the sides' processes need it
    return best


def _seconds_of(a: torch.Tensor, b: torch.Tensor, device: str, seconds: float) -> float:
    """The fastest of the products that fit into `seconds`, at least three."""
    taken: list[float] = []
    while len(taken) < 3 or sum(taken) < seconds:
        started = time.perf_counter()
        a @ b
        if device == "cuda":
            torch.cuda.synchronize()
        taken.append(time.perf_counter() - started)
    return min(taken)
