"""Low-rank adapters on a model without content: only their sizes matter here."""

from __future__ import annotations

from torch import Tensor, nn


class Adapted(nn.Module):
    """A frozen linear layer and two trained matrices beside it."""

    def __init__(self, base: nn.Linear, rank: int) -> None:
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False)
        self.up = nn.Linear(rank, base.out_features, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """Base and adapter."""
        y: Tensor = self.base(x) + self.up(self.down(x))
        return y


def add_adapters(model: nn.Module, rank: int) -> None:
    """Freeze `model` and put adapters on all its linear layers but the head."""
    head = getattr(model, "get_output_embeddings", lambda: None)()
    model.requires_grad_(False)
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            if isinstance(child, nn.Linear) and child is not head:
                setattr(parent, name, Adapted(child, rank))
