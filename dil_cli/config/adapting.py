"""What of a policy is trained: all weights, or low-rank adapters beside frozen ones."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from dil_cli.errors import DilError, require, require_positive


class AdapterKind(str, Enum):
    """none trains all weights; lora and dora adapters beside them; qlora those of lora beside weights in four bits."""

    none = "none"
    lora = "lora"
    dora = "dora"
    qlora = "qlora"


@dataclass(kw_only=True)
class PeftConfig:
    """Low-rank adapters: W x becomes W x + (alpha / r) B A x, with W frozen, A (r, inputs) random and B (outputs, r) 0.

    `dora` also learns the length of each row of the sum, ||W|| at first. `dropout` is the part of x that A does not see
    in a training step; log-probs are measured without. `targets` are the last parts of layers' names, null is every
    linear layer of the decoder blocks. `lr_factor` times the model's learning rate is the adapters'. Sources: LoRA,
    arXiv 2106.09685; DoRA, arXiv 2402.09353; QLoRA, arXiv 2305.14314.
    """

    kind: AdapterKind = AdapterKind.none
    r: int | None = None
    alpha: int | None = None
    dropout: float | None = None
    targets: list[str] | None = None
    lr_factor: float | None = None

    def __post_init__(self) -> None:
        if not self.trains_adapter:
            for key, value in vars(self).items():
                applies = key == "kind" or value is None
                require(applies, f"peft.{key}", value, "stay null unless peft=lora, dora or qlora", "null")
            return
        for key in ("r", "alpha", "dropout", "lr_factor"):
            if getattr(self, key) is None:
                kind = self.kind.value
                raise DilError(f"peft.kind={kind} needs peft.{key}", f"peft.{key}", f"peft={kind}, which sets it")
        assert self.r is not None
        assert self.alpha is not None
        assert self.dropout is not None
        assert self.lr_factor is not None
        require(self.r > 0, "peft.r", self.r, "be above 0", 16)
        require(self.alpha > 0, "peft.alpha", self.alpha, "be above 0", 32)
        require(0 <= self.dropout < 1, "peft.dropout", self.dropout, "be at least 0 and below 1", 0.05)
        require_positive("peft.lr_factor", self.lr_factor, 10)
        named = self.targets is None or (bool(self.targets) and all(self.targets))
        require(named, "peft.targets", self.targets, "name layers, or be null for all", "[q_proj,v_proj]")

    @property
    def trains_adapter(self) -> bool:
        """Whether the weights stay as they are."""
        return self.kind is not AdapterKind.none

    @property
    def quantised(self) -> bool:
        """Whether the frozen weights are held in four bits."""
        return self.kind is AdapterKind.qlora


def scaled(rate: float, factor: float | None) -> float:
    """`${scaled:${model.lr},${peft.lr_factor}}` in YAML: the model's learning rate, or the adapter's."""
    return rate if factor is None else float(f"{rate * factor:.12g}")  # 3e-3, not 2.9999999999999996e-3
