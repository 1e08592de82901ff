"""One epoch of each loss on the bundled model and data, as `dil train` runs it: `make losses-epoch`, about an hour.

The settings are those of the loss's preset for Mistral-7B where it has one, the learning rate as the same multiple of
the model's own. Finished runs in outputs/losses-epoch are not run again.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest

from dil_cli.config.compose import compose
from dil_cli.config.presets import presets_of
from dil_cli.losses import LOSSES

OUTPUT = Path(__file__).resolve().parents[2] / "outputs" / "losses-epoch"

LIKELIHOOD_FIRST = {"sft", "cpo", "orpo", "rrhf", "dpop"}
"""At their published weights the term for the chosen likelihood outweighs the contrast: on these pairs they do as `sft`
does, both answers become likelier, the rejected one a little more."""

TERMS = ["loss.terms.dpo=0.9", "loss.terms.sft=0.1"]
"""`combine` is nothing without terms."""


def settings_at_tiny_scale(name: str) -> list[str]:
    """The preset's values as overrides; none for a loss without a preset."""
    if name == "combine":
        return TERMS
    preset = next((preset for preset in presets_of(name) if preset.model == "mistral7b"), None)
    values = dict(preset.values) if preset else {}
    if "model.lr" in values:
        tiny, mistral = (
            compose("train", [f"model={model}", "preset=none"]).model.lr for model in ("tiny", "mistral7b")
        )
        values["model.lr"] = f"{float(values['model.lr']) / mistral * tiny:g}"
    return [f"{key}={value}" for key, value in values.items()]


def test_a_preset_scales_with_the_model():
    assert settings_at_tiny_scale("simpo") == ["model.lr=0.00018", "loss.beta=2.0", "loss.gamma=1.6"]
    assert settings_at_tiny_scale("lsif") == []


@pytest.mark.epoch
@pytest.mark.parametrize("name", LOSSES)
def test_the_held_out_margin_or_likelihood_grows_and_all_is_finite(name: str, dil: Callable[..., object]):
    done = dil(
        "train", f"loss={name}", f"output={OUTPUT}", "tracker=none", "probe.times=1", *settings_at_tiny_scale(name),
        timeout=1500,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (folder,) = OUTPUT.glob(f"tiny-gsm8k_pairs-{name}-*")
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    values = [value for row in rows for value in row.values() if isinstance(value, float)]
    assert sum("grad_norm" in row for row in rows) == 53
    assert all(map(math.isfinite, values))
    end = json.loads((folder / "result.json").read_text())["end"]
    if name in LIKELIHOOD_FIRST:
        assert end["probe/delta/chosen"] > 0
        assert abs(end["probe/delta/margin"]) < 0.03
    else:
        assert end["probe/delta/margin"] > 0
