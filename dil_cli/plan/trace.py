"""What a training step keeps in memory, counted by running it: dil's own forward, backward and optimiser step on a
model of the true shape whose tensors have sizes and no content (torch's FakeTensor).

So no formula has to know what autograd saves in this or that architecture, with checkpointing or without.

Shape suffixes: H query heads, K key heads, T tokens, D head dimension.
"""

from __future__ import annotations

import dataclasses
import weakref
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from unittest import mock

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from dil_cli.config.adapting import PeftConfig
from dil_cli.config.schema import ModelConfig, OptimConfig, Optimiser
from dil_cli.data.packing import pack_pairs
from dil_cli.errors import DilError
from dil_cli.models import response_head
from dil_cli.models.flops import matrix_weights
from dil_cli.models.logps import packed_logps
from dil_cli.models.packed_attention import TILES, PackRefused, register, stems_of
from dil_cli.models.tiled_attention import forget_masks
from dil_cli.plan.adapters import add_empty_adapter
from dil_cli.plan.geometries import empty_model
from dil_cli.train.optimiser import build_optimisers, moment_bytes_8bit
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FUSED = "dil_plan_fused"
"""What FlexAttention keeps on a GPU, by the name that transformers asks for."""


@dataclass(frozen=True)
class Traced:
    """Bytes of one process that holds everything, at the moment of a step when most are held.

    weights, moments: always there. gradients: those there at that moment.
    copies: weights in bfloat16 that autocast keeps beside the float32 ones.
    head: logits of a tile, and what else has the size of the vocabulary.
    activations: everything else, kept for the backward pass or passing.
    after_forward: of copies, head and activations what the backward pass still needs when it begins.
    parameters, trained: numbers, not bytes. layer, outside: parameters of the largest layer and outside all layers.
    matrices: parameters of what a token is multiplied with on its way to the head.
    tokens: of the row.
    """

    weights: int
    gradients: int
    moments: int
    copies: int
    head: int
    activations: int
    after_forward: int
    parameters: int
    trained: int
    layer: int
    outside: int
    matrices: int
    tokens: int

    @property
    def total(self) -> int:
        """All of it."""
        return self.weights + self.gradients + self.moments + self.copies + self.head + self.activations


def trace_step(
    shape: PretrainedConfig,
    model: ModelConfig,
    optim: OptimConfig,
    pairs: Sequence[TokenisedPair],
    *,
    bf16: bool,
    gpu: bool,
    several: bool,
    adapter: PeftConfig | None = None,
) -> Traced:
    """Run one optimiser step without content and count.

    Args:
        shape: of the model.
        model: how it is held and whether it checkpoints.
        optim: what updates it.
        pairs: those of one packed row.
        bf16: whether the forward pass runs under bfloat16 autocast.
        gpu: attention fused and tiles of the head as on a GPU, else as on a CPU.
        several: whether a step has more than one row, so that gradients are there when a row begins.
        adapter: trained in the place of the weights.

    Raises:
        DilError: when the architecture does not take packed rows.
    """
    row = pack_pairs(pairs, True, "cpu")
    with FakeTensorMode() as mode, _device_of(gpu):
        tensors: dict[str, Any] = {key: mode.from_tensor(x) for key, x in vars(row).items() if isinstance(x, Tensor)}
        row = dataclasses.replace(row, **tensors)
        with torch.device("cpu"):
            policy = empty_model(shape, model)
            if adapter is not None:
                add_empty_adapter(policy, adapter)
        policy.set_attn_implementation(FUSED if gpu else TILES)
        if model.gradient_checkpointing:
            enable: Any = policy.activation_checkpointing_enable  # untyped in transformers
            enable(activation_checkpointing_kwargs={"use_reentrant": False})
        policy.train()
        # An 8-bit update passes no tensor of its own: all but its moments is as in AdamW's.
        eight_bit = optim.kind is Optimiser.adamw_8bit
        optimisers = build_optimisers(policy, dataclasses.replace(optim, kind=Optimiser.adamw) if eight_bit else optim)

        def forward() -> Tensor:
            with torch.autocast("cpu", dtype=torch.bfloat16) if bf16 else nullcontext():
                return packed_logps(policy, row)

        def step() -> None:
            nn.utils.clip_grad_norm_(policy.parameters(), 1.0)
            for optimiser in optimisers:
                optimiser.step()

        try:
            torch.autograd.backward(forward().sum())
        except (PackRefused, RuntimeError) as error:  # what torch cannot run without content is a RuntimeError
            reason = str(error).partition("\n")[0]
            raise DilError(
                f"{shape.model_type} cannot be counted in packed rows: {reason}", "model.path", "another model.path"
            ) from error
        step()
        if not several:
            policy.zero_grad(set_to_none=True)
        standing = sum(p.grad.nbytes for p in policy.parameters() if p.grad is not None)
        embedding: Any = policy.get_input_embeddings()
        counter = _Counter(policy, embedding.weight.shape)
        with counter:
            logps_S = forward()
            after_forward = counter.now.total()
            torch.autograd.backward(logps_S.sum())
            step()
        kept = [x for o in optimisers for state in o.state.values() for x in state.values() if isinstance(x, Tensor)]
        trained = [p for p in policy.parameters() if p.requires_grad]
        moments = moment_bytes_8bit(trained) if eight_bit else sum(x.nbytes for x in kept)
        return Traced(
            weights=_bytes(policy),
            gradients=standing + counter.peak["gradient"],
            moments=moments,
            copies=counter.peak["copy"],
            head=counter.peak["head"],
            activations=counter.peak["activation"],
            after_forward=after_forward,
            tokens=sum(stem.prompt + sum(stem.branches) for stem in row.stems),
            **_numbers(policy),
        )


