"""What can be configured of benchmarks through lm-eval; the rest of `dil eval` is in `schema.py`."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from dil_cli.errors import DilError, require, require_file_name


class Backend(str, Enum):
    """What computes a benchmark's answers."""

    hf = "hf"
    vllm = "vllm"


@dataclass(kw_only=True)
class Recipe:
    """One benchmark as lm-eval has it.

    `task`: its name there, of a task, group or tag. `shots`: solved examples in the prompt (null: as lm-eval has it).
    `metrics`: those to keep, in lm-eval's spelling without `,none`, the one to show first (none: all). `questions`: how
    many the whole benchmark has, so that a score on fewer says so.
    """

    task: str
    shots: int | None = None
    metrics: list[str] = field(default_factory=list)
    questions: int | None = None

    def __post_init__(self) -> None:
        require(self.shots is None or self.shots >= 0, "shots", self.shots, "be 0 or more, or null", 5)


@dataclass(kw_only=True)
class HarnessConfig:
    """Benchmarks through lm-eval, each with a record of its own.

    `tasks`: name to recipe; where there are none, `task` is one by lm-eval's name. `shots`: instead of the recipes'.
    `root`: a folder with the data sets by hub id, nothing then comes from the hub. `limit`: only the first questions of
    each task. `chat_template`: null uses one where the checkpoint has one. `max_length`: tokens of prompt and answer
    (null: what the model takes). `tensor_parallel` and `gpu_memory` (the part of it) are vllm's.
    """

    name: str
    tasks: dict[str, Recipe] = field(default_factory=dict)
    task: str | None = None
    shots: int | None = None
    root: str | None = None
    backend: Backend = Backend.hf
    batch_size: int | str = 8
    limit: int | None = None
    chat_template: bool | None = None
    max_length: int | None = None
    tensor_parallel: int = 1
    gpu_memory: float = 0.9

    def __post_init__(self) -> None:
        if self.tasks:
            require(self.task is None, "benchmark.task", self.task, f"stay null with benchmark={self.name}", "null")
        elif not self.task:
            raise DilError("benchmark.task must be set", "benchmark.task", "benchmark.task=hellaswag")
        for name in self.recipes():  # of a file and a folder beside the checkpoint
            require_file_name("benchmark.tasks" if self.tasks else "benchmark.task", name, "gsm8k")
        size = self.batch_size
        require(size == "auto" or (isinstance(size, int) and size > 0), "benchmark.batch_size", size,
                "be above 0, or auto", 8)  # fmt: skip
        for key in ("limit", "max_length"):
            value = getattr(self, key)
            require(value is None or value > 0, f"benchmark.{key}", value, "be above 0 or null", "null")
        require(self.shots is None or self.shots >= 0, "benchmark.shots", self.shots, "be 0 or more, or null", 5)
        require(self.tensor_parallel > 0, "benchmark.tensor_parallel", self.tensor_parallel, "be above 0", 1)
        require(0 < self.gpu_memory <= 1, "benchmark.gpu_memory", self.gpu_memory, "be above 0 and at most 1", 0.9)
        if self.backend is Backend.hf:
            for key, default in (("tensor_parallel", 1), ("gpu_memory", 0.9)):
                value = getattr(self, key)
                must = f"stay {default} unless benchmark.backend=vllm"
                require(value == default, f"benchmark.{key}", value, must, default)

    def recipes(self) -> dict[str, Recipe]:
        """Name of the record to recipe, in the order in which they are run."""
        return dict(self.tasks) or {str(self.task): Recipe(task=str(self.task))}
