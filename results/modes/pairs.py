"""Pairs: every pair that can occur, with its probability; or some, drawn. What a loss sees of them is `PairLogps`."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from dil_cli.losses.protocol import PreferenceLoss
from dil_cli.types import PairLogps
from results.modes.world import World


@dataclass(frozen=True)
class Pairs:
    """B pairs as numbers of prompt, chosen and rejected response, with weights of sum 1.

    `lengths_Y` is the number of tokens of each response, 1 unless said otherwise: then mean and sum are the same.
    """

    prompt_B: Tensor
    chosen_B: Tensor
    rejected_B: Tensor
    weight_B: Tensor
    lengths_Y: Tensor

    def logps(self, policy_XY: Tensor, reference_XY: Tensor) -> PairLogps:
        """What a loss may see of these pairs under a policy."""
        chosen, rejected = (self.prompt_B, self.chosen_B), (self.prompt_B, self.rejected_B)
        return PairLogps(
            policy_XY[chosen],
            policy_XY[rejected],
            self.lengths_Y[self.chosen_B],
            self.lengths_Y[self.rejected_B],
            reference_XY[chosen],
            reference_XY[rejected],
        )

    def loss(self, loss: PreferenceLoss, policy_XY: Tensor, reference_XY: Tensor) -> Tensor:
        """The expectation of a loss over the pairs, a scalar: an exact sum where they are all that can occur."""
        pair = self.logps(policy_XY, reference_XY)
        if loss.couples_batch:
            # KLIEP's mean over the batch counts each pair once. Times B and its weight, e^{s_l} counts as it should.
            shift_B = (self.weight_B * len(self.weight_B)).log()
            assert pair.reference_rejected_B is not None
            pair = replace(pair, reference_rejected_B=pair.reference_rejected_B - shift_B)
        return (self.weight_B * loss(pair).loss_B).sum()

    def marginals(self, prompts: int) -> tuple[Tensor, Tensor]:
        """Probabilities (X, Y) of the chosen and of the rejected response, given the prompt."""
        shape = (prompts, len(self.lengths_Y))
        zero_XY = torch.zeros(shape, dtype=torch.float64)
        chosen_XY = zero_XY.index_put((self.prompt_B, self.chosen_B), self.weight_B, accumulate=True)
        rejected_XY = zero_XY.index_put((self.prompt_B, self.rejected_B), self.weight_B, accumulate=True)
        return chosen_XY / chosen_XY.sum(1, keepdim=True), rejected_XY / rejected_XY.sum(1, keepdim=True)


def every_pair(probability_XYY: Tensor) -> Pairs:
    """All pairs of two responses to a prompt; the chosen one is the second index of their probabilities."""
    prompts, responses, _ = probability_XYY.shape
    index = torch.cartesian_prod(torch.arange(prompts), torch.arange(responses), torch.arange(responses))
    prompt_B, chosen_B, rejected_B = index.unbind(dim=1)
    weight_B = probability_XYY.flatten() / prompts
    return Pairs(prompt_B, chosen_B, rejected_B, weight_B, torch.ones(responses, dtype=torch.float64))


def fewest(pairs: Pairs) -> Pairs:
    """At most 2 Y pairs a prompt in which chosen and rejected responses are as probable as in all of them.

    Enough for a loss that takes the two apart, as DIL's do and DPO does not: its expectation is the same.
    """
    prompts = int(pairs.prompt_B.max()) + 1
    parts = []
    for x, (chosen_Y, rejected_Y) in enumerate(zip(*pairs.marginals(prompts), strict=True)):
        ends = chosen_Y.cumsum(0)[:-1], rejected_Y.cumsum(0)[:-1]
        edges = torch.cat([torch.zeros(1), *ends, torch.ones(1)]).sort().values
        middles = (edges[1:] + edges[:-1]) / 2
        at = [torch.full((len(middles),), x), *(torch.searchsorted(end, middles) for end in ends)]
        parts.append((*at, edges.diff() / prompts))
    prompt_B, chosen_B, rejected_B, weight_B = (torch.cat(part) for part in zip(*parts, strict=True))
    return Pairs(prompt_B, chosen_B, rejected_B, weight_B, pairs.lengths_Y)


def demonstrations(chosen_XY: Tensor, rejected_XY: Tensor) -> Pairs:
    """Chosen and rejected responses drawn apart, from log-probs: the pairs that the theory of DIL speaks of."""
    return every_pair(chosen_XY.exp()[:, :, None] * rejected_XY.exp()[:, None, :])


def preferences(world: World, drawn_from_XY: Tensor | None = None) -> Pairs:
    """Two responses from the reference (or from `drawn_from_XY`), the chosen one by Bradley-Terry: sigma(r - r')."""
    from_XY = world.reference_XY if drawn_from_XY is None else drawn_from_XY
    beats_XYY = torch.sigmoid(world.reward_XY[:, :, None] - world.reward_XY[:, None, :])
    # Either of the two may be the one drawn first, hence the 2.
    return every_pair(2 * beats_XYY * from_XY.exp()[:, :, None] * from_XY.exp()[:, None, :])


def draw_pairs(pairs: Pairs, number: int, seed: int) -> Pairs:
    """`number` pairs drawn with replacement, each of the same weight."""
    generator = torch.Generator().manual_seed(seed)
    at_B = torch.multinomial(pairs.weight_B, number, replacement=True, generator=generator)
    weight_B = torch.full((number,), 1 / number, dtype=torch.float64)
    return replace(
        pairs,
        prompt_B=pairs.prompt_B[at_B],
        chosen_B=pairs.chosen_B[at_B],
        rejected_B=pairs.rejected_B[at_B],
        weight_B=weight_B,
    )
