"""The run's own adapters, on a model without content."""

from __future__ import annotations

from typing import TYPE_CHECKING
from unittest import mock

from dil_cli.config.adapting import PeftConfig
from dil_cli.models.adapters import add_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedModel


def add_empty_adapter(model: PreTrainedModel, peft: PeftConfig) -> None:
    """As `add_adapter`, inside torch's FakeTensorMode.

    Raises:
        DilError: as `add_adapter`.
    """
    from torch import nn

    # peft moves the new matrices to where the base is. They are there, and torch cannot move what has no content.
    with mock.patch.object(nn.Module, "to", lambda module, *args, **kwargs: module):
        add_adapter(model, peft, "", None, seed=0)
