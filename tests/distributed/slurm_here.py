#!/usr/bin/env python3
"""Slurm's commands as submitit calls them, on this machine alone: every task of every node is a process here.

Called by the name of its link: `sbatch`, `srun`, `sacct`, `scontrol`. What it was asked for stays beside the links.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).absolute().parent
JOB = "42"


def sbatch(script: Path) -> None:
    """Start the job in the background and say its number."""
    (HERE / "job.sh").write_text(script.read_text())
    subprocess.Popen(
        [HERE / "scontrol", "requeue", JOB], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    print(f"Submitted batch job {JOB}")


def scontrol(word: str, job: str) -> None:
    """`scontrol requeue 42`: run the job until it ends."""
    asked = dict(re.findall(r"^#SBATCH --([a-z-]+)=(.*)$", (HERE / "job.sh").read_text(), flags=re.MULTILINE))
    nodes, per_node = int(asked["nodes"]), int(asked["ntasks-per-node"])
    told = {
        "SLURM_JOB_ID": job, "SLURM_NTASKS": str(nodes * per_node), "SLURM_JOB_NUM_NODES": str(nodes),
        "SLURM_JOB_NODELIST": f"127.0.0.[1-{nodes}]",
    }  # fmt: skip
    subprocess.run(["bash", str(HERE / "job.sh")], env={**os.environ, **told}, check=False)
    (HERE / "ended").touch()


def srun(*words: str) -> None:
    """One process for each task, its streams where `--output` and `--error` say."""
    flags = {word: words[i + 1] for i, word in enumerate(words) if word in {"--output", "--error"}}
    command = words[words.index(sys.executable) :]
    tasks, nodes = int(os.environ["SLURM_NTASKS"]), int(os.environ["SLURM_JOB_NUM_NODES"])
    started = []
    for rank in range(tasks):
        node, local = divmod(rank, tasks // nodes)
        told = {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(local), "SLURM_NODEID": str(node)}
        out, err = (Path(flags[flag].replace("%j", JOB).replace("%t", str(rank))) for flag in ("--output", "--error"))
        with out.open("a") as stdout, err.open("a") as stderr:
            started.append(subprocess.Popen(command, env={**os.environ, **told}, stdout=stdout, stderr=stderr))
    sys.exit(max(process.wait() for process in started))


def sacct(*_: str) -> None:
    """The state of the job."""
    state = "COMPLETED" if (HERE / "ended").exists() else "RUNNING"
    print(f"JobID|State|NodeList\n{JOB}|{state}|127.0.0.1")


if __name__ == "__main__":
    commands = {"sbatch": lambda path: sbatch(Path(path)), "srun": srun, "sacct": sacct, "scontrol": scontrol}
    commands[Path(sys.argv[0]).name](*sys.argv[1:])
