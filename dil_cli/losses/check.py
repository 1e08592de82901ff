"""Check a loss before anything is built on it: that its class is complete, and that its call does what it must.

A loss of a user's own goes through here as those of the package do, so its mistakes are found before training and
named by file and line.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import traceback
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import torch

from dil_cli.errors import DilError
from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.types import LossOutput, PairLogps

FLAGS = {
    "needs_reference": "True",
    "needs_rejected": "True",
    "couples_batch": "False",
}
"""The class variables of a loss and what most losses set them to."""

TRIAL = {
    "policy_chosen_B": [-30.0, -41.0, -5.5],
    "policy_rejected_B": [-36.0, -40.0, -9.0],
    "reference_chosen_B": [-31.5, -40.0, -5.0],
    "reference_rejected_B": [-34.0, -41.5, -8.5],
    "chosen_tokens_B": [20, 32, 5],
    "rejected_tokens_B": [24, 30, 8],
}
"""Three ordinary pairs on which a loss is tried."""


def place_of(thing: Any) -> str:
    """File and line where a class or function was written, as `mine.py, line 7`."""
    try:
        file = inspect.getsourcefile(thing) or ""
        return f"{_short(file)}, line {inspect.getsourcelines(thing)[1]}"
    except (OSError, TypeError):
        return f"{thing.__module__}.{thing.__qualname__}"


def raised_in(error: BaseException, file: str | None) -> str | None:
    """Where in `file` an error came from: its innermost line that is in that file, None if there is none."""
    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == file]
    return f"{_short(file)}, line {lines[-1]}" if file and lines else None


def check_class(loss: Any) -> None:
    """The class is a dataclass with every member of `PreferenceLoss`.

    Raises:
        DilError: naming the first thing that is missing.
    """
    if not isinstance(loss, type):
        raise DilError(f"@register takes a class, not {loss!r}", fix="put @register above @dataclass(kw_only=True)")
    own = f"class {loss.__name__}"
    if not is_dataclass(loss) or "__dataclass_fields__" not in vars(loss):
        raise DilError(f"{own} is not a dataclass", place_of(loss), "put @register above @dataclass(kw_only=True)")
    name = getattr(loss, "name", None)
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        what = f"{own} has no name" if name is None else f"the name of {own} is {name!r}, it must be like 'my_loss'"
        raise DilError(what, place_of(loss), 'name: ClassVar[str] = "my_loss"')
    for flag, usual in FLAGS.items():
        value = getattr(loss, flag, None)
        if not isinstance(value, bool | property):
            what = f"{own} lacks {flag}" if value is None else f"{flag} of {own} is {value!r}, not True or False"
            raise DilError(what, place_of(loss), f"{flag}: ClassVar[bool] = {usual}")
    if "reduction" not in {f.name for f in fields(loss)} and not hasattr(loss, "reduction"):
        raise DilError(f"{own} lacks reduction", place_of(loss), "reduction: Reduction = Reduction.mean")
    for method, signature in (
        ("__call__", "def __call__(self, pair: PairLogps) -> LossOutput: ..."),
        ("at_reference", "def at_reference(self) -> float | None: ..."),
    ):
        if not callable(getattr(loss, method, None)):
            raise DilError(f"{own} lacks {method}", place_of(loss), signature)


@dataclass(frozen=True)
class _Trial:
    """A loss under trial; `fail` raises with its name and place."""

    loss: PreferenceLoss

    def fail(self, what: str, fix: str) -> DilError:
        return DilError(f"the loss {self.loss.name} {what}", place_of(type(self.loss)), fix)

    def call(self, pairs: PairLogps) -> LossOutput:
        try:
            return self.loss(pairs)
        except DilError:
            raise
        except Exception as error:
            reason = f"{type(error).__name__}: {error}".splitlines()[0]
            file = getattr(sys.modules.get(type(self.loss).__module__), "__file__", None)
            raise DilError(
                f"the loss {self.loss.name} fails on three ordinary pairs: {reason}",
                raised_in(error, file) or place_of(type(self.loss)),
                "mend this line (DIL_TRACEBACK=1 shows how it was reached)",
            ) from error


def check_loss(loss: PreferenceLoss) -> None:
    """The loss gives one finite value per pair with gradient, and keeps what its class variables promise.

    Raises:
        DilError: naming the first promise that three ordinary pairs show broken.
    """
    trial = _Trial(loss)
    pairs = _trial_pairs(loss)
    chosen_B = pairs.policy_chosen_B.clone().requires_grad_()
    rejected_B = pairs.policy_rejected_B.clone().requires_grad_()
    with torch.enable_grad():
        out = trial.call(replace(pairs, policy_chosen_B=chosen_B, policy_rejected_B=rejected_B))
        _check_output(trial, out)
        gradients = torch.autograd.grad(out.loss_B.sum(), [chosen_B, rejected_B], materialize_grads=True)
    if not all(x_B.isfinite().all() for x_B in gradients):
        raise trial.fail("has a gradient that is not finite on three ordinary pairs", "guard its exponentials")
    if not loss.needs_rejected and gradients[1].any():
        raise trial.fail("uses the rejected response", "needs_rejected: ClassVar[bool] = True")
    if not loss.couples_batch:
        alone = torch.cat([trial.call(pairs.map(lambda x_B, i=i: x_B[i : i + 1])).loss_B for i in range(3)])
        if not torch.allclose(alone, out.loss_B.detach(), rtol=1e-4, atol=1e-6):
            raise trial.fail("gives a pair another value when it is alone", "couples_batch: ClassVar[bool] = True")
    _check_reference_value(trial, pairs)


def _trial_pairs(loss: PreferenceLoss) -> PairLogps:
    """`TRIAL` with no more in it than the loss says it needs."""
    pairs = PairLogps(**{name: torch.tensor(values) for name, values in TRIAL.items()})
    if not loss.needs_rejected:
        nothing_B = torch.zeros(3)
        pairs = replace(
            pairs,
            policy_rejected_B=nothing_B,
            reference_rejected_B=nothing_B,
            rejected_tokens_B=nothing_B.long(),
        )
    if not loss.needs_reference:
        pairs = replace(pairs, reference_chosen_B=None, reference_rejected_B=None)
    return pairs


def _check_output(trial: _Trial, out: Any) -> None:
    if not isinstance(out, LossOutput):
        raise trial.fail(f"returns {type(out).__name__}", "return LossOutput(loss_B)")
    loss_B = out.loss_B
    if not isinstance(loss_B, torch.Tensor) or loss_B.shape != (3,):
        shape = tuple(loss_B.shape) if isinstance(loss_B, torch.Tensor) else type(loss_B).__name__
        raise trial.fail(f"returns {shape} for 3 pairs", "one value per pair, shape (3,); the step takes the mean")
    if loss_B.dtype not in (torch.float32, torch.float64):
        raise trial.fail(f"is computed in {loss_B.dtype}", "at_least_float32(...) of dil_cli.losses.common")
    if not loss_B.requires_grad:
        raise trial.fail("carries no gradient", "compute it from pair.policy_chosen_B by torch operations")
    if not loss_B.isfinite().all():
        raise trial.fail("is not finite on three ordinary pairs", "guard its exponentials and logarithms")
    guarded_B = out.guarded_B
    if guarded_B is not None and (guarded_B.shape != (3,) or guarded_B.dtype != torch.bool):
        raise trial.fail("reports its guard in another form", "guarded_B: one bool per pair, or None")


def _check_reference_value(trial: _Trial, pairs: PairLogps) -> None:
    promised = trial.loss.at_reference()
    if promised is None or not trial.loss.needs_reference:
        return
    same = replace(
        pairs,
        reference_chosen_B=pairs.policy_chosen_B,
        reference_rejected_B=pairs.policy_rejected_B,
    )
    for value in trial.call(same).loss_B.tolist():
        if not math.isclose(value, promised, rel_tol=1e-4, abs_tol=1e-5):
            raise trial.fail(
                f"is {value:.6g} where policy = reference, at_reference says {promised:.6g}",
                f"return {value:.6g} there, or None if it depends on the data",
            )


def _short(file: str) -> str:
    """A path as a person would type it: relative to the folder they are in, if it lies below it."""
    path = Path(file)
    if path.is_absolute() and path.is_relative_to(Path.cwd()):
        return str(path.relative_to(Path.cwd()))
    return str(path)
