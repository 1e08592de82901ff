"""The words the rest of the package speaks.

Shape suffixes, here and everywhere: B pairs, T tokens of a row, N scored tokens, R rows, D hidden, V vocabulary.
Log-probabilities are natural logarithms (nats).
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation; `role` is system, user or assistant."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class PreferencePair:
    """A prompt and two responses; `rejected` is None for a demonstration (`loss=sft` only).

    `row` is the 1-based number in the source, so that a pair can be found again in its file.
    """

    row: int
    prompt: tuple[Message, ...]
    chosen: str
    rejected: str | None


@dataclass(frozen=True, slots=True, eq=False)
class TokenisedPair:
    """Token ids of a pair, int32: prompt (P,), chosen (C,), rejected (R,); R = 0 for a demonstration.

    Each response ends in EOS unless it was cut. All its tokens are scored, and none of the prompt's.
    `flipped` marks a pair whose label `data.label_noise` turned round.
    """

    row: int
    prompt: np.ndarray
    chosen: np.ndarray
    rejected: np.ndarray
    flipped: bool = False


@dataclass(frozen=True, slots=True)
class Stem:
    """A prompt in a packed row and the responses that continue it, each seeing the prompt and itself.

    It starts at place `start` with `prompt` tokens; `branches` are the responses' lengths, one behind the other.
    """

    start: int
    prompt: int
    branches: tuple[int, ...]


@dataclass(frozen=True)
class Pack:
    """Pairs as one row without padding: T tokens that the model reads, N that are scored, of B pairs.

    Scored token n is `targets_N[n]`, predicted at place `places_N[n]` of the row, and belongs to response
    `responses_N[n]`: 0 to B-1 are the chosen ones, B to 2B-1 the rejected ones. All tensors are int64.
    """

    input_ids_T: Tensor
    positions_T: Tensor
    stems: tuple[Stem, ...]
    places_N: Tensor
    targets_N: Tensor
    responses_N: Tensor
    pairs: int


@dataclass(frozen=True)
class PairLogps:
    """All that a loss may see of B pairs: summed log-probs of both responses and their token counts.

    Every field is (B,). Reference fields are None when the loss needs no reference.
    """

    policy_chosen_B: Tensor
    policy_rejected_B: Tensor
    chosen_tokens_B: Tensor
    rejected_tokens_B: Tensor
    reference_chosen_B: Tensor | None = None
    reference_rejected_B: Tensor | None = None

    def map(self, fn) -> PairLogps:  # type: ignore[no-untyped-def]
        """`fn` applied to each tensor, for example `pairs.map(lambda x_B: x_B.double())`."""
        present = {f.name: getattr(self, f.name) for f in fields(self)}
        return replace(self, **{k: fn(v) for k, v in present.items() if v is not None})


@dataclass(frozen=True)
class LossOutput:
    """Per-pair loss (B,) in nats, and where a guarded exponential left its exact range (B,) bool."""

    loss_B: Tensor
    guarded_B: Tensor | None = field(default=None)
