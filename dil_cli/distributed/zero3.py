"""Weights, gradient and optimiser in parts over the processes by DeepSpeed's ZeRO-3, from accelerate's configuration.

DeepSpeed keeps a part of each parameter in its `ds_tensor` and gathers the weights of a module while it computes. It
parts them together with their optimiser, which is then a `PartedAdamW` to the rest of dil; dil clips the gradient.
"""

from __future__ import annotations

import contextlib
import io
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch import distributed as dist

from dil_cli.config.distributing import DistributedConfig
from dil_cli.distributed.world import World
from dil_cli.errors import DilError

if TYPE_CHECKING:
    from transformers import PreTrainedModel

MOMENTS = ("exp_avg", "exp_avg_sq")


def check_installed() -> None:
    """DeepSpeed must be there.

    Raises:
        DilError: when it is not.
    """
    if find_spec("deepspeed") is None:
        raise DilError(
            "ZeRO-3 is DeepSpeed's, which is not installed", "distributed.kind=zero3",
            "pip install 'dil[deepspeed]', or distributed=fsdp2",
        )  # fmt: skip


def deepspeed_config(config: DistributedConfig, world: World, hidden: int, bf16: bool) -> dict[str, Any]:
    """What DeepSpeed is told, as accelerate's plugin completes it.

    Args:
        config: whether the parts wait in the machine's memory.
        world: the processes.
        hidden: the model's hidden dimension, by which transformers' documentation sizes DeepSpeed's buffers.
        bf16: compute under autocast, and exchange what linear layers multiply in bfloat16. Not DeepSpeed's own `bf16`,
            which rounds the weights that the run starts from.
    """
    from accelerate import DeepSpeedPlugin

    place = "cpu" if config.offload else "none"
    plugin = DeepSpeedPlugin(
        hf_ds_config={
            # A step's rows and their number follow from its pairs: to DeepSpeed each backward pass ends a step of one.
            "train_micro_batch_size_per_gpu": 1,
            "gradient_accumulation_steps": 1,
            "train_batch_size": world.size,
            "torch_autocast": {"enabled": bf16, "dtype": "bfloat16"},
            "zero_allow_untested_optimizer": True,
            "zero_force_ds_cpu_optimizer": False,  # torch's AdamW computes on the CPU too
            "zero_optimization": {
                "stage": 3,
                "offload_param": {"device": place},
                "offload_optimizer": {"device": place},
                "reduce_bucket_size": hidden**2,
                "stage3_prefetch_bucket_size": 9 * hidden**2 // 10,
                "stage3_param_persistence_threshold": 10 * hidden,
            },
        },
        zero3_init_flag=False,
    )
    told: dict[str, Any] = plugin.deepspeed_config
    return told


def part(
    model: PreTrainedModel,
    optimiser: torch.optim.Optimizer,
    config: DistributedConfig,
    world: World,
    device: torch.device,
    bf16: bool,
    passes: str,
) -> PartedAdamW:
    """Part the weights of `model`, the same in every process, in place; `passes` names the method that takes rows."""
    os.environ["DS_ACCELERATOR"] = device.type  # before it is imported: it would take a GPU that is there
    # What it says on stdout is of no use to the user.
    with contextlib.redirect_stdout(io.StringIO()):
        import deepspeed

        if device.type == "cpu":  # it would compile a kernel of its own, gloo is there
            deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        warnings.filterwarnings("ignore", "`torch.distributed.*_tensor` is deprecated", FutureWarning)
        # DeepSpeed empties the groups, and leaves out one without parameters, as an adapter's of vectors is.
        groups = [group | {"params": list(group["params"])} for group in optimiser.param_groups if group["params"]]
        told = deepspeed_config(config, world, model.config.get_text_config().hidden_size, bf16)
        deepspeed.init_distributed()
        rows = _Rows(model)
        # One parameter after the other from the machine's memory: `initialize` would put the whole model on the GPU.
        deepspeed.zero.Init(module=rows, config_dict_or_path=told)
        for buffer in model.buffers():
            buffer.data = buffer.data.to(device)
        engine, *_ = deepspeed.initialize(model=rows, optimizer=optimiser, config=told)
    head: Any = model.get_output_embeddings  # untyped in transformers
    for parameter in head().parameters():  # which no `forward` of its own multiplies
        deepspeed.zero.register_external_parameter(rows, parameter)
    setattr(model, passes, engine.__call__)
    return PartedAdamW(engine, groups)


class _Rows(nn.Module):
    """The model as DeepSpeed wants it: whatever is done with its weights is done in a `forward`."""

    def __init__(self, model: PreTrainedModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, way: Callable[..., Tensor], *rows: Any) -> Tensor:
        return way(self.model, *rows)


