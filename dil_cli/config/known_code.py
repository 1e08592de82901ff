"""Of what a config can make Hydra run, only what dil itself names: its launchers and its sweeper.

Hydra builds whatever class `_target_` names, callbacks and log handlers too, before the job begins. A YAML from
somebody else shall be as harmless as data, so that everything of this kind is refused; Python of a user's own goes
through `allow_custom=true` (`custom.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from hydra._internal.config_loader_impl import ConfigLoaderImpl
from omegaconf import DictConfig, OmegaConf

from dil_cli.errors import DilError

TARGETS = {
    "hydra._internal.core_plugins.basic_launcher.BasicLauncher",
    "hydra._internal.core_plugins.basic_sweeper.BasicSweeper",
    "hydra_plugins.dil_sweeper.DilSweeper",
    "hydra_plugins.hydra_joblib_launcher.joblib_launcher.JoblibLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.LocalLauncher",
    "hydra_plugins.hydra_submitit_launcher.submitit_launcher.SlurmLauncher",
}
LOG_PARTS = ("handlers", "formatters", "filters")
"""What names classes in a logging config."""

SHELL = "hydra.launcher.setup"
"""Shell commands of a Slurm job: the user's own on the command line, and nobody's in a YAML."""


@contextmanager
def only_known_code(overrides: Sequence[str]) -> Iterator[None]:
    """While this lasts, a config that would make Hydra run anything else is refused as soon as it is composed.

    Args:
        overrides: the words of the command line, which alone may hold shell commands.
    """
    # Hydra has no hook between composing a config and building what it names.
    load = ConfigLoaderImpl.load_configuration

    def checked(self: ConfigLoaderImpl, *args: Any, **kwargs: Any) -> DictConfig:
        composed = load(self, *args, **kwargs)
        check(composed, overrides)
        return composed

    ConfigLoaderImpl.load_configuration = checked  # type: ignore[method-assign]
    try:
        yield
    finally:
        ConfigLoaderImpl.load_configuration = load  # type: ignore[method-assign]


def check(composed: DictConfig, overrides: Sequence[str]) -> None:
    """Refuse a composed config, Hydra's part included, that names code.

    Raises:
        DilError: naming the first such key, and not what it was set to.
    """
    # Unresolved: a target behind an interpolation is none that is known.
    plain = OmegaConf.to_container(composed, resolve=False)
    for key, value in leaves(plain):
        if key.rpartition(".")[2] == "_target_" and value not in TARGETS:
            raise _refused(key, "a class to be run")
    hydra: Any = plain["hydra"] if isinstance(plain, dict) else {}
    for group in ("job_logging", "hydra_logging"):
        for part in LOG_PARTS:
            if (hydra.get(group) or {}).get(part):
                raise _refused(f"hydra.{group}.{part}", "classes to be run")
    if hydra.get("job", {}).get("env_set"):
        raise DilError(
            "hydra.job.env_set sets environment variables, which make other programs run code or hold keys",
            "hydra.job.env_set", "set them in the shell: NAME=value dil ...",
        )  # fmt: skip
    if (hydra.get("launcher") or {}).get("setup") and not any(word.startswith(f"{SHELL}=") for word in overrides):
        raise DilError(f"{SHELL} holds shell commands, which count on the command line only", SHELL, f"'{SHELL}=[...]'")


def leaves(node: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of dicts and lists within each other, each with its key in full; an item of a list has the list's."""
    if isinstance(node, dict):
        for key, value in node.items():
            yield from leaves(value, f"{prefix}.{key}" if prefix else str(key))
    elif isinstance(node, list):
        for value in node:
            yield from leaves(value, prefix)
    else:
        yield prefix, node


def _refused(key: str, what: str) -> DilError:
    return DilError(
        f"{key} names {what}, and a config is not code", key,
        "leave it out; a loss of your own: --config-dir DIR and allow_custom=true (docs/custom_loss.md)",
    )  # fmt: skip
