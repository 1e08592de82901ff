"""From a config to everything the loop needs; all wrong input is found here, before a folder is made."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli import hub
from dil_cli.config.schema import DataSource, Device, Precision, TrainConfig, WeightType
from dil_cli.data.join import join_splits
from dil_cli.data.load import PairSplits
from dil_cli.data.tokenise import TokenisedSplit, tokenise_pairs
from dil_cli.dynamics.layout import choose_layout
from dil_cli.dynamics.measure import Compute
from dil_cli.errors import DilError
from dil_cli.models.load import Policy, check_length, load_policy
from dil_cli.models.matmul import choose_matmul
from dil_cli.tracking.console import ConsoleSink

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Prepared:
    """A policy on its device, both splits in its tokens, and how to compute with them; `path` says that in a line.

    `pairs` are the splits as text: what was loaded, joined where `data.join_to` asks for it.
    """

    policy: Policy
    pairs: PairSplits
    train: TokenisedSplit
    heldout: TokenisedSplit
    compute: Compute
    path: str

    def notices(self) -> list[str]:
        """What the user should know of loading and tokenising, a sentence a line."""
        lines = [*self.policy.notices, self.path]
        for name, split in (("train", self.train), ("held out", self.heldout)):
            lines += [f"{name}: {line}" for line in split.counts.describe()]
            lines += [split.notice] if split.notice else []
        return lines


def prepare(config: TrainConfig, pairs: PairSplits, console: ConsoleSink) -> Prepared:
    """Load the policy and tokenise the pairs.

    Raises:
        DilError: for a device, model or data set that cannot be trained on.
    """
    device = pick_device(config.device)
    with console.phase("loading the model", None):
        policy = load_policy(config.model)
        check_length(policy.model, config.data.max_length, config.data.max_prompt_length)
        on_device: Any = policy.model  # the wrapper transformers puts round `to` has lost its types
        on_device.to(device)
    if config.data.join_to is not None:
        with console.phase("joining pairs", None):
            pairs = join_splits(pairs, policy.tokenizer, config.data, config.seed)
    cache = Path(config.output) / "cache" / "tokens"
    with console.phase("tokenising", None):
        train = tokenise_pairs(pairs.train, policy.tokenizer, config.data, flipped=pairs.flipped, cache=cache)
        heldout = tokenise_pairs(pairs.heldout, policy.tokenizer, config.data, cache=cache)
    pad = policy.tokenizer.pad_token_id
    compute = Compute(
        device=device,
        bf16=config.model.dtype is WeightType.bf16 or use_bf16(config.precision, device),
        token_budget=config.optim.token_budget,
        pad_id=policy.tokenizer.eos_token_id if pad is None else pad,
    )
    matmul = choose_matmul(device, policy.model.config.get_text_config().hidden_size)
    path = f"rows: padded ({config.model.attention})"
    if config.model.attention == "packed":
        with console.phase("checking packed rows", None):
            choice = choose_layout(policy.model, compute, config.data.max_length)
        compute, path = choice.compute, choice.line
    return Prepared(policy, pairs, train, heldout, compute, f"{path}; float32 products: {matmul}")


def stay_offline_if_local(config: TrainConfig) -> None:
    """No library shall look for the hub when neither model nor data is there; before they are imported."""
    local_model = config.model.path.startswith("bundled:") or Path(config.model.path).expanduser().is_dir()
    if local_model and config.data.source is not DataSource.hub:
        hub.work_offline()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pick_device(device: Device) -> torch.device:
    """The accelerator if there is one and none was named.

    Raises:
        DilError: when the named device is not there.
    """
    import torch

    there = {
        Device.cuda: torch.cuda.is_available(),
        Device.mps: torch.backends.mps.is_available(),
        Device.cpu: True,
    }
    if device is Device.auto:
        return torch.device(next(kind.value for kind, available in there.items() if available))
    if not there[device]:
        raise DilError(f"this machine has no {device.value} device", where=f"device={device.value}", fix="device=auto")
    return torch.device(device.value)


def use_bf16(precision: Precision, device: torch.device) -> bool:
    """Whether the forward pass runs under bfloat16 autocast: by default where the device multiplies it natively."""
    import torch

    if precision is Precision.auto:
        return device.type == "cuda" and torch.cuda.is_bf16_supported()
    return precision is Precision.bf16
