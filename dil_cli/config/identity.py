"""A run is its config: the plain form of it, and the hash that names its folder."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from enum import Enum
from typing import Any, TypeVar

from omegaconf import OmegaConf

from dil_cli.config import custom
from dil_cli.config.explain import explained
from dil_cli.config.schema import TrainConfig

T = TypeVar("T")

NOT_IDENTITY = (
    "output", "tracker", "device", "preset", "allow_custom", "resume", "profile", "optim.token_budget",
    "model.token_budget", "checkpoint.keep", "checkpoint.resume_minutes", "distributed",
)  # fmt: skip
"""Keys that change where and how a run is computed and shown, not what it computes."""


def plain(config: Any) -> Any:
    """A config dataclass as dicts, lists and scalars, for JSON and YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Enum):
        return config.value
    if isinstance(config, dict):
        return {str(key): plain(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [plain(value) for value in config]
    return config


def from_plain(kind: type[T], values: Mapping[str, Any]) -> T:
    """The dataclass that `plain` made `values` of, checked again.

    Raises:
        DilError: when a value is not one it takes.
    """
    with explained():
        made = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(kind), dict(values)))
    assert isinstance(made, kind)
    return made


def describe(config: TrainConfig) -> dict[str, Any]:
    """The whole config in plain form; the loss, whose dataclass is its kind, with its name; the user's own code."""
    described: dict[str, Any] = plain(config)
    described["loss"] = {"name": config.loss.name, **described["loss"]}
    if custom.LOADED:
        described["custom_sha256"] = dict(custom.LOADED)
    return described


def to_yaml(config: TrainConfig) -> str:
    """`describe` as YAML, to be read by a person."""
    return OmegaConf.to_yaml(OmegaConf.create(describe(config)))


def run_hash(config: TrainConfig, data_fingerprint: str) -> str:
    """Eight hex digits over the config and its data's content, less `NOT_IDENTITY`."""
    identity = describe(config)
    for key in NOT_IDENTITY:
        *groups, leaf = key.split(".")
        node = identity
        for group in groups:
            node = node[group]
        node.pop(leaf)
    text = json.dumps({"config": identity, "data": data_fingerprint}, sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]
