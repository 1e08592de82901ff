"""The sweep folder: which runs belong together, and their table.

```
outputs/sweeps/<name>-<hash8>/
  sweep.json        the question, the swept keys, and every run's folder
  table.csv, table.md
```
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from dil_cli.files import replacing, write_json
from dil_cli.sweep.plan import Job


@dataclass(frozen=True)
class About:
    """What an experiment says of itself: `hydra.sweeper` of its YAML (`hydra_plugins/dil_sweeper.py`)."""

    name: str
    swept: tuple[str, ...]
    question: str | None = None
    baseline: str | None = None
    x: str | None = None


@dataclass(frozen=True)
class SweepFolder:
    """Named after the hashes of its runs: the same runs are the same sweep."""

    path: Path

    @classmethod
    def of(cls, about: About, jobs: Sequence[Job]) -> SweepFolder:
        """The folder of these jobs, beside their runs."""
        digest = hashlib.sha256(" ".join(sorted(job.hash for job in jobs)).encode()).hexdigest()[:8]
        return cls(Path(jobs[0].config.output).resolve() / "sweeps" / f"{about.name}-{digest}")

    def write(self, about: About, jobs: Sequence[Job]) -> None:
        """`sweep.json`, before the first run starts: what is there can be reported at any time."""
        write_json(
            self.path / "sweep.json",
            {
                "name": about.name,
                "hash": self.path.name.rpartition("-")[2],
                "question": about.question,
                "baseline": about.baseline,
                "x": about.x,
                "swept": list(about.swept),
                "jobs": [
                    {
                        "index": index,
                        "overrides": list(job.overrides),
                        "hash": job.hash,
                        "folder": os.path.relpath(job.folder.path, self.path),
                    }
                    for index, job in enumerate(jobs)
                ],
            },
        )

    def write_text(self, name: str, text: str) -> Path:
        """A file of this folder, whole or not at all."""
        with replacing(self.path / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        return self.path / name