class PartedAdamW(torch.optim.Optimizer):
    """AdamW in DeepSpeed's engine. `param_groups` has the rates; the moments are told as those of whole parameters."""

    def __init__(self, engine: Any, groups: list[dict[str, Any]]) -> None:
        super().__init__(groups, {})
        self._engine = engine

    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update the weights at the rates of `param_groups`."""
        for inner, group in zip(self._engine.optimizer.param_groups, self.param_groups, strict=True):
            inner["lr"] = group["lr"]
        self._engine.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradient, of parameters that the next backward pass may leave out too."""
        from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

        self._engine.optimizer.zero_grad()
        for parameter in self._parameters():
            safe_set_local_grad(parameter, torch.zeros_like(safe_get_local_grad(parameter)))

    def moments(self) -> Iterator[tuple[int, dict[str, Tensor]]]:
        """What torch's AdamW would keep of each parameter, whole, by its number; all processes must ask."""
        from deepspeed.utils import safe_get_local_optimizer_state

        kept = list(self._engine.optimizer.optimizer.state.values())  # of parameters that DeepSpeed has joined
        for number, parameter in enumerate(self._parameters() if kept else ()):
            moments = {name: gather(parameter, safe_get_local_optimizer_state(parameter, name)) for name in MOMENTS}
            yield number, {"step": kept[0]["step"], **moments}

    def load_moments(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Take `moments` back, those with an axis as this process's parts."""
        from deepspeed.utils import safe_set_local_optimizer_state

        zero = self._engine.optimizer
        if not state:
            return
        step = state[0]["step"]
        for flat in zero.fp32_partitioned_groups_flat:
            place = step.to(flat.device)
            zero.optimizer.state[flat] = {"step": place.clone()} | {name: torch.zeros_like(flat) for name in MOMENTS}
        for number, parameter in enumerate(self._parameters()):
            for name in MOMENTS:
                safe_set_local_optimizer_state(parameter, state[number][name], name)

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.param_groups for parameter in group["params"]]


def is_parted(tensor: Tensor) -> bool:
    """Whether it is a parameter of which DeepSpeed holds a part here."""
    return hasattr(tensor, "ds_tensor")


def shape_of(parameter: Tensor) -> torch.Size:
    """Its shape as a whole."""
    return torch.Size(getattr(parameter, "ds_shape", parameter.shape))


def own_part(parameter: Any, values: Tensor) -> Tensor:
    """Of the part `values` what belongs to the parameter: the last parts are filled up to one size."""
    size = parameter.ds_tensor.numel()
    return values.detach().flatten()[: max(0, min(size, parameter.ds_numel - dist.get_rank() * size))]


def part_of(parameter: Any, whole: Tensor) -> Tensor:
    """This process's part of the whole values of a parameter."""
    size = parameter.ds_tensor.numel()
    filled = torch.zeros(size * dist.get_world_size(), dtype=whole.dtype, device=whole.device)
    filled[: whole.numel()] = whole.flatten()
    return filled[size * dist.get_rank() :][:size]


def gather(parameter: Any, values: Tensor | None = None) -> Tensor:
    """The parameter whole, or what else lies in parts as it does; all processes must ask."""
    own = (parameter.ds_tensor if values is None else values).detach().flatten().contiguous()
    filled = own.new_empty(own.numel() * dist.get_world_size())
    dist.all_gather_into_tensor(filled, own)
    return filled[: parameter.ds_numel].view(parameter.ds_shape)


def put(parameter: Any, whole: Tensor) -> None:
    """Give the parameter these values, which each process has."""
    from deepspeed.utils import safe_set_local_fp32_param

    own = part_of(parameter, whole)
    parameter.ds_tensor.data.copy_(own)
    safe_set_local_fp32_param(parameter, own)
    if parameter.numel():  # a small one, which DeepSpeed keeps whole
        parameter.data.copy_(whole)


def norm(parts: Iterable[Tensor]) -> Tensor:
    """2-norm over all parts of all processes."""
    squared = nn.utils.get_total_norm(list(parts)).double().square()
    dist.all_reduce(squared)
    return squared.sqrt()


def clip(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale the gradient down to a 2-norm of `limit`, as torch does; returns its norm before."""
    from deepspeed.utils import safe_get_local_grad, safe_set_local_grad

    gradients = {p: safe_get_local_grad(p) for p in parameters if p.requires_grad}
    total = norm(own_part(p, gradient) for p, gradient in gradients.items())
    factor = float(limit / (total + 1e-6))
    if factor < 1:
        for parameter, gradient in gradients.items():
            safe_set_local_grad(parameter, gradient * factor)
    return total
