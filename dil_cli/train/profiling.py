"""`profile=true`: a few steps as torch's profiler sees them, for chrome://tracing or Perfetto."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile, schedule

from dil_cli.files import replacing

WARM_UP = 3
"""Steps before the trace: kernels are chosen and memory is taken in the first, the profiler starts in the last."""
TRACED = 3


TRACE = "trace.json.gz"


@contextmanager
def profiled(
    folder: Path | None, device: torch.device, steps: int, say: Callable[[str], None]
) -> Iterator[Callable[[], None]]:
    """Gives what is to be called after each step; the trace is written once its last step has ended.

    What happens between the steps, such as measurements, is in the trace too.

    Args:
        folder: of the trace; None traces nothing.
        device: where the policy lives.
        steps: of the run from here on; fewer than `WARM_UP + TRACED` give no trace.
        say: is told where the trace is.
    """
    if folder is not None and steps < WARM_UP + TRACED:
        say(f"no profile: it takes {WARM_UP + TRACED} steps, this run has {steps} to go")
        folder = None
    if folder is None:
        yield lambda: None
        return

    def write(profiler: profile) -> None:
        with replacing(folder) as temporary:
            temporary.mkdir()
            profiler.export_chrome_trace(str(temporary / TRACE))
        say(f"profile {folder / TRACE}, for ui.perfetto.dev or chrome://tracing")

    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    plan = schedule(wait=WARM_UP - 1, warmup=1, active=TRACED, repeat=1)
    with profile(activities=activities, schedule=plan, on_trace_ready=write, record_shapes=True) as profiler:
        yield profiler.step
