"""The probe set: which held-out pairs, at which steps, and the record of each pair at each of them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from dil_cli.dynamics.statistics import array, has_rejected, per_pair_change
from dil_cli.errors import DilError
from dil_cli.files import replacing

if TYPE_CHECKING:
    import pyarrow
    from torch import Tensor

    from dil_cli.types import PairLogps

INTEGERS = ("step", "row", "chosen_tokens", "rejected_tokens")
FLOATS = (
    "chosen_logp_sum",
    "rejected_logp_sum",
    "reference_chosen_sum",
    "reference_rejected_sum",
    "delta_chosen",
    "delta_rejected",
    "delta_margin",
)
"""Sums in nats; deltas in nats per token since step 0. Null where the run has no such number."""


def choose_probe(n_heldout: int, k: int) -> list[int]:
    """Indices of min(k, n_heldout) held-out pairs, spread evenly and always the same.

    There is no seed in it, so that every seed and every loss is measured on the same pairs.

    Raises:
        DilError: when nothing is held out.
    """
    if n_heldout < 1:
        raise DilError(
            "no pair is held out, so nothing can be measured",
            where="data.heldout_split, data.heldout_fraction",
            fix="data.heldout_split=null data.heldout_fraction=0.1",
        )
    k = min(k, n_heldout)
    return [(2 * i + 1) * n_heldout // (2 * k) for i in range(k)]


def probe_steps(total_steps: int, times: int) -> list[int]:
    """Steps after which the probe set is measured: 0, then `times` spread evenly, the last one the end.

    A run shorter than `times` is measured after every step.
    """
    times = max(1, min(times, total_steps))  # more than one a step there cannot be
    return sorted({(2 * i * total_steps + times) // (2 * times) for i in range(times + 1)})


def write_probe(folder: Path, step: int, rows: Sequence[int], logps: PairLogps, start: PairLogps | None) -> Path:
    """Write `folder/step-000000.parquet`, one row a pair; whole or not at all.

    Args:
        folder: the run's `probe` folder; made if missing.
        step: optimiser steps done.
        rows: each pair's row in its source, (B,).
        logps: the pairs as measured now.
        start: the same pairs at step 0, for the deltas.

    Returns:
        The file's path.
    """
    import pyarrow
    import pyarrow.parquet

    missing = np.full(len(rows), np.nan)
    paired = has_rejected(logps)
    change = {} if start is None else per_pair_change(logps, start)

    def column(sum_B: Tensor | None, present: bool = True) -> np.ndarray:
        return array(sum_B) if sum_B is not None and present else missing

    values = {
        "step": np.full(len(rows), step),
        "row": np.asarray(rows),
        "chosen_tokens": logps.chosen_tokens_B.cpu().numpy(),
        "rejected_tokens": logps.rejected_tokens_B.cpu().numpy(),
        "chosen_logp_sum": column(logps.policy_chosen_B),
        "rejected_logp_sum": column(logps.policy_rejected_B, paired),
        "reference_chosen_sum": column(logps.reference_chosen_B),
        "reference_rejected_sum": column(logps.reference_rejected_B, paired),
        "delta_chosen": change.get("chosen", missing),
        "delta_rejected": change.get("rejected", missing),
        "delta_margin": change.get("margin", missing),
    }
    schema = _schema()
    columns = [pyarrow.array(values[name], type=schema.field(name).type, from_pandas=True) for name in schema.names]
    path = folder / f"step-{step:06d}.parquet"
    with replacing(path) as temporary:
        pyarrow.parquet.write_table(pyarrow.Table.from_arrays(columns, schema=schema), temporary)
    return path


def read_probe(folder: Path) -> pyarrow.Table:
    """All measurements of a run's `probe` folder in step order; an empty table when there is none.

    Raises:
        DilError: when a file cannot be read, naming it.
    """
    import pyarrow
    import pyarrow.parquet

    tables = []
    for path in sorted(folder.glob("step-*.parquet"), key=lambda path: int(path.stem.removeprefix("step-"))):
        try:
            tables.append(pyarrow.parquet.read_table(path, schema=_schema()))
        except (OSError, pyarrow.ArrowException) as err:
            raise DilError(
                "this probe file is damaged", where=str(path), fix="delete it and run the training again"
            ) from err
    return pyarrow.concat_tables(tables) if tables else _schema().empty_table()


def _schema() -> pyarrow.Schema:
    import pyarrow

    integers = [(name, pyarrow.int64()) for name in INTEGERS]
    return pyarrow.schema(integers + [(name, pyarrow.float64()) for name in FLOATS])
