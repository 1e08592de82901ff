"""Pairs packed into one row without padding, the prompt written once for both of its responses.

A pair lies in the row as `prompt | chosen[:-1] | rejected[:-1]`. Positions of the rejected response start again after
the prompt, and attention lets each response see the prompt and itself (`models/packed_attention.py`). A response's
last token is only predicted, so the model never reads it.

Shape suffixes: B pairs, T tokens of the row, N scored tokens, S responses (chosen of all pairs, then rejected).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from dil_cli.types import Pack, Stem, TokenisedPair


def fill_packs(pairs: Sequence[TokenisedPair], token_budget: int, share_prompt: bool) -> list[list[int]]:
    """Indices into `pairs`, each once, in groups whose packed row fits the budget.

    The longest come first, so that a run that does not fit the memory fails at once. A pair that is over the budget
    by itself is a group of its own.
    """
    sizes = [packed_tokens(pair, share_prompt) for pair in pairs]
    groups: list[list[int]] = []
    room = -1
    for index in sorted(range(len(pairs)), key=lambda index: (-sizes[index], index)):
        if sizes[index] > room:
            groups.append([])
            room = token_budget
        groups[-1].append(index)
        room -= sizes[index]
    return groups


def packed_tokens(pair: TokenisedPair, share_prompt: bool = True) -> int:
    """Tokens of the pair that the model reads: the prompt once or once a response, responses less their last."""
    responses = [len(response) for response in (pair.chosen, pair.rejected) if len(response)]
    return len(pair.prompt) * (1 if share_prompt else len(responses)) + sum(responses) - len(responses)


def pack_pairs(pairs: Sequence[TokenisedPair], share_prompt: bool, device: torch.device | str) -> Pack:
    """The pairs as one row on `device`; without `share_prompt` each response follows a copy of its prompt."""
    ids: list[np.ndarray] = []
    positions: list[np.ndarray] = []
    places: list[np.ndarray] = []
    targets: list[np.ndarray] = []
    owners: list[np.ndarray] = []
    stems: list[Stem] = []
    end = 0
    for prompt, responses in _stems(pairs, share_prompt):
        stem = Stem(start=end, prompt=len(prompt), branches=tuple(len(ids) - 1 for _, ids in responses))
        stems.append(stem)
        ids.append(prompt)
        positions.append(np.arange(stem.prompt))
        end += stem.prompt
        for owner, response in responses:
            read = len(response) - 1
            ids.append(response[:-1])
            positions.append(np.arange(stem.prompt, stem.prompt + read))
            # The prompt's last token predicts the response's first, each of its tokens the next one.
            places.append(np.concatenate([[stem.start + stem.prompt - 1], np.arange(end, end + read)]))
            targets.append(response)
            owners.append(np.full(len(response), owner))
            end += read

    def joined(parts: list[np.ndarray]) -> Tensor:
        return torch.from_numpy(np.concatenate(parts).astype(np.int64)).to(device)

    return Pack(
        input_ids_T=joined(ids),
        positions_T=joined(positions),
        stems=tuple(stems),
        places_N=joined(places),
        targets_N=joined(targets),
        responses_N=joined(owners),
        pairs=len(pairs),
    )


Responses = list[tuple[int, np.ndarray]]


def _stems(pairs: Sequence[TokenisedPair], share_prompt: bool) -> Iterator[tuple[np.ndarray, Responses]]:
    """Each prompt with the responses that follow it, and which response of the pack each of them is."""
    for index, pair in enumerate(pairs):
        both = [(index, pair.chosen), (len(pairs) + index, pair.rejected)]
        present = [(owner, response) for owner, response in both if len(response)]
        if share_prompt:
            yield pair.prompt, present
        else:
            for response in present:
                yield pair.prompt, [response]
