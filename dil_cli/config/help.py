"""`dil COMMAND --help`: the groups with a line each, read from the first comment of every YAML.

Hydra's own help composes the config first and walks its own groups; this answers at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from dil_cli.config.paths import conf_dir, config_dirs

HEADER = """dil {command}: {summary}

usage: dil {command} [group=choice ...] [key=value ...]
"""

FOOTER = """
values (dil {command} --cfg job prints all of them, with any choice you add):
{values}

options:
{switches}  --cfg job            print the composed config and stop (--resolve fills the ${{references}})
  --config-dir DIR     add your own groups: DIR/loss/mine.yaml gives loss=mine (docs/custom_loss.md)
  --info defaults      where each group's choice comes from
  --hydra-help         Hydra's own options
"""

ROOTS = {"sweep": "train", "doctor": "train"}
"""Commands whose config is that of another."""

SWITCHES = {
    "train": "  --dry-run            load all, take a few steps in memory, say what the run will take; write nothing\n"
    "  -m, --multirun       one run for each combination: loss=lsif,ukl seed=0,1,2 (the same as dil sweep)\n",
    "sweep": "  --dry-run            list the runs, which of them are done, and how long the rest will take\n",
    "plan": "  --json               numbers for programs: bytes, FLOPs, seconds\n",
    "eval": "  --stage DIR          print what to download into DIR for benchmark=... on a machine without a network\n"
    "  -m, --multirun       several, one after the other: checkpoint=outputs/A,outputs/B\n",
}
"""Options of one command alone."""

VALUES = {
    "train": {
        "seed": "order of the pairs, label noise",
        "name": "the run's folder is <output>/<name>-<hash of its config and data>",
        "optim.lr, optim.batch_size": "default to the scale of the model: ${model.lr}, ${model.batch_size} pairs",
        "optim.lr_factor": "multiplies optim.lr, whatever the model: optim.lr_factor=0.6,1,1.2,2",
        "optim.epochs, optim.clip": "passes over the pairs; gradient norm limit",
        "peft.r, peft.alpha": "with peft=lora, dora or qlora: rank, and scale alpha / r; peft.dropout in steps",
        "peft.targets, peft.lr_factor": "layers by name, null: all linear ones; times the model's learning rate (10)",
        "loss.reduction": "mean|sum: log-probs per token or per response",
        "data.limit, data.label_noise": "first N pairs only; fraction of pairs with flipped label",
        "data.join_to": "join short pairs until prompt and longer response have so many tokens",
        "data.path, model.path": "a file or folder of your own (data=local, model=local)",
        "probe.pairs, probe.times": "held-out pairs measured, and how often",
        "checkpoint.every": "steps between checkpoints (0: only at the end); checkpoint.keep=2: newest two, best",
        "checkpoint.resume_minutes": "between states that a killed run goes on from (5)",
        "distributed.processes": "how many, in all; without it the launcher's number, or one for each GPU here",
        "distributed.offload": "fsdp2, zero3: true keeps weights and optimiser state in the machine's memory",
        "resume": "auto|must|never: an unfinished run goes on, must do so, or starts over",
        "precision, device": "auto|fp32|bf16, auto|cpu|cuda|mps",
        "profile=true": "trace steps 4 to 6 by torch's profiler: profile/trace.json.gz in the run's folder",
        "allow_custom=true": "run the Python files beside your own YAML in --config-dir",
        "hydra.run.dir": "a run folder of your own choice",
    },
    "sweep": {
        "loss=lsif,ukl,dpo": "a list: one run for each of its values, and for each combination with other lists",
        "seed=range(0,3)": "0,1,2; of an interval the end is left out",
        "optim.lr=1e-4,3e-4": "any value of dil train (dil train --help) can be a list",
        "experiment=...": "a grid with its question; what you add on the command line takes the place of its own",
        "tracker.group": "the group in W&B; the sweep's name if not set",
        "hydra/launcher": "basic: one after the other, here; joblib: hydra.launcher.n_jobs at once; slurm: a job each",
        "hydra.launcher.*": "n_jobs of joblib; partition, timeout_min, gpus_per_node, array_parallelism of slurm",
    },
    "plan": {
        "gpu=...": "h100-80|h200-141|a100-80|a100-40|l40s-48|rtx4090-24|b200-180|..., cpu; without: this machine",
        "distributed.processes=N": "GPUs, a process each",
        "distributed=...": "what each holds; without it the first of none or ddp and fsdp2 that fits",
        "peft=lora, peft.r=16": "adapters instead of all weights: lora, dora, qlora, as dil train takes them",
        "mfu": "part of the peak FLOP/s that is assumed to be reached (0.4)",
        "lengths=[45,420,256]": "mean tokens of prompt, chosen, rejected; counted if model and data are here",
        "pairs": "to train on; counted, or known of the data sets that ship with dil",
        "optim.token_budget": "tokens of a row: what activations grow with",
        "model.gradient_checkpointing": "true: activations of one layer at a time, a forward pass more",
        "model.path": "a folder or hub id: its config.json is enough, no weights are read",
        "anything of dil train": "dil train --help: the same config, planned instead of run",
    },
    "eval": {
        "checkpoint=...": "a run's folder, one of its checkpoints, a sweep, a folder with a model or adapter, a hub id",
        "against=...": "another of these, to be compared with pair by pair",
        "reference=...": "the model that changes are relative to; without it the one that the run started from",
        "benchmark.pairs": "likelihood: so many of the held-out pairs, spread evenly; null: all",
        "benchmark.opponent": "winrate: chosen|rejected response, or the reference model's (against= names another)",
        "benchmark.prompts, ...": "winrate: how many; max_new_tokens, temperature, top_p of the responses",
        "judge.key_env": "the environment variable with the key of judge=openai (OPENAI_API_KEY); no key in any config",
        "judge.prompt": "summary|dialogue, or a file with {prompt}, {a} and {b} (docs/eval.md)",
        "benchmark=paper, ...": "all but likelihood and winrate go through lm-eval: pip install 'dil[eval]'",
        "benchmark.root=DIR": "lm-eval's: data sets by hub id in a folder, nothing from the hub; --stage says which",
        "benchmark.limit=N": "lm-eval's: the first N questions of each task, to try it; the record says so in its name",
        "benchmark.batch_size": "lm-eval's: prompts at once (8), auto: as many as a GPU takes",
        "benchmark.chat_template": "lm-eval's: null uses the checkpoint's where it has one; true, false",
        "benchmark.shots": "lm-eval's: solved examples in each prompt, in place of the benchmark's own number",
        "benchmark.backend": "lm-eval's: hf|vllm, with benchmark.tensor_parallel and benchmark.gpu_memory for vllm",
        "accept=[data]": "go on although data, template, tokenizer or reference are not the run's any more",
        "model.max_length, ...": "how to read a model of no run; a run's is read as it was trained",
        "precision, device": "auto|fp32|bf16, auto|cpu|cuda|mps",
    },
}


def root_config(command: str) -> Path:
    """The YAML at the root of a command's config; a sweep is made of runs of `dil train`."""
    return conf_dir() / f"{ROOTS.get(command, command)}.yaml"


