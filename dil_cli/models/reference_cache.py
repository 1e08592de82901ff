"""The reference column on disk: the summed log-prob of one response under one reference, found by its content.

A value's key is a sha256 over the ids of prompt and response (all tokens of a response are scored), so it does
not matter in which data set, order, role or run the response is met again. A reference is a folder of its own, named
by its weights, its architecture and the precision of the forward pass. A column file is named by its own sha256 and
never changed: jobs that run at once add files beside each other, and a file that is not whole is recognised.

    <output>/cache/reference/<key of the reference>/reference.json
                                                    column-<sha256 of the file>.safetensors
                             <key of the reference>.lock, while a job computes values of it

Shape suffixes: N responses of a file, S of them with their ids in it, for `dil cache verify`.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from dil_cli.config.schema import ModelConfig
from dil_cli.files import mark_used, replacing, write_json

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel

FORMAT = 1
"""Raise when a value would come out differently or the files change: older references are then no longer found."""
KEY_BYTES = 16
SAMPLE = 16
"""Responses of each file that are kept with their ids."""
COLUMN, RECORD, DAMAGED = "column-*.safetensors", "reference.json", ".damaged"
NOT_ARCHITECTURE = {
    "architectures", "attn_implementation", "dtype", "gradient_checkpointing", "id2label", "label2id",
    "output_attentions", "output_hidden_states", "problem_type", "return_dict", "torch_dtype", "transformers_version",
    "use_cache",
}  # fmt: skip
"""Fields of a model's config.json that leave its log-probs as they are; so do those that begin with `_`."""


class DamagedFile(Exception):
    """A column file that cannot be used; the text says why."""


class Scored(NamedTuple):
    """A response and its summed log-prob in nats; ids are int32."""

    key: bytes
    logp: float
    prompt: np.ndarray
    response: np.ndarray


@dataclass(frozen=True, eq=False)
class Column:
    """The content of a file: keys uint8 (N, 16), summed log-probs float32 (N,) in nats, token counts int32 (N,)."""

    key_N: np.ndarray
    logp_N: np.ndarray
    tokens_N: np.ndarray
    sample_S: Sequence[Scored]

    def items(self) -> Iterator[tuple[bytes, float]]:
        """Key and log-prob of each response."""
        keys = self.key_N.tobytes()
        starts = range(0, len(keys), KEY_BYTES)
        return zip((keys[i : i + KEY_BYTES] for i in starts), self.logp_N.tolist(), strict=True)


@dataclass(frozen=True)
class Reference:
    """A model that log-probs are relative to: `key` (32 hex digits), and all that the key depends on."""

    key: str
    facts: dict[str, Any]


def identify(model: PreTrainedModel, weights_sha256: str, compute: str) -> Reference:
    """The reference that `model` is now.

    Args:
        model: as it is before the first step.
        weights_sha256: `weights_fingerprint(model)`; given, since a run needs it for its manifest too.
        compute: the precision of the forward pass, "fp32" or what begins with "bf16".
    """
    facts = {
        "format": FORMAT,
        "weights_sha256": weights_sha256,
        "buffers_sha256": _buffers_fingerprint(model),
        "architecture": {"class": type(model).__name__, **architecture(model.config)},
        "compute": compute,
    }
    text = json.dumps(facts, sort_keys=True, default=str)
    return Reference(hashlib.sha256(text.encode()).hexdigest()[: 2 * KEY_BYTES], facts)


def architecture(config: PretrainedConfig) -> dict[str, Any]:
    """The fields of a config that the log-probs depend on: shapes, positions, windows, caps, scales."""
    kept: dict[str, Any] = _architecture(config.to_dict())
    return kept


def response_keys(prompt: np.ndarray, *responses: np.ndarray) -> list[bytes | None]:
    """The key of each response to `prompt`, None for an empty one, which a demonstration has."""
    start = hashlib.sha256(len(prompt).to_bytes(4, "little"))
    start.update(prompt.astype("<i4").tobytes())
    keys: list[bytes | None] = []
    for response in responses:
        whole = start.copy()
        whole.update(response.astype("<i4").tobytes())
        keys.append(whole.digest()[:KEY_BYTES] if len(response) else None)
    return keys


