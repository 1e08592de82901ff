"""Is the Hugging Face hub needed, and can it be reached? Asked once, before anything that would hang."""

from __future__ import annotations

import os
import socket
import sys
import threading
from contextlib import suppress
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


def may_be_id(name: str) -> bool:
    """Whether a name that is no folder here can be a hub id, `name` or `org/name`, or can only mean a folder."""
    return not name.startswith(("/", ".", "~")) and name.count("/") <= 1


def address() -> str:
    """Where the hub is, HF_ENDPOINT's word included."""
    return os.environ.get("HF_ENDPOINT") or "https://huggingface.co"


def told_offline() -> bool:
    """Whether HF_HUB_OFFLINE says to keep off the hub."""
    return os.environ.get("HF_HUB_OFFLINE", "").lower() in {"1", "true", "yes", "on"}


@cache
def reachable() -> bool:
    """Whether the hub accepts a connection within a few seconds."""
    return not told_offline() and answers(address())


def answers(url: str) -> bool:
    """Whether the server of a URL, or the proxy on the way to it, accepts a connection within a few seconds."""
    endpoint = urlsplit(url)
    proxy = os.environ.get("HTTPS_PROXY") or os.environ.get("https_proxy")
    target = urlsplit(proxy) if proxy else endpoint
    port = target.port or (443 if target.scheme == "https" else 80)
    connected = threading.Event()

    def connect() -> None:
        with suppress(OSError), socket.create_connection((target.hostname or "", port), timeout=TIMEOUT_S):
            connected.set()

    # In a thread: the timeout of a socket does not cover a name server that never answers.
    attempt = threading.Thread(target=connect, daemon=True)
    attempt.start()
    attempt.join(TIMEOUT_S + 1)
    return connected.is_set()


def offline_error(repo: str, kind: str, group: str) -> DilError:
    """The error for a hub repository that is neither cached nor reachable.

    Args:
        repo: hub id, for example "org/name".
        kind: "model" or "data set".
        group: the config group whose `path` takes a folder too, "model" or "data".
    """
    return DilError(
        f"the {kind} {repo} is not on this machine and the hub cannot be reached (offline)",
        where=f"{group}.path={repo}",
        fix=f"download it where there is a network, then {group}.path=/path/to/folder",
    )
