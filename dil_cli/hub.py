"""Is the Hugging Face hub needed, and can it be reached? Asked once, before anything that would hang."""

from __future__ import annotations

import os
import socket
import sys
from functools import cache
from urllib.parse import urlsplit

from dil_cli.errors import DilError

TIMEOUT_S = 4.0


def work_offline() -> None:
    """Keep transformers and datasets off the network, whether or not they are imported already."""
    for name in ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE"):
        os.environ[name] = "1"
    for module in ("huggingface_hub.constants", "datasets.config"):
        if module in sys.modules:  # they read the environment once, when imported
            sys.modules[module].HF_HUB_OFFLINE = True  # type: ignore[attr-defined]


@cache
def reachable() -> bool:
    """Whether the hub (or HF_ENDPOINT) accepts a connection within a few seconds."""
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}:
        return False
    endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    target = urlsplit(proxy) if proxy else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    try:
        with socket.create_connection((target.hostname or "", port), timeout=TIMEOUT_S):
            return True
    except OSError:
        return False


def offline_error(repo: str, kind: str, key: str) -> DilError:
    """The error for a hub repository that is neither cached nor reachable.

    Args:
        repo: hub id, for example "org/name".
        kind: "model" or "data set".
        key: the config key that would take a local folder, for example "model.path".
    """
    return DilError(
        f"the {kind} {repo} is not on this machine and the hub cannot be reached (offline)",
        where=f"{key}={repo}",
        fix=f"download it where there is a network, then {key}=/path/to/folder",
    )
