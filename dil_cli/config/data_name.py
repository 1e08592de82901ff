"""The name of held-out pairs: the choice of `data=` that they are, or their path's."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from dil_cli.config.identity import plain
from dil_cli.config.paths import conf_dir
from dil_cli.config.schema import DataConfig, DataSource

OF_TRAINING = ("limit", "label_noise", "notice")
"""Fields that leave the held-out pairs as they are."""
LENGTHS = ("max_length", "max_prompt_length")


def data_name(data: DataConfig) -> str:
    """`hh_sample` for what `data=hh_sample` gives, lengths apart; else the path's last part and six digits of a hash.

    The hash is of every setting that decides which pairs are held out and how they are read.
    """
    given = _deciding(plain(data))
    for path in sorted((conf_dir() / "data").glob("*.yaml")):
        if _deciding(_choice(path)) == given:
            return path.stem
    if data.source is DataSource.local:
        given["path"] = str(Path(data.path).expanduser().resolve())
    digest = hashlib.sha256(json.dumps(given, sort_keys=True).encode()).hexdigest()[:6]
    return f"{Path(data.path).name.partition('.')[0]}-{digest}"


def _choice(path: Path) -> dict[str, Any]:
    """The values of a YAML in conf/data, the rest as its schema has them."""
    own: Any = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    fields = dataclasses.fields(DataConfig)
    schema = {field.name: field.default for field in fields if field.default is not dataclasses.MISSING}
    return schema | {key: value for key, value in own.items() if key != "defaults"}


def _deciding(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key not in {*OF_TRAINING, *LENGTHS}}
