"""The hub, Weights & Biases, and which keys are set; never what they are."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit

from dil_cli import hub
from dil_cli.config.schema import DataSource, TrainConfig, WandbMode
from dil_cli.data.sources import read_split
from dil_cli.doctor.finding import Finding, error, ok, warning
from dil_cli.train.ready import is_local

WANDB_SERVER = "https://api.wandb.ai"


def hub_access(config: TrainConfig, told_offline: bool, reachable: Callable[[], bool]) -> Iterator[Finding]:
    """Whether the hub answers, and what that means for this config.

    Args:
        config: says whether the hub is wanted at all.
        told_offline: whether HF_HUB_OFFLINE was set before dil itself set it.
        reachable: waits for the answer, a few seconds at most.
    """
    wanted = [] if is_local(config.model.path) or not hub.may_be_id(config.model.path) else [config.model.path]
    wanted += [config.data.path] if config.data.source is DataSource.hub else []
    host = urlsplit(hub.address()).hostname or hub.address()
    facts = {"host": host, "offline_by_variable": told_offline, "wanted": wanted}
    there = reachable()
    means = f"; {', '.join(wanted)} must be on this machine" if wanted else "; these settings need nothing of it"
    elsewhere = "where there is a network: hf download NAME, then model.path=FOLDER or data.path=FOLDER here"
    if there:
        yield ok("hub", f"{host} answers", reachable=True, **facts)
    elif told_offline:
        yield warning(
            "hub", f"not asked, HF_HUB_OFFLINE is set{means}", f"unset HF_HUB_OFFLINE; or {elsewhere}",
            reachable=False, **facts,
        )  # fmt: skip
    else:
        yield warning(
            "hub", f"{host} does not answer (offline){means}",
            f"{elsewhere}; behind a proxy set HTTPS_PROXY, for a mirror HF_ENDPOINT", reachable=False, **facts,
        )  # fmt: skip


def data(config: TrainConfig, reachable: Callable[[], bool]) -> Iterator[Finding]:
    """The first row of the pairs, unless it would have to be downloaded."""
    from_hub = config.data.source is DataSource.hub and not Path(config.data.path).expanduser().exists()
    if from_hub and reachable():
        yield ok("data", f"{config.data.path}: from the hub, not looked at")
        return
    row = next(iter(read_split(config.data, config.data.train_split)), None)
    if row is None:
        yield error("data", f"{config.data.path} has not one row", "check the file: it is empty")
    else:
        columns = ", ".join(map(str, row.values))
        yield ok("data", f"{config.data.path} ({config.data.source.value}): columns {columns}")


def tracker(config: TrainConfig) -> Iterator[Finding]:
    """What W&B will do with a run, and why."""
    from dil_cli.tracking.wandb_sink import TRUE, resolve_mode

    asked = config.tracker.mode
    try:
        mode = resolve_mode(asked)
    except Exception as wrong:  # online without a key, or W&B itself is broken: a run goes on without
        yield warning(
            "wandb", f"a run cannot go online ({wrong}), and is recorded in its folder",
            "wandb login; or tracker=none leaves W&B out",
        )  # fmt: skip
        return
    variable = os.environ.get("WANDB_MODE", "")
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        why = "WANDB_DISABLED is set"
    elif asked is not WandbMode.auto:
        why = "tracker=none" if asked is WandbMode.disabled else f"tracker.mode={asked.value}"
    elif variable == mode.value:
        why = f"WANDB_MODE={variable}"
    else:
        why = "a key is configured" if mode is WandbMode.online else "no key is configured"
    facts = {"mode": mode.value, "why": why}
    if mode is WandbMode.offline:
        yield ok("wandb", f"offline: {why}; `wandb sync` uploads a run's folder, `wandb login` goes online", **facts)
    elif mode is WandbMode.online and not hub.answers(os.environ.get("WANDB_BASE_URL") or WANDB_SERVER):
        yield warning(
            "wandb", f"online: {why}; but its server does not answer, so runs wait for it, then record offline",
            "WANDB_MODE=offline spares the wait; wandb sync uploads later", **facts,
        )  # fmt: skip
    else:
        yield ok("wandb", f"{mode.value}: {why}", **facts)


def keys() -> Iterator[Finding]:
    """Which secrets are set, each as set or not set."""
    from huggingface_hub import get_token

    from dil_cli.tracking.wandb_sink import key_configured

    known: dict[str, Callable[[], bool]] = {
        "Hugging Face token": lambda: get_token() is not None,
        "W&B key": key_configured,
        "OPENAI_API_KEY": lambda: bool(os.environ.get("OPENAI_API_KEY")),
    }
    states = {}
    for name, is_set in known.items():
        try:
            states[name] = "set" if is_set() else "not set"
        except Exception as wrong:  # a library that is broken, or files of it that cannot be read
            states[name] = f"not known ({type(wrong).__name__})"
    yield ok("keys", ", ".join(f"{name} {state}" for name, state in states.items()), **states)
