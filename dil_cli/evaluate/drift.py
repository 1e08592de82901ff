"""What a checkpoint's numbers depend on must be what its run had, unless the user accepts another."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from dil_cli.config.schema import DataConfig, EvalConfig
from dil_cli.data.template import effective_template
from dil_cli.data.token_cache import tokenizer_fingerprint
from dil_cli.errors import DilError
from dil_cli.evaluate.target import Target

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEYS = {"tokenizer": "tokenizer_sha256", "template": "template_sha256", "data": "data_sha256"}
"""What can be accepted, and where manifest and facts have it."""


def reading_facts(tokenizer: PreTrainedTokenizerBase, data: DataConfig) -> dict[str, Any]:
    """Tokenizer and template by which text becomes tokens, as the manifest of a run has them."""
    template = effective_template(tokenizer, data)
    return {
        "tokenizer_sha256": tokenizer_fingerprint(tokenizer),
        "template_sha256": None if template is None else hashlib.sha256(template.encode()).hexdigest(),
    }


def check_drift(config: EvalConfig, target: Target, facts: Mapping[str, Any]) -> None:
    """Those of `facts` that the run's manifest has too must be the same; data that the user chose are not the run's.

    Raises:
        DilError: naming the first that is not.
    """
    for name in _drifted(config, target, facts):
        if name not in config.accept and target.run is not None:
            raise DilError(
                f"the {name} of {target.name} is not what its run had",
                f"{KEYS[name]} in {target.run.folder}/manifest.json",
                f"bring it back, or go on all the same: accept=[{name}]",
            )  # fmt: skip


@contextmanager
def blamed_on_drift(config: EvalConfig, target: Target, facts: Mapping[str, Any]) -> Iterator[None]:
    """What fails while this lasts is told with the drift that was accepted: it is the likely reason."""
    try:
        yield
    except DilError as error:
        accepted = [name for name in _drifted(config, target, facts) if name != "data"]
        if accepted:
            error.fix = f"bring back the run's {' and '.join(accepted)}, which was accepted as another"
        raise


def _drifted(config: EvalConfig, target: Target, facts: Mapping[str, Any]) -> list[str]:
    if target.run is None:
        return []
    ours = [name for name in KEYS if name != "data" or config.data is None]
    return [name for name in ours if KEYS[name] in facts and facts[KEYS[name]] != target.run.manifest.get(KEYS[name])]


def check_start(config: EvalConfig, target: Target, path: str, weights_sha256: str) -> None:
    """The model that a run started from must be what it was, unless the user names or accepts another.

    Raises:
        DilError: when it is not.
    """
    run = target.run
    if run is None or config.reference is not None or "reference" in config.accept:
        return
    if run.manifest.get("model", {}).get("weights_sha256") != weights_sha256:
        raise DilError(
            f"{path} is not the model any more that the run {run.folder.name} started from", f"model.path={path}",
            "bring it back, or go on all the same: accept=[reference]",
        )  # fmt: skip
