"""A folder with data sets in place of the hub (`benchmark.root`): what a task needs of it, and lm-eval reading it."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dil_cli.config.harness_schema import HarnessConfig
from dil_cli.errors import DilError
from dil_cli.files import mark_used

FILE_READERS = ("json", "csv", "parquet", "text", "arrow")
"""What `load_dataset` takes in place of a hub id; such a task names its files itself."""


def needed_data(manager: Any, name: str) -> list[str]:
    """Hub ids of the data sets behind a task, group or tag, from lm-eval's own YAML."""
    entry = manager.task_index.get(name)
    if entry is None:
        return []
    config = entry.cfg or {}
    children = [*sorted(entry.tags)] if not config else config.get("task") if "group" in config else None
    children = [children] if isinstance(children, str) else children
    if children is None:
        path = config.get("dataset_path")
        return [path] if isinstance(path, str) and path not in FILE_READERS else []
    found: list[str] = []
    for child in children:
        inline = child if isinstance(child, dict) else {}
        found += [inline["dataset_path"]] if "dataset_path" in inline else []
        found += needed_data(manager, inline.get("task") or inline.get("group") or "" if inline else child)
    return list(dict.fromkeys(found))


@contextmanager
def data_sets(root: str | None, cache: Path, used: dict[str, str | None]) -> Iterator[None]:
    """Let `datasets.load_dataset` read `root/HUB_ID` in place of the hub while the context lasts.

    Args:
        root: the folder, laid out by hub id; None leaves the hub in place.
        cache: where `datasets` puts what it made of the files. Its own cache of a folder does not look at the content,
            so that each content gets a folder of its own here.
        used: is told each data set and the sha256 of its files.
    """
    import datasets

    original = datasets.load_dataset

    def load(path: str, name: str | None = None, **kwargs: Any) -> Any:
        if path in FILE_READERS or root is None:
            used.setdefault(path, None)
            return original(path, name, **kwargs)
        folder = Path(root).expanduser() / path
        if not folder.is_dir():
            raise missing_data(root, [path])
        used[path] = used.get(path) or content_sha256(folder)
        place = cache / str(used[path])[:32]
        mark_used(place)
        kwargs["cache_dir"] = str(place)
        try:
            return original(str(folder), name, **kwargs)
        except (FileNotFoundError, ValueError) as error:  # `datasets` derives its own from these
            raise _not_whole(root, path, error) or error from error

    datasets.load_dataset = load
    try:
        yield
    finally:
        datasets.load_dataset = original


def _not_whole(root: str, hub_id: str, error: Exception) -> DilError | None:
    """The error for a data set that is there in part; None where something else is wrong with it.

    `datasets` lists two hundred endings in place of the file that it missed, and calls an empty one an instruction.
    """
    folder = Path(root).expanduser() / hub_id
    empty = sorted(path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == 0)
    if named := re.search(r"Unable to find '([^']+)'", str(error)):
        what = f"it lacks {named.group(1).partition(f'/{hub_id}/')[2] or named.group(1)}"
    elif empty:
        what = f"{empty[0].relative_to(folder)} is empty"
    elif split := re.search(r'Instruction "(\w+)" corresponds to no data', str(error)):
        what = f"its split {split.group(1)} has no questions"
    elif isinstance(error, FileNotFoundError):
        what = "it holds no data files"
    else:
        return None
    whole = missing_data(root, [hub_id])
    return DilError(f"the data set {hub_id} is not whole: {what}", f"benchmark.root={root}", whole.fix)


def content_sha256(folder: Path) -> str:
    """Over the names and bytes of all files, less what a download leaves of itself (`.cache`)."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder)
        if path.is_file() and not any(part.startswith(".") for part in name.parts):
            with path.open("rb") as file:
                digest.update(f"{name.as_posix()} {hashlib.file_digest(file, 'sha256').hexdigest()}\n".encode())
    return digest.hexdigest()


def check_root(config: HarnessConfig, needed: Sequence[str]) -> None:
    """Every data set that is needed must lie in `benchmark.root`.

    Raises:
        DilError: naming all that do not.
    """
    root = Path(str(config.root)).expanduser()
    if not root.is_dir():
        raise DilError(
            f"there is no folder {config.root}", f"benchmark.root={config.root}",
            f"dil eval --stage {config.root} {words(config)} says what to download there",
        )  # fmt: skip
    needed = list(dict.fromkeys(needed))
    missing = [path for path in needed if not (root / path).is_dir()]
    if len(missing) > 1:
        raise DilError(
            f"{len(missing)} of {len(needed)} data sets are not in {config.root}: {', '.join(missing)}",
            f"benchmark.root={config.root}", f"dil eval --stage {config.root} {words(config)} says how to get them",
        )  # fmt: skip
    if missing:
        raise missing_data(str(config.root), missing)


def words(config: HarnessConfig) -> str:
    """The words of a command that choose the same benchmark."""
    return f"benchmark={config.name}" + (f" benchmark.task={config.task}" if config.task else "")


def missing_data(root: str, missing: Sequence[str]) -> DilError:
    """The error for a data set that the root lacks, with the command that brings it."""
    place = f"{root.rstrip('/')}/{missing[0]}"
    return DilError(
        f"the data root has no {missing[0]}", f"benchmark.root={root}",
        f"hf download {missing[0]} --repo-type dataset --local-dir {place}",
    )  # fmt: skip