class _Counter(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Bytes of the storages that came to be inside it and still live, by kind; `peak` is `now` when it was largest."""

    def __init__(self, model: nn.Module, embedding: torch.Size) -> None:
        start: Any = super().__init__  # untyped in torch
        start()
        self.now: Counter[str] = Counter()
        self.peak: Counter[str] = Counter()
        self.embedding, self.vocabulary = embedding, embedding[0]
        self.kinds: dict[int, str] = {}
        self.weights = {p.untyped_storage()._cdata for p in model.parameters()}
        for p in model.parameters():
            if p.requires_grad:
                hook: Any = p.register_post_accumulate_grad_hook  # untyped in torch
                hook(self._accumulated)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        # Views and updates in place make nothing new.
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        for x in tree_leaves(out):
            if isinstance(x, Tensor) and (key := x.untyped_storage()._cdata) not in old and key not in self.kinds:
                copied = func is torch.ops.aten._to_copy.default and bool(old & self.weights)
                wide = x.ndim > 1 and (x.shape[-1] == self.vocabulary or x.shape == self.embedding)
                self._begin(x, "copy" if copied else "head" if wide else "activation")
        if self.now.total() > self.peak.total():
            self.peak = self.now.copy()
        return out

    def _begin(self, x: Tensor, kind: str) -> None:
        storage = x.untyped_storage()
        self.kinds[storage._cdata] = kind
        self.now[kind] += storage.nbytes()
        weakref.finalize(storage, self._end, storage._cdata, storage.nbytes())

    def _end(self, key: int, size: int) -> None:
        self.now[self.kinds.pop(key)] -= size

    def _accumulated(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        storage = parameter.grad.untyped_storage()
        kind = self.kinds.get(storage._cdata)
        if kind not in {None, "gradient"}:
            self.now[kind] -= storage.nbytes()
            self.now["gradient"] += storage.nbytes()
            self.kinds[storage._cdata] = "gradient"


@contextmanager
def _device_of(gpu: bool) -> Iterator[None]:
    """Tensors without content are of the CPU, as torch may be built for nothing else; the head's tile is not."""
    from transformers import AttentionInterface

    register()
    AttentionInterface.register(FUSED, _fused)
    size = response_head.TILE_BYTES["cuda" if gpu else "cpu"]
    forget_masks()
    with mock.patch.dict(response_head.TILE_BYTES, {"cpu": size}):
        yield
    forget_masks()


def _fused(
    module: nn.Module, query_1HTD: Tensor, key_1KTD: Tensor, value_1KTD: Tensor, mask: Tensor | None, **extras: Any
) -> tuple[Tensor, None]:
    """Stands in for `flex_attention`, with its types."""
    stems_of(query_1HTD, mask, extras)
    query_1HTD, key_1KTD = query_1HTD.to(value_1KTD.dtype), key_1KTD.to(value_1KTD.dtype)
    out_1HTD: Tensor = _Fused.apply(query_1HTD, key_1KTD, value_1KTD)  # type: ignore[no-untyped-call]
    return out_1HTD.transpose(1, 2), None


class _Fused(torch.autograd.Function):
    """What a fused kernel keeps: inputs, output and a float32 a query (log of the sum of exponentials)."""

    @staticmethod
    def forward(ctx: Any, q_1HTD: Tensor, k_1KTD: Tensor, v_1KTD: Tensor) -> Tensor:
        out_1HTD = torch.empty_like(q_1HTD)
        ctx.save_for_backward(q_1HTD, k_1KTD, v_1KTD, out_1HTD, q_1HTD.new_empty(q_1HTD.shape[:3], dtype=torch.float32))
        return out_1HTD

    @staticmethod
    def backward(ctx: Any, slope_1HTD: Tensor) -> tuple[Tensor, ...]:
        q_1HTD, k_1KTD, v_1KTD, _, _ = ctx.saved_tensors
        return torch.empty_like(q_1HTD), torch.empty_like(k_1KTD), torch.empty_like(v_1KTD)


def _bytes(model: nn.Module) -> int:
    held = [*model.parameters(), *model.buffers()]
    return sum({x.untyped_storage()._cdata: x.untyped_storage().nbytes() for x in held}.values())


def _numbers(model: PreTrainedModel) -> dict[str, int]:
    """Parameters: all, trained, of the largest layer, outside the layers."""
    total = sum(p.numel() for p in model.parameters())
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList)]
    layers = max(([sum(p.numel() for p in layer.parameters()) for layer in stack] for stack in stacks), key=sum)
    return {
        "parameters": total,
        "trained": sum(p.numel() for p in model.parameters() if p.requires_grad),
        "layer": max(layers),
        "outside": total - sum(layers),
        "matrices": matrix_weights(model),
    }
