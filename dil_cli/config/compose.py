"""Compose a config with Hydra and hand it on as a checked dataclass."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from importlib import import_module
from pathlib import Path
from typing import Any

import hydra
from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig, OmegaConf, flag_override
from omegaconf.errors import OmegaConfBaseException

from dil_cli.config import custom, judging, planning, schema
from dil_cli.config.adapting import scaled
from dil_cli.config.arguments import quoted, split_argv
from dil_cli.config.explain import check_keys, explained
from dil_cli.config.help import ROOTS
from dil_cli.config.identity import plain
from dil_cli.config.known_code import leaves, only_known_code
from dil_cli.config.paths import conf_dir, config_dirs
from dil_cli.errors import DilError, RunFailed, Told, speaks
from dil_cli.losses import PreferenceLoss, check_loss, registry
from dil_cli.losses.check import place_of
from dil_cli.secrets import hidden, name_of_secret

STOPS = {"--cfg", "-c", "--info", "-i", "--hydra-help", "--version", "--shell-completion", "-sc"}
"""Options that answer and start nothing."""
PACKAGES = {"eval": "evaluate"}
"""Packages that are not named as their command, which Python has a word for."""
ENDED = {DilError.exit_code, RunFailed.exit_code}
"""Exit codes of a job that is over, unlike those of one that was stopped."""
OWN_FOLDER = "."
"""`hydra.run.dir` as the root configs set it: the run names its own folder."""


_registered: dict[str, type[PreferenceLoss]] = {}
"""The losses whose schemas Hydra has; an earlier command of this process may have brought others."""


def register_schemas() -> None:
    """Put every dataclass where YAML can inherit it: `defaults: [/schema/loss/ukl@_here_]`; and resolvers."""
    OmegaConf.register_new_resolver("times", times, replace=True)
    OmegaConf.register_new_resolver("scaled", scaled, replace=True)
    if _registered == registry.LOSSES:  # it takes almost as long as composing a config
        return
    store = ConfigStore.instance()
    for name, node in planning.ROOTS.items():
        store.store(group="schema", name=name, node=node)
    for name, benchmark in schema.BENCHMARKS.items():
        store.store(group="schema/benchmark", name=name, node=benchmark)
    for name, judge in judging.JUDGES.items():
        store.store(group="schema/judge", name=name, node=judge)
    for name in ("model", "data", "optim", "peft", "tracker"):
        store.store(group="schema", name=name, node=getattr(schema, f"{name.capitalize()}Config"))
    store.repo["schema"].pop("loss", None)
    _registered.clear()
    for name, loss in registry.LOSSES.items():
        store.store(group="schema/loss", name=name, node=loss_schema(loss))
    _registered.update(registry.LOSSES)


def times(factor: float, number: int) -> int:
    """`${times:5,${model.batch_size}}` in YAML: a whole number that follows another, rounded."""
    return round(factor * number)


def loss_schema(loss: type[PreferenceLoss]) -> DictConfig:
    """A loss's fields as a config; a mapping among them takes any key, as `loss.terms.dpo=0.9` needs.

    Raises:
        DilError: when a field has a type that no config can hold.
    """
    try:
        node = OmegaConf.structured(loss)
    except OmegaConfBaseException as error:
        reason = f"{getattr(error, 'full_key', '')}: {str(error).splitlines()[0]}"
        raise DilError(
            f"a config cannot hold a field of class {loss.__name__} ({reason})",
            where=place_of(loss),
            fix="float, int, bool, str, an Enum, or one of them | None",
        ) from error
    for field in dataclasses.fields(loss):  # type: ignore[arg-type]
        if isinstance(node._get_node(field.name), DictConfig):
            OmegaConf.set_struct(node._get_node(field.name), False)
    assert isinstance(node, DictConfig)
    return node


def run_command(command: str, argv: list[str]) -> int:
    """Run a command on the config that `argv` composes; Hydra keeps --cfg, --info and --multirun.

    Args:
        command: names the root config and the package whose `run.run` does the work, for example "train".
            It takes the config and the folder of `hydra.run.dir`, None unless the user chose one.
        argv: the command line after the command's name.

    Returns:
        The exit code of the job, or the first that is not 0 among several.

    Raises:
        DilError: for anything wrong in `argv` or in the files it names.
    """
    for word in argv:  # before Hydra, which repeats all of them where a job fails
        refuse_secret(word.partition("=")[0], word)
    overrides, options = split_argv(command, argv)
    root = ROOTS.get(command, command)
    if command == "sweep" and not STOPS & set(options):
        options = ["--multirun", *options]
    if "--dry-run" in options and not STOPS & set(options):
        return dry_run(argv, overrides, options)
    custom.load(argv)
    register_schemas()
    os.environ["HYDRA_FULL_ERROR"] = "1"
    sys.argv = [f"dil {command}", *overrides, *(word for word in options if word != "--dry-run")]
    codes: list[int] = []
    begun: list[DictConfig] = []
    own_code, sweep = dict(custom.LOADED), os.getpid()

    def job(composed: DictConfig) -> int:
        begun.append(composed)
        # Hydra prints a line of its own before it re-raises what a job raises.
        try:
            end_with(sweep)
            custom.adopt(own_code)  # the job of a parallel sweep is another process
            config = to_dataclass(composed)
            run = import_module(f"dil_cli.{PACKAGES.get(root, root)}.run").run
            codes.append(run(config, chosen_folder(str(HydraConfig.get().run.dir))))
        except DilError as error:
            if os.environ.get("DIL_TRACEBACK"):
                raise
            if speaks():
                print(hidden(str(error)), file=sys.stderr)
            codes.append(error.exit_code)
        except Told as told:  # a launcher waits for what the job gives back
            if told.code not in ENDED:
                raise
            codes.append(told.code)
        return codes[-1]

    absent = _absent(overrides)
    entry = hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=root)(job)
    try:
        with explained(command, [*overrides, *options]), only_known_code(overrides):
            entry()
    except (ValueError, TypeError, OSError) as error:
        if begun:
            raise
        _remove_empty(absent)
        # Hydra's own: a number where a choice is wanted, a run folder that cannot be made.
        raise DilError(str(error).splitlines()[0], f"dil {command}", f"dil {command} --help") from error
    if DilError.exit_code in codes:
        _remove_empty(absent)
    return next((code for code in codes if code), 0)


def dry_run(argv: list[str], overrides: list[str], options: list[str]) -> int:
    """`dil train --dry-run`, past Hydra's own start, which makes the folder of `hydra.run.dir`.

    Raises:
        DilError: as `run_command`, and for several runs at once.
    """
    if {"-m", "--multirun"} & set(options):
        raise DilError(
            "a dry run is of one run, and these are several", f"dil train {' '.join(argv)}",
            "dil sweep --dry-run lists them; dil train --dry-run with one value of each",
        )  # fmt: skip
    config, folder = compose_alone("train", overrides, argv)
    return int(import_module("dil_cli.train.dry_run").run(config, folder))


def _absent(overrides: Sequence[str]) -> list[Path]:
    """The folder of `hydra.run.dir=` and those above it that are not there: Hydra makes them before any check."""
    chosen = next((word.partition("=")[2] for word in overrides if word.startswith("hydra.run.dir=")), "").strip("'\"")
    folder = Path(chosen).resolve()
    return [path for path in (folder, *folder.parents) if not os.path.lexists(path)]


def _remove_empty(folders: Sequence[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def end_with(sweep: int) -> None:
    """Let a process of the joblib launcher end when the sweep's is gone: killed, it could not end them.

    Jobs of Slurm and submitit are meant to outlive the sweep that gave them away.
    """
    name = "end-with-sweep"
    watched = any(thread.name == name for thread in threading.enumerate())  # by the process's first job
    if watched or not multiprocessing.current_process().name.startswith("LokyProcess") or os.getppid() != sweep:
        return

    def watch() -> None:
        while os.getppid() == sweep:
            time.sleep(1)
        os._exit(1)

    threading.Thread(target=watch, name=name, daemon=True).start()


def compose(command: str, overrides: list[str]) -> schema.TrainConfig:
    """The dataclass that `dil COMMAND OVERRIDES` would run with.

    Raises:
        DilError: as `run_command`.
    """
    config: schema.TrainConfig = compose_alone(command, overrides, overrides)[0]
    return config


def compose_alone(command: str, overrides: list[str], argv: Sequence[str]) -> tuple[Any, Path | None]:
    """The config and the folder that the user chose; nothing is made or started, as Hydra's own main would.

    Args:
        command: names the root config.
        overrides: as they are typed.
        argv: the whole command line, where `--config-dir` may stand.

    Raises:
        DilError: as `run_command`.
    """
    custom.load(argv)
    register_schemas()
    folders = [folder.resolve() for folder in config_dirs(argv)]
    gone = next((folder for folder in folders if not folder.is_dir()), None)
    if gone is not None:
        raise DilError(f"Additional config directory '{gone}' not found", f"dil {command}", f"dil {command} --help")
    paths = ",".join(quoted(f"file://{folder}") for folder in folders)
    more = [f"hydra.searchpath=[{paths}]"] if folders else []
    try:
        with explained(command, overrides), hydra.initialize_config_dir(str(conf_dir()), version_base="1.3"):
            whole = hydra.compose(ROOTS.get(command, command), [*overrides, *more], return_hydra_config=True)
    except (ValueError, TypeError) as error:  # Hydra's own, as in `run_command`
        raise DilError(str(error).splitlines()[0], f"dil {command}", f"dil {command} --help") from error
    with explained(command, overrides):
        config = _without_hydra(whole)
    return config, chosen_folder(str(HydraConfig.get().run.dir))


def compose_job(loader: ConfigLoader, sweep: DictConfig, overrides: Sequence[str]) -> schema.TrainConfig:
    """The dataclass of one job of a sweep, whose own config is `sweep`.

    Raises:
        DilError: as `run_command`.
    """
    with explained("sweep", overrides):
        config: schema.TrainConfig = _without_hydra(loader.load_sweep_config(sweep, list(overrides)))
    return config


def _without_hydra(composed: DictConfig) -> Any:
    """The config once Hydra's own part has given what the rest refers to."""
    HydraConfig.instance().set_config(composed)
    with flag_override(composed, ["struct", "readonly"], [False, False]):
        del composed["hydra"]
    return to_dataclass(composed)


