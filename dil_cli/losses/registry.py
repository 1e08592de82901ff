"""The losses by name: a class under `@register` is what `loss=NAME` builds."""

from __future__ import annotations

import difflib
from typing import TypeVar

from dil_cli.errors import DilError
from dil_cli.losses.check import check_class, place_of
from dil_cli.losses.protocol import PreferenceLoss

LOSSES: dict[str, type[PreferenceLoss]] = {}

Loss = TypeVar("Loss", bound=PreferenceLoss)


def register(loss: type[Loss]) -> type[Loss]:
    """Class decorator, above `@dataclass(kw_only=True)`: enter the loss under its own `name`.

    Raises:
        DilError: when the class lacks a member of `PreferenceLoss`, or another class has its name.
    """
    check_class(loss)
    known = LOSSES.get(loss.name)
    # The same file read twice (each job of a sweep reads a user's file) gives an equal class, not a rival.
    if known is not None and (known.__module__, known.__qualname__) != (loss.__module__, loss.__qualname__):
        raise DilError(
            f"two losses are named {loss.name!r}",
            where=f"{place_of(known)}; {place_of(loss)}",
            fix="give the new one another name",
        )
    LOSSES[loss.name] = loss
    return loss


def loss_class(name: str, place: str = "loss={}") -> type[PreferenceLoss]:
    """The class registered under `name`; `place` is how a config names a loss where it was looked up.

    Raises:
        DilError: when there is none, with the closest name that exists.
    """
    if name in LOSSES:
        return LOSSES[name]
    near = difflib.get_close_matches(name, LOSSES, n=1)
    hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(sorted(LOSSES))}"
    raise DilError(
        f"no loss is named {name!r}; {hint}",
        where=place.format(name),
        fix=place.format(near[0]) if near else "dil losses",
    )
