"""Weights & Biases as a view of the run's record: the same rows under the same names.

Nothing W&B does can stop a run. Whatever fails is told in one line, and training goes on with the
record. W&B is never asked to prompt: it goes online only where it would find a key by itself.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from dil_cli.config.schema import TrackerConfig, WandbMode
from dil_cli.dynamics.alarms import Alarm
from dil_cli.tracking.sink import Row, RunInfo, plain_row

INIT_TIMEOUT_S = 20.0
FINISH_TIMEOUT_S = 60.0
"""How long a run waits at its end for rows to be uploaded; what is left can be sent by `wandb sync`."""

NOT_ONLINE = "W&B cannot go online ({}); it is recorded in the run's folder"

TRUE = {"1", "true", "yes", "on"}


class WandbSink:
    """Logs every row to one W&B run.

    Args:
        config: mode, project, group, entity, tags.
        run_id: W&B's id; derived from the run folder's name, so that a rerun replaces its earlier try.
        say: is given the one line about a failure.
        init_timeout: seconds to wait for the server at the start.
        go_on: add to the run of this id instead of replacing it.
    """

    def __init__(
        self,
        config: TrackerConfig,
        run_id: str,
        say: Callable[[str], None],
        init_timeout: float = INIT_TIMEOUT_S,
        go_on: bool = False,
    ) -> None:
        self._config, self._say = config, say
        self._go_on = go_on
        self._run_id = re.sub(r"[/\\#?%:]", "-", run_id)[-64:]  # what W&B takes; a folder's hash stands last
        self._init_timeout = init_timeout
        self._run: Any = None
        self._online = False
        self._opened = False
        self._exit_code = 1

    def start(self, run: RunInfo) -> None:
        """Open the W&B run: online if asked for and possible, else in the run's folder."""
        self.open(run.name, run.folder, run.config)

    def open(self, name: str, folder: Path, config: dict[str, Any]) -> None:
        """As `start`, of a run that is known by its name, folder and resolved config alone."""
        # W&B's reports about itself keep a process alive for 20 s where the server does not answer
        os.environ.setdefault("WANDB_ERROR_REPORTING", "false")
        try:
            mode = resolve_mode(self._config.mode)
        except Exception as err:
            self._say(NOT_ONLINE.format(_reason(err)))
            mode = WandbMode.offline
        if mode is WandbMode.online:
            try:
                self._open(name, folder, config, mode)
                return
            except Exception as err:
                self._say(NOT_ONLINE.format(_reason(err)))
        if mode is not WandbMode.disabled:
            try:
                self._open(name, folder, config, WandbMode.offline)
            except Exception as err:
                self._run = None
                self._say(f"W&B is left out ({_reason(err)}); the run keeps its own record")

    def replay(self, rows: Sequence[dict[str, Any]]) -> None:
        """Log them again: the W&B run of the earlier process is replaced by this one."""
        for row in rows:
            if "alarm" in row:
                self._note_alarm(Alarm.of_row(row))
            else:
                self.step(row)

    def step(self, row: Row) -> None:
        """Log the row of a step."""
        self._try(lambda run: run.log(plain_row(row)))

    def probe(self, row: Row) -> None:
        """Log the row of a measurement; it is a history row of its own, as in the record."""
        self._try(lambda run: run.log(plain_row(row)))

    def alarm(self, alarm: Alarm) -> None:
        """Put the alarm in the summary, and send it out where W&B is online."""
        self._note_alarm(alarm)
        if self._online:
            self._try(lambda run: run.alert(title=f"{self._run_id}: {alarm.name}", text=alarm.message))

    def _note_alarm(self, alarm: Alarm) -> None:
        self.summary({f"alarm/{alarm.name}": alarm.message})

    def note(self, text: str) -> None:
        """Notes are for the user at the console."""

    def finish(self, result: Mapping[str, Any]) -> None:
        """Put the result's numbers in the summary as `result/...`."""
        scalars = {key: value for key, value in result.items() if isinstance(value, str | int | float)}
        self.summary({f"result/{key}": value for key, value in scalars.items()})
        self._exit_code = 0

    def summary(self, values: Row) -> None:
        """Put these in the summary."""
        self._try(lambda run: run.summary.update(plain_row(values)))

    def close(self) -> None:
        """End the W&B run; one that did not finish is marked as failed."""
        if not self._opened:
            return
        self._opened = False
        self._try(lambda run: run.finish(exit_code=self._exit_code))
        self._run = None
        with suppress(Exception):  # the run is over; nothing is lost with a service that does not answer
            _end_service(self._exit_code)

    def _open(self, name: str, folder: Path, config: dict[str, Any], mode: WandbMode) -> None:
        import wandb

        self._opened = True
        _end_service()
        wandb.setup(settings=wandb.Settings(silent=True))
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
        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            mode="online" if mode is WandbMode.online else "offline",
            dir=folder.resolve(),
            id=self._run_id,
            resume="allow" if self._go_on else None,
            name=name,
            project=self._config.project,
            group=self._config.group,
            entity=self._config.entity,
            tags=list(self._config.tags),
            config=config,
            settings=wandb.Settings(**known),
        )
        self._online = mode is WandbMode.online
        self._run.define_metric("step")
        self._run.define_metric("*", step_metric="step")

    def _try(self, act: Callable[[Any], object]) -> None:
        """Do something with the W&B run; at the first failure W&B is given up for this run."""
        if self._run is None:
            return
        try:
            act(self._run)
        except Exception as err:
            self._run = None
            self._say(f"W&B stopped ({_reason(err)}); the run keeps its own record")


def add_to_summary(
    tracker: TrackerConfig,
    folder: Path,
    name: str,
    config: dict[str, Any],
    values: Row,
    say: Callable[[str], None],
) -> None:
    """Put `values` in the W&B summary of the finished run in `folder`.

    Offline that is a second part of the run beside the first; `wandb sync` sends both as one run.
    """
    sink = WandbSink(tracker, folder.name, say, go_on=True)
    sink.open(name, folder, config)
    sink.summary(values)
    sink.finish({})
    sink.close()


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


def _end_service(exit_code: int = 0) -> None:
    """End this process's W&B service and use no other's, so that every run has one of its own.

    One from the environment may be a dead parent's, and a run that could not be opened keeps its id.
    """
    import wandb

    wandb.teardown(exit_code=exit_code)
    os.environ.pop("WANDB_SERVICE", None)


def _reason(err: Exception) -> str:
    """Type and first line of an error, without the key should W&B ever quote it."""
    text = f"{type(err).__name__}: {str(err).strip().splitlines()[0] if str(err).strip() else ''}"
    key = os.environ.get("WANDB_API_KEY")
    return (text.replace(key, "***") if key else text)[:200]
