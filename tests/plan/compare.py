"""The table in docs/scaling.md, plan beside measurement: `PYTHONPATH=. python tests/plan/compare.py` (minutes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import test_plan


def ask(job: dict[str, Any], what: str, **env: str) -> float:
    """MB that a process of its own measured."""
    script = Path(__file__).with_name("measured.py")
    done = subprocess.run(
        [sys.executable, str(script), json.dumps(job | {"what": what})],
        env=os.environ | {"OMP_NUM_THREADS": "1"} | env, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return float(json.loads(done.stdout)[what]) / 1e6


def main() -> None:
    """One line for each architecture, with and without checkpointing, in fp32 and bf16."""
    print("| | plan, MB | allocator | plan / it | resident, blocks given back | plan / it | resident | plan / it |")
    print("|---|---|---|---|---|---|---|---|")
    for kind in test_plan.KINDS:
        for checkpointing in (False, True):
            for bf16 in (False, True):
                job = test_plan.job_of(kind, checkpointing, bf16)
                plan = test_plan.planned(job).total / 1e6
                found = [ask(job, "allocated"), ask(job, "resident", **test_plan.GIVES_BACK), ask(job, "resident")]
                cells = [f"{value:.0f} | {plan / value:.3f}" for value in found]
                name = f"{kind}, {'bf16' if bf16 else 'fp32'}{', checkpointing' if checkpointing else ''}"
                print(f"| {name} | {plan:.0f} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
