"""Where rows come from: a file, a folder, the package itself, or the hub."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dil_cli import hub
from dil_cli.config.schema import DataConfig, DataSource
from dil_cli.data.gsm8k import rewrite_answer
from dil_cli.data.rows import BATCH_ROWS, Row, is_readable, read_file, read_files, table_rows
from dil_cli.errors import DilError

BUNDLED = Path(__file__).resolve().parent.parent / "bundled" / "data"
PARQUET_EXPORT = "refs/convert/parquet"


def read_split(config: DataConfig, split: str) -> Iterator[Row]:
    """The rows of one split.

    A path that exists is read from the disk even where the source is the hub, so that a data set
    downloaded elsewhere can take its place.

    Raises:
        DilError: if there is no such file, folder, split or hub data set, or it cannot be read.
    """
    if config.source is DataSource.bundled:
        return _bundled_rows(config.path, split)
    path = Path(config.path).expanduser()
    if path.is_dir():
        return _folder_rows(path, config, split)
    if path.is_file():
        _refuse_splits(config, f"{path.name} is one file and has no splits")
        return read_file(path)
    if config.source is DataSource.local:
        raise DilError(f"there is no file or folder {path}", "data.path", "data.path=/path/to/pairs.jsonl")
    return _hub_rows(config, split)


def _bundled_rows(name: str, split: str) -> Iterator[Row]:
    path = BUNDLED / f"{name}_{split}.jsonl.gz"
    if not path.is_file():
        shipped = sorted(file.name.removesuffix(".jsonl.gz") for file in BUNDLED.glob("*.jsonl.gz"))
        raise DilError(
            f"no bundled data set {name} with a split {split}",
            where=f"data.path={name}",
            fix=f"bundled are {', '.join(shipped)}",
        )
    rows = read_file(path)
    if name != "gsm8k":
        return rows
    return (row._replace(values=row.values | {"answer": rewrite_answer(row.values["answer"])}) for row in rows)


def _refuse_splits(config: DataConfig, what: str) -> None:
    if config.heldout_split is not None:
        raise DilError(
            f"{what}, so data.heldout_split={config.heldout_split} is not in it",
            where=f"data.path={config.path}",
            fix="data.heldout_split=null data.heldout_fraction=0.1",
        )
    if config.train_split != "train":
        raise DilError(f"{what}", where=f"data.train_split={config.train_split}", fix="leave it out")


def _folder_rows(folder: Path, config: DataConfig, split: str) -> Iterator[Row]:
    if config.subset is not None and (folder / config.subset).is_dir():
        folder = folder / config.subset
    if (folder / "dataset_dict.json").is_file():
        splits = _dict_splits(folder)
        if split not in splits:
            raise _no_split(folder, split, f"it has {', '.join(splits)}")
        return _saved_rows(folder / split)
    if (folder / "state.json").is_file():
        _refuse_splits(config, f"{folder.name} is one data set without splits")
        return _saved_rows(folder)
    files = sorted(path for path in folder.rglob("*") if path.is_file() and _belongs(path, folder, split))
    if not files:
        found = sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if is_readable(p))
        listed = ", ".join(found[:5]) + (", ..." if len(found) > 5 else "")
        raise _no_split(folder, split, f"data files in it: {listed or 'none'}")
    return read_files(files)


def _belongs(path: Path, folder: Path, split: str) -> bool:
    """`train.jsonl`, `data/train-00000-of-00001.parquet` and `train/0000.parquet` belong to `train`."""
    below = path.relative_to(folder)
    if not is_readable(path) or any(part.startswith(".") for part in below.parts):
        return False
    return path.name.startswith((f"{split}.", f"{split}-")) or split in below.parts[:-1]


def _no_split(folder: Path, split: str, there: str) -> DilError:
    return DilError(
        f"{folder} has no split {split}; {there}",
        where="data.path, data.train_split, data.heldout_split",
        fix="name the splits it has, or one file with data.heldout_split=null data.heldout_fraction=0.1",
    )


def _dict_splits(folder: Path) -> list[str]:
    try:
        return [str(name) for name in json.loads((folder / "dataset_dict.json").read_text("utf-8"))["splits"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise _unreadable(folder, error) from error


def _saved_rows(folder: Path) -> Iterator[Row]:
    """Rows of a folder that `Dataset.save_to_disk` wrote."""
    import datasets

    try:
        saved = datasets.load_from_disk(str(folder))
        yield from _dataset_rows(saved, folder.name)
    except Exception as error:  # pyarrow, fsspec and datasets each raise their own
        raise _unreadable(folder, error) from error


def _dataset_rows(data: Any, name: str) -> Iterator[Row]:
    return table_rows(data.with_format("arrow").iter(batch_size=BATCH_ROWS), name)


def _unreadable(folder: Path, error: Exception) -> DilError:
    return DilError(
        f"the folder cannot be read as a saved data set: {_first_line(error)}",
        where=f"data.path={folder}",
        fix="save it again with save_to_disk, or name a .jsonl or .parquet file",
    )


def _hub_rows(config: DataConfig, split: str) -> Iterator[Row]:
    """Rows from the hub, or from the local cache of `datasets` when the hub is out of reach."""
    online = hub.reachable()
    if not online:
        hub.work_offline()
    import datasets

    try:
        data = _load(datasets, config, split)
    except Exception as error:  # datasets raises a dozen unrelated types
        subset = f" data.subset={config.subset}" if config.subset else ""
        if not online:
            raise hub.offline_error(config.path, "data set", "data") from error
        raise DilError(
            f"the data set cannot be loaded from the hub: {_first_line(error)}",
            where=f"data.path={config.path}{subset} split {split}",
            fix="check the names; for a gated data set log in with `hf auth login`",
        ) from error
    return _dataset_rows(data, f"{config.path} ({split})")


def _load(datasets: Any, config: DataConfig, split: str) -> Any:
    try:
        return datasets.load_dataset(config.path, config.subset, split=split, revision=config.revision)
    except RuntimeError as error:
        # A repository with a loading script (openai/summarize_from_feedback) no longer loads;
        # the hub keeps a parquet export of it, as subset/split/NNNN.parquet.
        if "script" not in str(error):
            raise
        files = {split: f"{config.subset or 'default'}/{split}/*.parquet"}
        return datasets.load_dataset(config.path, data_files=files, split=split, revision=PARQUET_EXPORT)


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), type(error).__name__)
