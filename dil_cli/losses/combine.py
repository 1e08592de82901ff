"""Sums, losses added with weights."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from typing import Any, ClassVar, get_args, get_type_hints

import torch

from dil_cli.errors import DilError, require_positive
from dil_cli.losses.common import Reduction
from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.losses.registry import loss_class, register
from dil_cli.types import LossOutput, PairLogps

EXAMPLE = "loss.terms.dpo=0.9 loss.terms.sft=0.1"


@register
@dataclass(kw_only=True)
class Combine:
    """Weighted sum of losses: sum_k weight_k L_k.

    terms gives each loss its weight, above 0, or its weight and its settings, which default to its own:

        dil train loss=combine loss.terms.dpo=0.9 loss.terms.sft=0.1
        dil train loss=combine loss.terms.dpo.weight=0.9 loss.terms.dpo.beta=0.05 loss.terms.sft=0.1

    and in a YAML of your own:

        defaults:
          - /schema/loss/combine@_here_
        terms:
          dpo: {weight: 0.9, beta: 0.05}
          sft: 0.1

    Each term keeps its own reduction; margins and weights of the sum are shown under that of the first one.

    Gradient: dL/ds_w = sum_k weight_k dL_k/ds_w, and the same for s_l. Mind the units: a term on sums weighs a
    response of n tokens n times as much as one on means.

    Ranges: none; 0.9 dpo + 0.1 sft is a common start.

    Neighbours: cpo, orpo, slic, rrhf and cal_dpo are sums with terms of their own.

    Source: the terms' own sources; dpo with an sft term, arXiv 2404.19733, for the best known case.
    """

    name: ClassVar[str] = "combine"

    terms: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.terms:
            raise DilError("loss=combine adds losses, and loss.terms names none", where="loss.terms", fix=EXAMPLE)
        self._parts = [_term(name, setting) for name, setting in self.terms.items()]

    @property
    def needs_reference(self) -> bool:
        """Whether any term does."""
        return any(loss.needs_reference for _, loss in self._parts)

    @property
    def needs_rejected(self) -> bool:
        """Whether any term does."""
        return any(loss.needs_rejected for _, loss in self._parts)

    @property
    def couples_batch(self) -> bool:
        """Whether any term does."""
        return any(loss.couples_batch for _, loss in self._parts)

    @property
    def reduction(self) -> Reduction:
        """That of the first term."""
        return self._parts[0][1].reduction

    def __call__(self, pair: PairLogps) -> LossOutput:
        """Losses (B,), and where any term was guarded."""
        outs = [(weight, loss(pair)) for weight, loss in self._parts]
        guards = [out.guarded_B for _, out in outs if out.guarded_B is not None]
        return LossOutput(
            torch.stack([weight * out.loss_B for weight, out in outs]).sum(dim=0),
            torch.stack(guards).any(dim=0) if guards else None,
        )

    def at_reference(self) -> float | None:
        """The weighted sum, where every term has a value."""
        values = [(weight, loss.at_reference()) for weight, loss in self._parts]
        return None if any(value is None for _, value in values) else sum(w * v for w, v in values if v is not None)


def _term(name: str, setting: Any) -> tuple[float, PreferenceLoss]:
    """The weight and the loss of one entry of `terms`."""
    key = f"loss.terms.{name}"
    if name == Combine.name:
        raise DilError("a sum is no term of a sum", where=key, fix=EXAMPLE)
    loss = loss_class(name, place="loss.terms.{}")
    settings = dict(setting) if isinstance(setting, Mapping) else {"weight": setting}
    weight = settings.pop("weight", None)
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise DilError(f"{key} has no weight", where=f"{key}={setting}", fix=f"{key}.weight=0.1")
    require_positive(f"{key}.weight" if settings else key, weight, 0.1)
    known = [f.name for f in fields(loss)]  # type: ignore[arg-type]
    for field_name in settings:
        if field_name not in known:
            near = difflib.get_close_matches(field_name, known, n=1)
            hint = f"did you mean {near[0]}?" if near else f"{name} has {', '.join(known)}"
            raise DilError(f"no key '{key}.{field_name}' here; {hint}", f"{key}.{field_name}", f"dil losses {name}")
    hints = get_type_hints(loss)
    values = {k: _typed(f"{key}.{k}", v, hints[k]) for k, v in settings.items()}
    try:
        return float(weight), loss(**values)
    except DilError as error:  # it speaks of loss.beta
        texts = [text.replace("loss.", f"{key}.") for text in (error.what, error.where, error.fix)]
        raise DilError(*texts) from error


def _typed(key: str, value: Any, hint: Any) -> Any:
    """`value` in the type of a loss's field, as a structured config would hold it."""
    kinds = get_args(hint) or (hint,)
    for kind in kinds:
        if isinstance(kind, type) and issubclass(kind, Enum) and not isinstance(value, kind):
            names = [member.value for member in kind]
            if value not in names:
                raise DilError(f"{key} is '{value}', not one of {', '.join(names)}", key, f"{key}={names[0]}")
            return kind(value)
    fits = (float in kinds and isinstance(value, int | float) and not isinstance(value, bool)) or any(
        kind is Any or (isinstance(kind, type) and isinstance(value, kind)) for kind in kinds
    )
    if not fits:
        raise DilError(f"{key} is '{value}', which is of the wrong type", key, "dil losses shows what it takes")
    return float(value) if float in kinds and isinstance(value, int) else value
