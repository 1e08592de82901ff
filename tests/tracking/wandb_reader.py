"""Read an offline `.wandb` file back: a 7-byte header, then the blocks of a LevelDB log with one protobuf each."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

BLOCK, FILE_HEADER, RECORD_HEADER = 32 * 1024, 7, 7
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


def read_wandb(folder: Path) -> dict[str, Any]:
    """Config, history rows, summary and run fields of the one W&B run under `folder`, all its parts together."""
    from wandb.proto.wandb_internal_pb2 import Record

    parts = sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))
    assert len({path.name for path in parts}) == 1
    found: dict[str, Any] = {"config": {}, "history": [], "summary": {}, "run": None, "step_metrics": {}}
    for data in [payload for path in parts for payload in _payloads(path.read_bytes())]:
        record = Record.FromString(data)
        kind = record.WhichOneof("record_type")
        if kind == "run":
            found["run"] = record.run
            found["config"] |= _items(record.run.config.update)
        elif kind == "history":
            row = _items(record.history.item)
            found["history"].append({key: value for key, value in row.items() if not key.startswith("_")})
        elif kind == "summary":
            found["summary"] |= _items(record.summary.update)
        elif kind == "metric":
            found["step_metrics"][record.metric.name or record.metric.glob_name] = record.metric.step_metric
        elif kind == "exit":
            found["exit_code"] = record.exit.exit_code
    return found


def _items(items: Any) -> dict[str, Any]:
    return {item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items}


def _payloads(data: bytes) -> list[bytes]:
    assert data[:4] == b":W&B"
    payloads, parts, at = [], [], FILE_HEADER
    while at < len(data):
        left = BLOCK - at % BLOCK
        if left < RECORD_HEADER:  # a block's last bytes hold no header
            at += left
            continue
        _crc, length, kind = struct.unpack_from("<IHB", data, at)
        at += RECORD_HEADER
        parts.append(data[at : at + length])
        at += length
        if kind in (FULL, LAST):
            payloads.append(b"".join(parts))
            parts = []
    return payloads
