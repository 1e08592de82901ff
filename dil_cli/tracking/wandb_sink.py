"""Weights & Biases as a view of the run's record: the same rows under the same names.

Nothing W&B does can stop a run. Whatever fails is told in one line, and training goes on with the
record. W&B is never asked to prompt: it goes online only where it would find a key by itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

from dil_cli.config.schema import TrackerConfig, WandbMode
from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking.sink import Row, RunInfo, plain_row

INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 60.0
"""How long a run waits at its end for rows to be uploaded; what is left can be sent by `wandb sync`."""

TRUE = {"1", "true", "yes", "on"}


class WandbSink:
    """Logs every row to one W&B run.

    Args:
        config: mode, project, group, entity, tags.
        run_id: W&B's id; derived from the run folder's name, so that a rerun replaces its earlier try.
        note: is given the one line about a failure.
        init_timeout: seconds to wait for the server at the start.
    """

    def __init__(
        self,
        config: TrackerConfig,
        run_id: str,
        note: Callable[[str], None],
        init_timeout: float = INIT_TIMEOUT_S,
    ) -> None:
        self._config, self._run_id, self._note = config, run_id, note
        self._init_timeout = init_timeout
        self._run: Any = None
        self._online = False
        self._exit_code = 1

    def start(self, run: RunInfo) -> None:
        """Open the W&B run: online if asked for and possible, else in the run's folder."""
        try:
            mode = resolve_mode(self._config.mode)
            if mode is not WandbMode.disabled:
                self._open(run, mode)
            return
        except Exception as err:
            self._note(f"W&B cannot go online ({_reason(err)}); it is recorded in the run's folder")
        try:
            self._forget()
            self._open(run, WandbMode.offline)
        except Exception as err:
            self._note(f"W&B is left out ({_reason(err)}); the run keeps its own record")

    def step(self, row: Row) -> None:
        """Log the row of a step."""
        self._try(lambda run: run.log(plain_row(row)))

    def probe(self, row: Row) -> None:
        """Log the row of a measurement; it is a history row of its own, as in the record."""
        self._try(lambda run: run.log(plain_row(row)))

    def alarm(self, alarm: Alarm) -> None:
        """Put the alarm in the summary, and send it out where W&B is online."""
        self._try(lambda run: run.summary.update({f"alarm/{alarm.name}": alarm.message}))
        if self._online:
            self._try(lambda run: run.alert(title=f"{self._run_id}: {alarm.name}", text=alarm.message))

    def note(self, text: str) -> None:
        """Notes are for the user at the console."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Put the result's numbers in the summary as `result/...`."""
        scalars = {key: value for key, value in result.items() if isinstance(value, str | int | float)}
        self._try(lambda run: run.summary.update({f"result/{k}": v for k, v in plain_row(scalars).items()}))
        self._exit_code = 0

    def close(self) -> None:
        """End the W&B run; one that did not finish is marked as failed."""
        self._try(lambda run: run.finish(exit_code=self._exit_code))
        self._run = None

    def _open(self, run: RunInfo, mode: WandbMode) -> None:
        import wandb

        wanted = {
            "silent": True,
            "console": "off",
            "disable_git": True,
            "disable_code": True,
            "disable_job_creation": True,
            "init_timeout": self._init_timeout,
            "finish_timeout": FINISH_TIMEOUT_S,
        }
        known = {key: value for key, value in wanted.items() if key in wandb.Settings.model_fields}
        run.folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode=mode.value,
            dir=run.folder,
            id=self._run_id,
            name=run.name,
            project=self._config.project,
            group=self._config.group,
            entity=self._config.entity,
            tags=list(self._config.tags),
            config=run.config,
            settings=wandb.Settings(**known),
        )
        self._online = mode is WandbMode.online
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _forget(self) -> None:
        """Free the id of a run that could not be opened."""
        import wandb

        self._run = None
        wandb.teardown()

    def _try(self, act: Callable[[Any], object]) -> None:
        """Do something with the W&B run; at the first failure W&B is given up for this run."""
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as err:
            self._run = None
            self._note(f"W&B stopped ({_reason(err)}); the run keeps its own record")


def resolve_mode(mode: WandbMode) -> WandbMode:
    """The mode to open: online, offline or disabled.

    WANDB_DISABLED wins over everything; WANDB_MODE decides for `auto` only; `auto` is online where a
    key is configured.

    Raises:
        RuntimeError: when online is asked for and no key is configured: W&B would prompt for one.
    """
    if os.environ.get("WANDB_DISABLED", "").lower() in TRUE:
        return WandbMode.disabled
    asked = os.environ.get("WANDB_MODE", "")
    if mode is WandbMode.auto and asked in {"online", "offline", "disabled"}:
        mode = WandbMode(asked)
    if mode in {WandbMode.offline, WandbMode.disabled}:
        return mode
    if key_configured():
        return WandbMode.online
    if mode is WandbMode.online:
        raise RuntimeError("no API key is configured, see wandb login")
    return WandbMode.offline


def key_configured() -> bool:
    """Whether W&B finds credentials for its server: variables, netrc, settings files. Asks no one, sends nothing."""
    import wandb
    from wandb.sdk.lib import wbauth

    host = wandb.setup(settings=wandb.Settings(silent=True)).settings.base_url
    return wbauth.authenticate_session(host=host, source="dil", prompt=False, update_session=False) is not None


def _reason(err: Exception) -> str:
    """Type and first line of an error, without the key should W&B ever quote it."""
    text = f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else ''}"
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:200]
