"""The run folder: one name for each file in it.

```
outputs/<name>-<hash8>/
  config.yaml       the resolved config
  manifest.json     what the numbers depend on: versions, model, tokenizer, template, data
  metrics.jsonl     one row a step and one a probe measurement
  probe/            per-pair log-probs of the probe set, one parquet a measurement
  checkpoints/      step-000053/: a Hugging Face folder
  dynamics.png      chosen, rejected and margin over the steps
  result.json       written last: a run with it is finished
  failure.json      why a run stopped before its end
  profile/          trace.json.gz: a few steps as torch's profiler saw them, where profile=true
  resume/           what an unfinished run goes on from, and who trains it now; gone when it is finished
```
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dil_cli.errors import DilError
from dil_cli.files import remove_leftovers, write_json


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, and what is known of its state."""

    path: Path

    @property
    def config(self) -> Path:
        """The resolved config."""
        return self.path / "config.yaml"

    @property
    def manifest(self) -> Path:
        """What the numbers depend on."""
        return self.path / "manifest.json"

    @property
    def metrics(self) -> Path:
        """One JSON object a line."""
        return self.path / "metrics.jsonl"

    @property
    def probe(self) -> Path:
        """Folder of per-pair measurements."""
        return self.path / "probe"

    @property
    def picture(self) -> Path:
        """The likelihood dynamics."""
        return self.path / "dynamics.png"

    @property
    def result(self) -> Path:
        """Final numbers; there only when the run is finished."""
        return self.path / "result.json"

    @property
    def failure(self) -> Path:
        """Why the run stopped; there only when it failed."""
        return self.path / "failure.json"

    @property
    def resume(self) -> Path:
        """States, lock and owner of an unfinished run (`states.py`, `owner.py`)."""
        return self.path / "resume"

    @property
    def profile(self) -> Path:
        """Folder of the trace that `profile=true` leaves."""
        return self.path / "profile"

    @property
    def checkpoints(self) -> Path:
        """Folder of the policies that were kept."""
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The Hugging Face folder of the policy after `step` optimiser steps."""
        return self.checkpoints / f"step-{step:06d}"

    def finished(self, run_hash: str) -> bool:
        """Whether the run with this hash has ended here.

        Raises:
            DilError: when the folder holds another run, or files that are no run's.
        """
        if not self.path.is_dir() or all(_of_no_meaning(path) for path in self.path.iterdir()):
            return False
        if not self.manifest.is_file():
            raise DilError(
                f"{self.path} is not empty and holds no run", where=f"hydra.run.dir={self.path}",
                fix="choose a new or empty folder",
            )  # fmt: skip
        other = json.loads(self.manifest.read_text(encoding="utf-8")).get("hash")
        if other != run_hash:
            raise DilError(
                f"{self.path} holds another run (hash {other}, this one is {run_hash})",
                where=f"hydra.run.dir={self.path}", fix="choose another folder, or remove this one",
            )  # fmt: skip
        return self.result.is_file()

    def check_writable(self) -> None:
        """The folder must be there or be one that can be made.

        Raises:
            DilError: when a file stands in its way or the disk does not let it.
        """
        there = next(path for path in (self.path, *self.path.parents) if path.exists())
        try:  # what a file system allows is known only by trying: /proc says that it may be written
            before = there.stat()
            Path(tempfile.mkdtemp(prefix=".dil-", dir=there)).rmdir()
            os.utime(there, ns=(before.st_atime_ns, before.st_mtime_ns))
        except OSError as error:
            reason = f"cannot be written ({error.strerror})" if there.is_dir() else "is a file"
            raise DilError(
                f"no run folder can be made: {there} {reason}", f"output={self.path.parent}", "output=outputs"
            ) from error

    def begin(self, config_yaml: str, manifest: dict[str, Any]) -> None:
        """Make the folder, or clear what an unfinished run left in it."""
        self.path.mkdir(parents=True, exist_ok=True)
        self.cut_back(-1)
        for state in self.resume.glob("step-*"):
            shutil.rmtree(state, ignore_errors=True)
        self.metrics.unlink(missing_ok=True)
        write_json(self.manifest, manifest)
        self.config.write_text(config_yaml, encoding="utf-8")

    def cut_back(self, step: int) -> None:
        """Remove what was written after `step` optimiser steps; the record, which its sink cuts, excepted."""
        remove_leftovers(self.path)
        shutil.rmtree(self.path / "wandb", ignore_errors=True)
        for path in [*self.probe.glob("step-*"), *self.checkpoints.glob("step-*")]:
            if int(path.stem.removeprefix("step-")) > step:
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for file in (self.picture, self.failure):
            file.unlink(missing_ok=True)

    def finish(self, result: dict[str, Any]) -> None:
        """Write the result; what the run could have gone on from is of no use any more."""
        write_json(self.result, result)
        self.tidy()

    def tidy(self) -> None:
        """Remove what a finished run does not need; it may have been killed before it did so itself."""
        shutil.rmtree(self.resume, ignore_errors=True)
        remove_leftovers(self.path)


def _of_no_meaning(path: Path) -> bool:
    """What a run may leave that was killed before it had written its manifest."""
    return path.name == "resume" or (path.name.startswith(".") and path.name.endswith(".tmp"))
