"""`dil cache verify`: load a reference's model again and compute a sample of its values anew."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli import hub
from dil_cli.cache.contents import ReferenceEntry, find, references
from dil_cli.cache.listing import SHOWN_DIGITS, model_name
from dil_cli.config.schema import Device, ModelConfig, WeightType
from dil_cli.dynamics.measure import Compute, score_pairs
from dil_cli.errors import DilError
from dil_cli.models.load import load_policy, weights_fingerprint
from dil_cli.models.reference_cache import RECORD, Scored, identify
from dil_cli.train.preflight import TOLERANCE, relative_difference
from dil_cli.train.ready import pick_device
from dil_cli.types import TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedModel

TOKEN_BUDGET = 4096
NOTHING = np.empty(0, np.int32)


def verify(cache: Path, key: str | None, sample: int, trust_remote_code: bool) -> int:
    """Recompute up to `sample` values of the reference `key`, or of each one; prints a line a reference.

    Returns:
        0 if all agree and no file is damaged, else 1.

    Raises:
        DilError: for an unknown key, or a model that is not there or not the one any more; of several references,
            the others are verified first.
    """
    entries = references(cache)
    entries = [find(entries, key)] if key is not None else entries
    if not entries:
        print(f"no reference is cached in {cache}")
    refused: DilError | None = None
    good = True
    for entry in entries:
        name = f"{entry.key[:SHOWN_DIGITS]} ({model_name(entry)})"
        for path, reason in entry.damaged.items():
            print(f"{name}: {path.name} cannot be used ({reason})")
        try:
            difference, count, tolerance = _recompute(entry, sample, trust_remote_code)
        except DilError as error:
            refused = refused or error
            print(f"{name}: not verified, {error.what}")
            continue
        fine = difference <= tolerance
        verdict = (
            "agree"
            if fine and count
            else "are damaged, all of them"
            if fine
            else f"DIFFER by more than {tolerance:g}: dil cache prune {entry.key[:SHOWN_DIGITS]}"
        )
        extent = f"{count} of {entry.responses:,} responses computed again"
        print(f"{name}: {extent}, largest relative difference {difference:.1e}: they {verdict}")
        good = good and fine and not entry.damaged
    if refused is not None:
        raise refused
    return 0 if good else 1


def _recompute(entry: ReferenceEntry, sample: int, trust_remote_code: bool) -> tuple[float, int, float]:
    """The largest relative difference, the number of responses, and what difference is allowed."""
    kept = [one for column in entry.columns for one in column.sample_S]
    if not kept:
        return 0.0, 0, 0.0
    count = min(sample, len(kept))
    chosen = [kept[i * len(kept) // count] for i in range(count)]
    bf16 = str(entry.record.get("compute")).startswith("bf16")
    model = _load(entry, trust_remote_code)
    now, then = _scores(model, chosen, bf16)
    return relative_difference(now, then), count, TOLERANCE[bf16]


def _scores(model: PreTrainedModel, chosen: list[Scored], bf16: bool) -> tuple[Any, Any]:
    import torch

    pairs = [TokenisedPair(row, one.prompt, one.response, NOTHING) for row, one in enumerate(chosen, start=1)]
    device = next(model.parameters()).device
    compute = Compute(device=device, bf16=bf16, token_budget=TOKEN_BUDGET, pad_id=0)
    now_N = score_pairs(model, pairs, compute).policy_chosen_B
    return now_N, torch.tensor([one.logp for one in chosen])


def _load(entry: ReferenceEntry, trust_remote_code: bool) -> PreTrainedModel:
    """The reference's model on the device, exactly as it was.

    Raises:
        DilError: when it is not recorded, not there, or another one now.
    """
    short, where = entry.key[:SHOWN_DIGITS], str(entry.path / RECORD)
    source = entry.record.get("model")
    if not isinstance(source, dict) or not isinstance(source.get("path"), str):
        raise DilError(f"reference {short} does not say which model it is of", where, f"dil cache prune {short}")
    path = source["path"]
    if source.get("trust_remote_code") and not trust_remote_code:
        raise DilError(
            f"{path} needs code from its repository to run", where,
            f"read that code, then dil cache verify {short} --trust-remote-code",
        )  # fmt: skip
    if path.startswith("bundled:") or Path(path).is_dir():
        hub.work_offline()
    config = ModelConfig(
        path=path, revision=source.get("revision"), dtype=WeightType(source.get("dtype", "fp32")),
        trust_remote_code=bool(source.get("trust_remote_code")),
        lr=1e-6, batch_size=1, max_length=2, max_prompt_length=1, token_budget=TOKEN_BUDGET,
    )  # fmt: skip
    model = load_policy(config).model
    now = identify(model, weights_fingerprint(model), str(entry.record.get("compute")))
    if now.key != entry.key:
        changed = [name for name, value in now.facts.items() if value != entry.record.get(name)]
        raise DilError(
            f"{path} is not what reference {short} was computed with ({', '.join(changed)} changed)", where,
            f"put the model back, or dil cache prune {short}",
        )  # fmt: skip
    on_device: Any = model  # the wrapper transformers puts round `to` has lost its types
    return on_device.to(pick_device(Device.auto))  # type: ignore[no-any-return]
