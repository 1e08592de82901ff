"""Tokenised once and reused: a split's token ids as one parquet file, named by all they depend on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dil_cli.config.schema import DataConfig
from dil_cli.data.load import content_digest
from dil_cli.data.template import effective_template
from dil_cli.files import replacing
from dil_cli.types import PreferencePair, TokenisedPair

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

FORMAT = 1
"""Raise when the rules of tokenising or the file change: older files are then no longer found."""
SIDES = ("prompt", "chosen", "rejected")


def place(
    folder: Path, pairs: Sequence[PreferencePair], tokenizer: PreTrainedTokenizerBase, config: DataConfig
) -> tuple[Path, str]:
    """The file of these pairs, there or not, and its key.

    The key is a sha256 over all that the ids depend on: pairs, rows, tokenizer, template, lengths, rules.
    """
    depends = {
        "format": FORMAT,
        "pairs": content_digest(pairs),
        "rows": hashlib.sha256(np.array([pair.row for pair in pairs]).tobytes()).hexdigest(),
        "tokenizer": tokenizer_fingerprint(tokenizer),
        "template": effective_template(tokenizer, config),
        "lengths": [config.max_length, config.max_prompt_length],
        "score_prompt": config.score_prompt,
    }
    key = hashlib.sha256(json.dumps(depends, sort_keys=True).encode()).hexdigest()
    return folder / f"tokens-{key[:32]}.parquet", key


def tokenizer_fingerprint(tokenizer: PreTrainedTokenizerBase) -> str:
    """sha256 over vocabulary, merges, pre- and post-processing, special tokens; not the chat template."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [sorted(tokenizer.get_vocab().items()), str(tokenizer.init_kwargs)]
    else:
        rules = json.loads(backend.to_str())
        # Left behind by the last call, and not used by ours.
        rules.pop("padding", None)
        rules.pop("truncation", None)
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    splits = getattr(tokenizer, "split_special_tokens", False)
    content = json.dumps([type(tokenizer).__name__, rules, special, splits], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()


def write(path: Path, key: str, pairs: Sequence[TokenisedPair], counts: dict[str, Any]) -> None:
    """Pairs and counts as one file, whole or not there; raises OSError where the folder takes none."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns: dict[str, Any] = {"row": pa.array([pair.row for pair in pairs], pa.int64())}
    for side in SIDES:
        values, ends = _flat([getattr(pair, side) for pair in pairs])
        columns[side] = pa.LargeListArray.from_arrays(ends, pa.array(values))
    facts = {"key": key, "digest": _digest(pairs, counts), "counts": counts}
    table = pa.table(columns).replace_schema_metadata({"dil": json.dumps(facts)})
    with replacing(path) as temporary:
        pq.write_table(table, temporary)


def read(path: Path, key: str) -> tuple[tuple[TokenisedPair, ...], dict[str, Any]]:
    """Pairs and counts of a file; raises what pyarrow or json raise, or ValueError, if it is not whole."""
    import pyarrow.parquet as pq

    table = pq.read_table(path)
    facts = json.loads((table.schema.metadata or {})[b"dil"])
    rows = table["row"].to_pylist()
    sides = [_slices(table[side].combine_chunks()) for side in SIDES]
    pairs = tuple(TokenisedPair(row, *ids) for row, *ids in zip(rows, *sides, strict=True))
    if facts["key"] != key or facts["digest"] != _digest(pairs, facts["counts"]):
        raise ValueError("its content is not what it says")
    return pairs, facts["counts"]


def _flat(arrays: Sequence[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
    ends = np.cumsum([0, *map(len, arrays)], dtype=np.int64)
    return np.concatenate([*arrays, np.empty(0, np.int32)]).astype(np.int32), ends


def _slices(column: Any) -> list[np.ndarray]:
    values, ends = column.values.to_numpy(), column.offsets.to_numpy()
    return [values[start:end] for start, end in pairwise(ends)]


def _digest(pairs: Sequence[TokenisedPair], counts: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(counts, sort_keys=True).encode())
    for pair in pairs:
        digest.update(f"{pair.row} {len(pair.prompt)} {len(pair.chosen)} {len(pair.rejected)} ".encode())
        for side in SIDES:
            digest.update(getattr(pair, side).tobytes())
    return digest.hexdigest()
