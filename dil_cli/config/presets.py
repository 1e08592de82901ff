"""The published values of a loss on a model, as `conf/preset/LOSS_MODEL.yaml` holds them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import yaml

from dil_cli.config.paths import conf_dir


@dataclass(frozen=True)
class Preset:
    """What `loss=LOSS model=MODEL` takes: keys of the config to their values, and where these were published."""

    model: str
    values: dict[str, str]
    source: str


def presets_of(loss: str) -> list[Preset]:
    """The presets of a loss, by model."""
    models = [path.stem for path in sorted((conf_dir() / "model").glob("*.yaml"))]
    found = []
    for model in models:
        path = conf_dir() / "preset" / f"{loss}_{model}.yaml"
        if path.is_file():
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            source = str(content.pop("preset"))
            found.append(Preset(model, _flat(content), source))
    return found


def _flat(node: dict[str, Any], prefix: str = "") -> dict[str, str]:
    values: dict[str, str] = {}
    for key, value in node.items():
        values |= _flat(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": str(value)}
    return values