def to_dataclass(composed: DictConfig) -> Any:
    """Resolve and build a config of `planning.ROOTS`; every `__post_init__` check runs here."""
    if OmegaConf.get_type(composed) is schema.EvalConfig:
        with explained("eval"):
            check_keys(composed, "eval")
            return without_secrets(OmegaConf.to_object(composed))
    with explained():
        if OmegaConf.get_type(composed, "loss") not in registry.LOSSES.values():
            raise DilError(
                "the loss has no schema, so nothing says what it is",
                where="loss/*.yaml of --config-dir",
                fix="defaults: [/schema/loss/NAME@_here_] at the top of its YAML",
            )
        check_keys(composed, "plan" if OmegaConf.get_type(composed) is planning.PlanConfig else "train")
        config = without_secrets(OmegaConf.to_object(composed))
    assert isinstance(config, schema.TrainConfig)
    if config.allow_custom and not custom.LOADED:
        raise DilError(
            "allow_custom counts on the command line only, a YAML cannot allow its own code",
            where="allow_custom: true",
            fix="leave it out of the YAML and add allow_custom=true to the command",
        )
    check_loss(config.loss)
    return config


def without_secrets(config: Any) -> Any:
    """`config` as it is: it is written to the run's folder, so that no key may be in it."""
    for key, value in leaves(plain(config)):
        refuse_secret(key, f"{key} {value}")
    return config


def refuse_secret(key: str, text: str) -> None:
    """`text`, of which `key` tells the user where it stands, must hold no secret of the environment.

    Raises:
        DilError: naming the variable that has it.
    """
    if variable := name_of_secret(text):
        raise DilError(
            f"{hidden(key)} holds what {variable} holds, and a config is written down",
            hidden(key), f"leave it out; what needs {variable} reads it from the environment",
        )  # fmt: skip


def chosen_folder(chosen: str) -> Path | None:
    """The folder of `hydra.run.dir=...`, or None when the run names its own."""
    return None if chosen == OWN_FOLDER else Path(chosen).resolve()
