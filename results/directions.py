"""Where a loss pushes the weights: the gradient of one batch, compared between losses."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from safetensors.torch import load_file
from torch import Tensor

from dil_cli.config.compose import compose
from dil_cli.data.load import load_pairs
from dil_cli.dynamics.measure import score_pairs
from dil_cli.losses import PreferenceLoss
from dil_cli.report.record import Record
from dil_cli.tracking.console import make_console
from dil_cli.train.prepare import Prepared, prepare
from dil_cli.train.step import Batch, accumulate_gradient
from results.grid import Arm

PAIRS = 16


def cosines(arms: Sequence[Arm], record: Record) -> tuple[dict[Arm, float], dict[Arm, float]]:
    """Cosine of each arm's gradient with that of the first, on the first training pairs.

    Returns:
        Of the model that training starts from, and of the policy that `record`'s run ended with.
    """
    config = compose("train", ["experiment=results/dynamics"])
    prepared = prepare(config, load_pairs(config.data, config.seed, True), make_console())
    pairs = prepared.train.pairs[:PAIRS]
    reference = score_pairs(prepared.policy.model, pairs, prepared.compute)
    batch = Batch(pairs, reference.policy_chosen_B, reference.policy_rejected_B)
    start = _cosines(arms, prepared, batch)
    folder = record.run.folder / str((record.run.result or {})["checkpoint"])
    # The head is tied to the embeddings and stored once.
    odd = prepared.policy.model.load_state_dict(load_file(folder / "model.safetensors"), strict=False)
    if odd.unexpected_keys or set(odd.missing_keys) - {"lm_head.weight"}:
        raise ValueError(f"{folder} does not hold the weights of {config.model.path}")
    return start, _cosines(arms, prepared, batch)


def _cosines(arms: Sequence[Arm], prepared: Prepared, batch: Batch) -> dict[Arm, float]:
    gradients = {arm: _gradient(arm, prepared, batch) for arm in arms}
    first = gradients[arms[0]]
    return {arm: float(torch.cosine_similarity(first, other, dim=0)) for arm, other in gradients.items()}


def _gradient(arm: Arm, prepared: Prepared, batch: Batch) -> Tensor:
    model = prepared.policy.model
    loss: PreferenceLoss = compose("train", list(arm.words)).loss
    model.zero_grad(set_to_none=True)
    accumulate_gradient(model, loss, batch, prepared.compute)
    return torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
