"""Turn what Hydra and OmegaConf raise into our errors: what, where, fix."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import get_args, get_type_hints

from hydra.errors import HydraException, MissingConfigException, OverrideParseException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import (
    InterpolationKeyError,
    InterpolationResolutionError,
    MissingMandatoryValue,
    OmegaConfBaseException,
    ValidationError,
)
from yaml import YAMLError

from dil_cli.config import custom
from dil_cli.config.help import choices
from dil_cli.config.judging import JUDGES
from dil_cli.config.paths import conf_dir, config_dirs
from dil_cli.config.planning import ROOTS
from dil_cli.config.schema import BENCHMARKS, TrainConfig
from dil_cli.errors import DilError
from dil_cli.losses import registry
from dil_cli.losses.check import place_of


@contextmanager
def explained(command: str = "train", argv: Sequence[str] = ()) -> Iterator[None]:
    """Re-raise Hydra's and OmegaConf's errors as `DilError`; `argv` shows where a value came from."""
    try:
        yield
    except RecursionError as error:
        raise DilError("a value in the config holds itself", f"dil {command}", "take the YAML's *alias out") from error
    except MissingConfigException as error:
        raise _missing_choice(error, command, argv) from error
    except OverrideParseException as error:
        key, equals, _ = str(error.override).partition("=")
        shown = f"{key}=***" if equals and key.lstrip("+").startswith("judge.") else error.override  # it may hold a key
        raise DilError(
            f"'{shown}' is not of the form key=value",
            where=f"dil {command} {shown}",
            fix="key=value; quote what the shell or Hydra would split: 'data.path=\"my file.jsonl\"'",
        ) from error
    except HydraException as error:
        cause = error.__cause__ or error.__context__
        if isinstance(cause, OmegaConfBaseException):
            raise _bad_value(cause, command, argv, file=_yaml_of(error)) from error
        raise _bad_override(error, command) from error
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{mark.name}, line {mark.line + 1}" if mark else ""
        raise DilError(
            f"the YAML cannot be read: {getattr(error, 'problem', error)}", where, "mend this line"
        ) from error
    except OmegaConfBaseException as error:
        raise _bad_value(error, command, argv) from error


def known_keys(config: type = TrainConfig, prefix: str = "") -> list[str]:
    """Every key a config can have, groups included, with those of all losses."""
    keys: list[str] = []
    types = get_type_hints(config)
    for f in dataclasses.fields(config):
        key = prefix + f.name
        keys.append(key)
        chosen = {"loss": registry.LOSSES, "benchmark": BENCHMARKS}.get(key)
        nested = chosen.values() if chosen else [types[f.name], *get_args(types[f.name])]
        for kind in nested:
            if dataclasses.is_dataclass(kind) and isinstance(kind, type):
                keys += known_keys(kind, f"{key}.")
    return list(dict.fromkeys(keys))


def unknown_key(key: str, command: str, value: str = "", owner: type | None = None) -> DilError:
    """The error for a key that the config does not have, with the nearest that it has.

    Args:
        key: in full, for example "loss.beta".
        command: whose config it is.
        value: what it was to be set to.
        owner: the dataclass of the group it was looked for in, if that is known.
    """
    group, _, leaf = key.rpartition(".")
    if group == "judge" and value and any(word in leaf.lower() for word in ("key", "token", "secret", "password")):
        return DilError(
            f"no key '{key}' here; what it was set to may be a secret, and is shown nowhere",
            f"dil {command} {key}=***",
            "export OPENAI_API_KEY=..., or the variable that judge.key_env names",
        )  # fmt: skip
    judges = [name for name, judge in JUDGES.items() if leaf in {f.name for f in dataclasses.fields(judge)}]
    if command == "eval" and group == "judge" and owner not in JUDGES.values() and judges:
        return DilError(
            f"no judge is chosen, and {key} is of judge={' and judge='.join(judges)}",
            f"dil {command} {key}=...",
            f"benchmark=winrate judge={judges[0]} {key}=...",
        )
    prefix = f"{group}." if group else ""
    fields = dataclasses.fields(owner) if owner is not None and dataclasses.is_dataclass(owner) else ()
    siblings = [f.name for f in fields]
    elsewhere = [known for known in known_keys(ROOTS[command]) if not known.startswith("loss.")]
    # optim.lr before model.lr: the run's value before the model's suggestion for it. benchmark.limit before data.limit.
    elsewhere.sort(key=lambda known: (known.startswith("model."), not known.startswith("benchmark.")))
    close = (
        [prefix + name for name in get_close_matches(leaf, siblings, n=1, cutoff=0.75)]
        or [known for known in elsewhere if known.rpartition(".")[2] == leaf][:1]
        or [prefix + name for name in get_close_matches(leaf, siblings, n=1)]
        or ([] if siblings else get_close_matches(key, elsewhere, n=1))
    )
    if close:
        hint, fix = f"did you mean {close[0]}?", f"{close[0]}={value or '...'}"
    elif siblings:
        hint, fix = f"{group or 'the config'} has {', '.join(siblings)}", f"dil {command} --cfg job"
        owners = [name for name, loss in registry.LOSSES.items() if leaf in getattr(loss, "__dataclass_fields__", {})]
        if group == "loss" and owners:
            named = ", ".join(owners[:3]) + (f" and {len(owners) - 3} others" if len(owners) > 3 else "")
            hint, fix = f"{hint}; {leaf} belongs to {named}", f"loss={owners[0]} {key}={value or '...'}"
    else:
        hint, fix = f"dil {command} --cfg job lists all keys", f"dil {command} --help"
    return DilError(f"no key '{key}' here; {hint}", where=f"dil {command} {key}={value}", fix=fix)


def check_keys(composed: DictConfig, command: str = "train", prefix: str = "") -> None:
    """Refuse keys that a `+key=value` or a user's YAML added and nothing would read.

    Raises:
        DilError: naming the first such key.
    """
    kind = OmegaConf.get_type(composed)
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    for key in map(str, composed):
        if key not in fields:
            raise unknown_key(prefix + key, command, str(composed._get_node(key)), owner=kind)
        node = composed._get_node(key)
        if isinstance(node, DictConfig) and dataclasses.is_dataclass(OmegaConf.get_type(node)):
            check_keys(node, command, f"{prefix}{key}.")


def _missing_choice(error: MissingConfigException, command: str, argv: Sequence[str]) -> DilError:
    match = re.search(r"Could not (?:find|load) '([^']+)'", str(error))
    group, _, choice = (match.group(1) if match else "").rpartition("/")
    if group.startswith("schema"):
        refused = custom.refusal(choice, argv)
        if refused is not None:
            return refused
        close = get_close_matches(choice, registry.LOSSES, n=1)
        hint = f"; did you mean /{group}/{close[0]}?" if close else ""
        return DilError(f"no schema /{group}/{choice}{hint}", _yaml_of(error), "name one that exists in its defaults")
    if group == "loss" and choice in registry.LOSSES:
        return DilError(
            f"the loss {choice} is registered, and no YAML configures it", place_of(registry.LOSSES[choice]),
            f"beside it {choice}.yaml with the lines 'defaults:' and '  - /schema/loss/{choice}@_here_'",
        )  # fmt: skip
    options = [option for option in (error.options or []) if option]
    outer, _, inner = group.partition("/")
    if inner and any(word.startswith(f"{outer}=") for word in argv):
        # experiment=quick/NAME, which Hydra takes apart into experiment/quick and NAME; not hydra/launcher=NAME.
        group, choice = outer, f"{inner}/{choice}"
        options = list(choices([conf_dir(), *config_dirs(argv)], group))
    close = [option for option in options if choice and option.startswith(choice)] or get_close_matches(
        choice, options, n=1
    )
    word = next((w for w in argv if w.startswith(f"{group}=")), f"{group}={choice}")
    if not options:
        return DilError(f"no '{choice}' in {group}, which has no choices", f"dil {command} {word}", "--config-dir DIR")
    hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(options)}"
    if group == "benchmark" and not close:
        fix = f"benchmark=task benchmark.task={choice}, if lm-eval has a task of this name"
        return DilError(f"no '{choice}' in {group}; {hint}", f"dil {command} {word}", fix)
    return DilError(
        f"no '{choice}' in {group}; {hint}",
        where=f"dil {command} {word}",
        fix=f"{group}={close[0] if close else options[0]}",
    )


def _bad_override(error: HydraException, command: str) -> DilError:
    text = str(error)
    appended = re.search(r"An item is already at '([^']+)'", text)
    if appended:
        key = appended.group(1)
        return DilError(f"{key} exists already, it is set without +", f"dil {command} +{key}=...", f"{key}=...")
    twice = re.search(r"Multiple values for ([^.]+)\.", text)
    if twice:
        return DilError(
            f"{twice.group(1)} is chosen already, it is set without +",
            f"dil {command} +{twice.group(1)}=...",
            f"{twice.group(1)}=...",
        )
    if "Ambiguous value" in text or "requires --multirun" in text:
        several = re.search(r"(?:argument|parameters) '([^']+)'", text)
        word = several.group(1) if several else "group=a,b"
        return DilError(
            "several values make several runs, which -m asks for", f"dil {command} {word}", f"dil {command} -m {word}"
        )
    return DilError(_first(error), where=f"dil {command}", fix=f"dil {command} --help")


def _first(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__).rstrip(".")


def _yaml_of(error: HydraException) -> str:
    """The YAML file, as group/name.yaml, in which Hydra found the error; empty for the command line."""
    match = re.match(r"In '([^']+)'", str(error))
    return f"{match.group(1)}.yaml" if match else ""


def _bad_value(error: OmegaConfBaseException, command: str, argv: Sequence[str], file: str = "") -> DilError:
    key = str(getattr(error, "full_key", "") or "")
    word = next((w for w in reversed(argv) if w.lstrip("+~").partition("=")[0] == key), "")
    value = word.partition("=")[2]
    where = f"dil {command} {word}" if word else f"{file} {key}".strip()
    # OmegaConf's own lines follow the sentence, which holds the value and so may have several itself.
    first = str(error).partition("\n    full_key:")[0]
    if isinstance(error, MissingMandatoryValue):
        return DilError(f"{key} must be set", where=key, fix=f"{key}=...")
    if isinstance(error, InterpolationKeyError | InterpolationResolutionError):
        return DilError(f"{key} refers to a value that is not there: {first}", where, f"set {key} to a value")
    if isinstance(error, ValidationError):
        return DilError(
            f"{key or 'a group'} is wrong: {_plain_reason(first)}", where, f"dil {command} --cfg job shows its default"
        )
    if key in known_keys(ROOTS[command]) and not key.startswith("loss."):  # those of all losses are among them
        return DilError(f"{key} is wrong: {_plain_reason(first)}", where, f"dil {command} --cfg job shows its default")
    if key:
        unknown = unknown_key(key, command, value, owner=getattr(error, "object_type", None))
        unknown.where = where if file else unknown.where
        return unknown
    return DilError(first, where=where, fix=f"dil {command} --help")


def _plain_reason(reason: str) -> str:
    """OmegaConf's sentence in the words of the rest: what was given, what is wanted."""
    converted = re.match(r"Value '(.*)' of type '\w+' could not be converted to (\w+)", reason, re.DOTALL)
    if converted:
        kinds = {"Float": "a number", "Integer": "a whole number", "Boolean": "true or false"}
        return f"'{converted.group(1)}' is not {kinds.get(converted.group(2), converted.group(2))}"
    choice = re.match(r"Invalid value '(.*)', expected one of \[(.*)\]", reason, re.DOTALL)
    if choice:
        return f"'{choice.group(1)}' is not one of {choice.group(2)}"
    boolean = re.match(r"Value '(.*)' is not a valid bool", reason, re.DOTALL)
    if boolean:
        return f"'{boolean.group(1)}' is not true or false"
    if "is not Optional" in reason:
        return "it cannot be null"
    if "is not a ListConfig" in reason:
        return "it is a list, as in [a,b]"
    if "is not a subclass of" in reason:
        return "it is a group of values, not one value"
    return reason[0].lower() + reason[1:]