def describe(path: Path) -> str:
    """The first comment line of a YAML file, past Hydra's `# @package` line."""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("#") and not line.startswith("# @"):
            return line.lstrip("# ").strip()
        if line and not line.startswith("#"):
            break
    return ""


NESTED = {
    "experiment/quick": "a part of each grid below 10 minutes on the tiny model: experiment=quick/fig2_dynamics",
    "experiment/results": "grids of the pages in docs/results, which `make results` runs",
}
"""Folders within a group, told in a line instead of listed."""


def choices(folders: Sequence[Path], group: str) -> dict[str, Path]:
    """What a group offers in these folders: name, with that of its folder within the group, to YAML."""
    found: dict[str, Path] = {}
    for root in (folder / group for folder in folders):
        paths = sorted(root.rglob("*.yaml"), key=lambda path: (len(path.parts), path))
        found |= {path.relative_to(root).with_suffix("").as_posix(): path for path in paths}
    return found


def default_choices(root: Path) -> dict[str, str]:
    """Group -> choice from the defaults list of a root config, without importing a YAML parser."""
    choices = {}
    for line in root.read_text(encoding="utf-8").splitlines():
        group, colon, choice = line.strip().removeprefix("- ").partition(": ")
        if colon and line.startswith("  - ") and not group.startswith("override "):
            choices[group.removeprefix("optional ").strip()] = choice.strip()
    return choices


def command_help(command: str, summary: str, argv: list[str]) -> str:
    """The help text of a command; groups of `--config-dir` in `argv` are listed too."""
    folders = [conf_dir(), *config_dirs(argv)]
    defaults = default_choices(root_config(command))
    lines = [HEADER.format(command=command, summary=summary)]
    for group, default in defaults.items():
        found = {name: describe(path) for name, path in choices(folders, group).items()}
        for nested in [key for key in NESTED if key.startswith(f"{group}/")]:
            within = nested.removeprefix(f"{group}/")
            found = {name: text for name, text in found.items() if not name.startswith(f"{within}/")}
            found[f"{within}/..."] = NESTED[nested]
        if not found:
            continue
        lines.append(f"{group}=")
        width = max(map(len, found))
        for name, text in found.items():
            mark = "*" if name == default else " "
            lines.append(f"  {mark} {name.ljust(width)}  {text}".rstrip())
    lines.append("  (* default)")
    values = VALUES[command]
    width = max(map(len, values))
    shown = "\n".join(f"  {key.ljust(width)}  {text}" for key, text in values.items())
    return "\n".join(lines) + "\n" + FOOTER.format(command=command, values=shown, switches=SWITCHES[command])
