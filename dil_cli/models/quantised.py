"""Weights of linear layers in four bits, by bitsandbytes (QLoRA, arXiv 2305.14314). Not run here: it needs a GPU."""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

from dil_cli.errors import DilError

INSTALL = "pip install 'dil[quant]', on a machine with an NVIDIA GPU; or peft=lora"


def check_quantisation() -> None:
    """What four bits need must be here.

    Raises:
        DilError: naming what is not.
    """
    import torch

    if find_spec("bitsandbytes") is None:
        raise DilError("weights in four bits need bitsandbytes, which is not installed", "peft=qlora", INSTALL)
    if not torch.cuda.is_available():
        raise DilError("weights in four bits need a CUDA device, and there is none", "peft=qlora", "peft=lora")


def four_bits() -> dict[str, Any]:
    """What `from_pretrained` takes: nf4 with doubly quantised scales, multiplied in bfloat16, on the first GPU."""
    import torch
    from transformers import BitsAndBytesConfig

    how: Any = BitsAndBytesConfig  # untyped in transformers
    config = how(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16,
    )  # fmt: skip
    return {"quantization_config": config, "device_map": {"": "cuda:0"}}