class ReferenceCache:
    """The values of one reference: read when opened, added to with `store`. It reports, it never fails.

    Attributes:
        values: summed log-prob in nats by key.
        notices: what the user should know of damaged files or a folder that cannot be written, a sentence each.
    """

    def __init__(
        self, root: Path, reference: Reference, model: ModelConfig, parameters: int, keep: bool = True
    ) -> None:
        """Read the files of `reference` under `root` (`<output>/cache/reference`).

        Args:
            root: holds a folder for each reference; made when something is stored.
            reference: from `identify`.
            model: where the model came from, so that `dil cache verify` can load it again.
            parameters: their number, for `dil cache list`.
            keep: whether what is stored goes to the disk; without it the folder is read and left as it is.
        """
        self.folder, self.reference = root / reference.key, reference
        self.lock = root / f"{reference.key}.lock"
        self.model, self.parameters = model, parameters
        self.values: dict[bytes, float] = {}
        self.notices: list[str] = []
        self._keep = self._writable = keep
        self._seen: set[Path] = set()
        self._read()

    @contextmanager
    def alone(self, wait: Callable[[], AbstractContextManager[object]]) -> Iterator[None]:
        """While this lasts no other job computes values of this reference; what others stored before is read.

        The system lets go of the lock of a process that dies. Where a file cannot be locked, jobs compute side by side.

        Args:
            wait: gives the context in which another job is waited for.
        """
        from filelock import FileLock, Timeout

        lock = FileLock(self.lock)
        with ExitStack() as held:
            with suppress(OSError, NotImplementedError):
                try:
                    held.enter_context(lock.acquire(blocking=False))
                except Timeout:
                    with wait():
                        held.enter_context(lock.acquire())
                held.callback(self.lock.unlink, missing_ok=True)
            self._read()
            yield

    def store(self, scored: Sequence[Scored]) -> None:
        """Keep the finite ones, as one new file; a folder that cannot be written is said once."""
        finite = [one for one in scored if np.isfinite(one.logp)]
        self.values.update((one.key, one.logp) for one in finite)
        if not finite or not self._writable:
            return
        self._write(finite)

    def _write(self, finite: Sequence[Scored]) -> None:
        try:
            if not (self.folder / RECORD).is_file():
                write_json(self.folder / RECORD, self._record())
            if finite:
                write_column(self.folder, self.reference.key, finite)
        except OSError as error:
            self._writable = False
            self.notices.append(f"the reference cache {self.folder} cannot be written ({error.strerror or error})")

    def _read(self) -> None:
        faults: dict[Path, str] = {}
        for path in [path for path in column_files(self.folder) if path not in self._seen]:
            self._seen.add(path)
            try:
                self.values.update(read_column(path, self.reference.key).items())
            except FileNotFoundError:
                continue  # pruned since it was listed
            except DamagedFile as damage:
                faults[path] = str(damage)
                if self._keep:
                    with suppress(OSError):  # so that it is reported once
                        path.rename(path.with_name(path.name + DAMAGED))
            except OSError as error:
                faults[path] = f"it cannot be read: {error.strerror or error}"
        if self.values and self._writable:
            self._write(())  # the record, should it be gone
        if self._keep:
            mark_used(self.folder / RECORD)
        if faults:
            (path, reason), *more = faults.items()
            others = f" and {len(more)} more files" if more else ""
            self.notices.append(f"the reference cache {path}{others} cannot be used ({reason}); computed again")

    def _record(self) -> dict[str, Any]:
        """What `reference.json` says; a folder's path is made absolute, `dil cache` may run elsewhere."""
        folder = Path(self.model.path).expanduser()
        source = {
            "path": str(folder.resolve()) if folder.is_dir() else self.model.path,
            "revision": self.model.revision,
            "dtype": self.model.dtype.value,
            "trust_remote_code": self.model.trust_remote_code,
        }
        created = datetime.now(UTC).isoformat(timespec="seconds")
        facts = json.loads(json.dumps(self.reference.facts, default=str))
        return {"model": source, "parameters": self.parameters, "created": created, **facts}


