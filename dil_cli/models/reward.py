"""A reward model: sequence classification with one output, read one response at a time.

T tokens of a prompt and its response.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from dil_cli import hub
from dil_cli.config.schema import ModelConfig
from dil_cli.errors import DilError
from dil_cli.models.load import resolve_source

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


def load_reward_model(config: ModelConfig) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The model in float32 on the CPU, and its tokenizer.

    Raises:
        DilError: when it is missing, cannot be read, or has no trained head of one output.
    """
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from transformers.utils import logging

    for quiet in (logging.disable_progress_bar, logging.set_verbosity_error):
        silence: Any = quiet
        silence()
    source = resolve_source(config)
    if not Path(source).is_dir() and not hub.reachable():
        hub.work_offline()
    common: dict[str, Any] = {"revision": config.revision, "trust_remote_code": config.trust_remote_code}
    auto: Any = AutoModelForSequenceClassification
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(source, **common)
        model, report = auto.from_pretrained(
            source, dtype="float32", use_safetensors=True, output_loading_info=True, **common
        )
    except Exception as error:
        if not Path(source).is_dir() and not hub.reachable():
            raise hub.offline_error(source, "model", "model") from error
        first = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise DilError(
            f"the reward model {source} cannot be loaded: {first}", f"model.path={config.path}",
            "name a model that AutoModelForSequenceClassification loads",
        ) from error  # fmt: skip
    missing = sorted(report["missing_keys"])
    outputs = int(model.config.get_text_config().num_labels if missing else model.config.num_labels)
    if missing or outputs != 1:
        why = f"lacks {missing[0]}" if missing else f"has {outputs} outputs"
        raise DilError(
            f"{config.path} is no reward model: it {why}", f"model.path={config.path}",
            "name a sequence classifier with one output; a causal language model judges by judge=logprob",
        )  # fmt: skip
    return model, tokenizer
