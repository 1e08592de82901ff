"""A policy as it is trained: a whole model, or adapters on a frozen one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from dil_cli.config.adapting import PeftConfig
from dil_cli.config.schema import ModelConfig
from dil_cli.models.adapter_files import adapter_config, check_start
from dil_cli.models.adapters import add_adapter, describe_adapter
from dil_cli.models.load import Policy, load_policy, weights_fingerprint
from dil_cli.models.quantised import check_quantisation


def load_trained(config: ModelConfig, peft: PeftConfig, seed: int) -> Policy:
    """As `load_policy`; with `peft` the weights are frozen and a new adapter lies on them, or that of `model.path`.

    The reference is what the policy is before the first step: the weights without a new adapter, or with the one that
    is trained on (`Policy.as_reference`, `Policy.start_fingerprint`).

    Args:
        config: a whole model's, or an adapter's that is trained on.
        peft: which adapter.
        seed: of a new adapter's random half.

    Raises:
        DilError: as `load_policy`, and where model and adapter do not go together.
    """
    check_start(config, peft)
    if not peft.trains_adapter:
        return load_policy(config)
    if peft.quantised:
        check_quantisation()
    policy = load_policy(config, peft.quantised, peft.dropout or 0.0)
    if adapter_config(config.path) is None:
        base = str(Path(policy.source).resolve()) if Path(policy.source).is_dir() else policy.source
        policy = replace(policy, base_sha256=weights_fingerprint(policy.model))
        add_adapter(policy.model, peft, base, config.revision, seed)
    return replace(policy, notices=(*policy.notices, describe_adapter(policy.model)))