def column_files(folder: Path) -> list[Path]:
    """The column files of a reference's folder, whole or not; none where there is no folder."""
    return sorted(folder.glob(COLUMN)) if folder.is_dir() else []


def write_column(folder: Path, reference: str, scored: Sequence[Scored]) -> Path:
    """Write responses as one file, whole or not there, with the ids of a few spread evenly over them.

    Raises:
        OSError: where the folder cannot be written.
    """
    from safetensors.numpy import save

    kept = [scored[i * len(scored) // min(SAMPLE, len(scored))] for i in range(min(SAMPLE, len(scored)))]
    content = save(
        {
            "reference": np.frombuffer(bytes.fromhex(reference), np.uint8),
            "key": np.frombuffer(b"".join(one.key for one in scored), np.uint8).reshape(-1, KEY_BYTES),
            "logp": np.array([one.logp for one in scored], np.float32),
            "tokens": np.array([len(one.response) for one in scored], np.int32),
            "sample_ids": np.concatenate([ids for one in kept for ids in (one.prompt, one.response)]).astype(np.int32),
            "sample_lengths": np.array([[len(one.prompt), len(one.response)] for one in kept], np.int32),
        }
    )
    path = folder / COLUMN.replace("*", _name(content))
    with replacing(path) as temporary:
        temporary.write_bytes(content)
    return path


def read_column(path: Path, reference: str) -> Column:
    """The content of a file of `reference`.

    Raises:
        DamagedFile: when it is not whole, or another reference's.
        OSError: when it cannot be read.
    """
    from safetensors import SafetensorError
    from safetensors.numpy import load

    content = path.read_bytes()
    if path.name != COLUMN.replace("*", _name(content)):
        raise DamagedFile("its content is not what its name says")
    try:
        tensors = load(content)
        if tensors["reference"].tobytes().hex() != reference:
            raise DamagedFile("it belongs to another reference")
        keys, logps, tokens = tensors["key"], tensors["logp"], tensors["tokens"]
        if keys.shape != (len(logps), KEY_BYTES) or len(tokens) != len(logps):
            raise DamagedFile("its columns do not fit each other")
        return Column(keys, logps, tokens, _sample(tensors))
    except (SafetensorError, KeyError, ValueError) as error:
        raise DamagedFile(f"it is no column file: {error}") from error


def _sample(tensors: dict[str, np.ndarray]) -> list[Scored]:
    logp_of = dict(Column(tensors["key"], tensors["logp"], tensors["tokens"], ()).items())
    ends = np.cumsum(tensors["sample_lengths"])
    ids = np.split(tensors["sample_ids"], ends[:-1])
    sample = []
    for prompt, response in zip(ids[::2], ids[1::2], strict=True):
        (key,) = response_keys(prompt, response)
        if key is not None:
            sample.append(Scored(key, logp_of[key], prompt, response))
    return sample


def _name(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[: 2 * KEY_BYTES]


def _architecture(node: Any) -> Any:
    if not isinstance(node, dict):
        return node
    kept = {str(name): value for name, value in node.items() if str(name) not in NOT_ARCHITECTURE}
    return {name: _architecture(value) for name, value in kept.items() if not name.startswith("_")}


def _buffers_fingerprint(model: PreTrainedModel) -> str:
    """sha256 over what a checkpoint holds besides parameters, such as the biases of some routers."""
    import torch

    parameters = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    digest = hashlib.sha256()
    for name, value in sorted(model.state_dict().items()):
        if name not in parameters:
            digest.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            digest.update(value.cpu().contiguous().view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
