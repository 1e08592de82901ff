"""Markdown tables of measurements: `python -m benchmarks.table outputs/bench/*.json`."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks import machine

TARGETS = (
    ("dil_cached", "trl_precomputed", "cached, against TRL as shipped, reference precomputed", 10.0),
    ("dil_first", "trl_online", "first run, against TRL as shipped, reference online", 9.0),
    ("dil_cached", "trl_grouped", "cached, against TRL grouped by length with oneDNN", 4.0),
    ("dil_cached", "trl_tuned", "cached, against that in micro-batches", None),
    ("dil_cached", "trl_patched", "cached, against that with TRL's source patched", None),
)
"""What is aimed at on HH pairs, 8k vocabulary, fp32: ours, theirs, in words, times as many pairs a second."""
MEMORY = (
    ("dil_cached", "trl_plain", "as a part of TRL's, neither checkpoints"),
    ("dil_checkpointed", "trl_precomputed", "as a part of TRL's, both checkpoint"),
    ("dil_cached", "trl_precomputed", "as a part of TRL's, only TRL checkpoints"),
)
"""Ours, theirs, in words."""
BUSY = 0.85
"""On a core for less than this part of its time, a side was not alone on the machine."""
KINDS = {"hh": "HH pairs", "long": "long pairs"}


def main() -> None:
    """Print the tables of all files given."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.table", description=__doc__)
    parser.add_argument("files", nargs="+", type=Path)
    print("\n".join(render([json.loads(file.read_text()) for file in parser.parse_args().files])))


def render(reports: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of all tables, each report under its machine."""
    lines: list[str] = []
    tables = {"vs_trl": _vs_trl_report, "scaling": _scaling_report, "gpu": _gpu_report}
    for report in reports:
        lines += [*tables[report["benchmark"]](report), "", f"Command: `{report['command'].strip()}`", ""]
        lines += [f"Machine: {machine.line(report['machine'])}.", ""]
    return lines


def _vs_trl_report(report: dict[str, Any]) -> list[str]:
    lines = ["*A smoke test of a tiny model: the numbers mean nothing.*", ""] if report["quick"] else []
    for setting in report["settings"]:
        lines += [*vs_trl_table(setting), ""]
    return lines + _target_table(report)


def vs_trl_table(setting: dict[str, Any]) -> list[str]:
    """One combination: a row a side, then what the columns need to be read."""
    sides = {side["name"]: side for side in setting["sides"]}
    tokens, work = setting["tokens"], setting["work_gflop"]
    lines = [
        f"### {KINDS[setting['pairs']]}, {setting['vocab']} vocabulary, {setting['dtype']}", "",
        "| | pairs/s (slowest to fastest round) | x precomputed | x online | x grouped | x tuned | memory growth, GB "
        "| tokens/pair in the body | of the limit |",
        "|---|---|---|---|---|---|---|---|---|",
    ]  # fmt: skip
    for side in setting["sides"]:
        if side["failed"]:
            lines.append(f"| {side['title']} | failed: {side['failed']} | | | | | | | |")
            continue
        ratios = [_ratio(side, sides.get(f"trl_{name}")) for name in ("precomputed", "online", "grouped", "tuned")]
        lines.append(
            f"| {side['title']} | {_speed(side)} | "
            + " | ".join(ratios)
            + f" | {side['memory_gb']:.2f} | {side['body_tokens']:.0f} | {100 * side['of_limit']:.0f} % |"
        )
    forward = sum(work.values())
    parts = ", ".join(f"{name} {3 * value:.2f}" for name, value in work.items())
    threads = ", ".join(f"{name} {side['threads']}" for name, side in sides.items() if not side["failed"])
    about = (
        f"{setting['source']}.",
        f"Tokens of a pair: {tokens['padded']:.0f} padded in shuffled batches of {setting['batch']},",
        f"{tokens['grouped']:.0f} grouped by length, {tokens['unpadded']:.0f} unpadded, {tokens['unique']:.0f} unique,",
        f"{tokens['response']:.0f} in the responses.",
        f"Must-do work: {3 * forward:.2f} GFLOP a pair ({parts}), {4 * forward:.2f} with a reference pass;",
        f"the machine multiplies at {setting['matmul_gflops']:.0f} GFLOP/s.",
        f"Threads: {threads}. {setting['rounds']} rounds of {setting['steps']} steps.",
    )
    return [*lines, "", " ".join(about), "", *_check_lines(setting), *_busy_lines(setting)]


def _check_lines(setting: dict[str, Any]) -> list[str]:
    """Whether all sides computed the same thing, in words that a reader can check."""
    compared = [check for check in setting["checks"] if "first_loss" in check]
    lines = []
    if compared:
        losses = sorted({f"{check['first_loss']:.6f}" for check in compared})
        loss = " to ".join(dict.fromkeys([losses[0], losses[-1]]))
        worst = max(check["gradient"] for check in compared)
        lines.append(
            f"First step: loss {loss} on all {len(compared)} sides (log 2 = "
            f"0.693147); gradient norms within {worst:.1e} of dil's on the same batch."
        )
        moved = [check["moved"] for check in compared if "moved" in check]
        if moved:
            lines[-1] += (
                f" After all steps the sides in shuffled batches are as far from the start, within {max(moved):.1e}."
            )
    wrong = [check for check in setting["checks"] if not check["ok"]]
    return lines + [f"**Not the same computation: {json.dumps(check)}**" for check in wrong]


def _busy_lines(setting: dict[str, Any]) -> list[str]:
    """A warning, when a side's main thread had to wait for a core."""
    parts = {side["name"]: sum(side["on_core"]) / sum(side["seconds"]) for side in setting["sides"] if side["seconds"]}
    worst = min(parts, key=lambda name: parts[name], default=None)
    if worst is None or parts[worst] >= BUSY:
        return []
    return ["", f"**The machine was busy: {worst} was on a core for {100 * parts[worst]:.0f} % of its time.**"]


def _target_table(report: dict[str, Any]) -> list[str]:
    """Reached or not, for the combination in which the targets are stated."""
    key = ("hh", "8k", "fp32")
    setting = next((s for s in report["settings"] if (s["pairs"], s["vocab"], s["dtype"]) == key), None)
    sides = {side["name"]: side for side in setting["sides"]} if setting else {}
    if report["quick"] or "dil_cached" not in sides:
        return []
    lines = ["### Aims (HH pairs, 8k vocabulary, fp32)", "", "| | aim | measured |", "|---|---|---|"]
    for ours, theirs, text, aim in TARGETS:
        if {ours, theirs} <= sides.keys():
            wanted = f"{aim:g} x" if aim else ""
            lines.append(f"| pairs/s, {text} | {wanted} | {_ratio(sides[ours], sides[theirs])} x |")
    for ours, theirs, text in MEMORY:
        if {ours, theirs} <= sides.keys() and sides[theirs]["memory_gb"]:
            part = sides[ours]["memory_gb"] / sides[theirs]["memory_gb"]
            lines.append(f"| memory growth, {text} | 0.25 | {part:.2f} |")
    return [*lines, f"| of the must-do limit, cached | 60 % | {100 * sides['dil_cached']['of_limit']:.0f} % |"]


def _speed(side: dict[str, Any]) -> str:
    return f"{side['pairs_per_s']:.2f} ({side['slowest']:.2f} to {side['fastest']:.2f})"


def _ratio(side: dict[str, Any], other: dict[str, Any] | None) -> str:
    if not other or not other["pairs_per_s"]:
        return ""
    return f"{side['pairs_per_s'] / other['pairs_per_s']:.2f}"


def _scaling_report(report: dict[str, Any]) -> list[str]:
    lines = ["*A smoke test of a tiny model: the numbers mean nothing.*", ""] if report["quick"] else []
    lines += [
        "### Cost per pair by number of pairs",
        "",
        "| pairs | reference, ms | training, ms | both, ms | x the first |",
    ]
    lines.append("|---|---|---|---|---|")
    base = None
    for row in report["numbers"]:
        both = row["score_ms"] + row["train_ms"]
        base = base or both
        lines.append(
            f"| {row['pairs']:,} | {row['score_ms']:.1f} | {row['train_ms']:.1f} | {both:.1f} | {both / base:.2f} |"
        )
    lines += ["", "### Cost per pair by length", ""]
    lines += [
        "| tokens (unique) | must-do, GFLOP | measured, ms | of the limit | x time | x must-do |",
        "|---|---|---|---|---|---|",
    ]
    first = report["lengths"][0]
    for row in report["lengths"]:
        lines.append(
            f"| {row['tokens']:,} | {row['gflop']:.2f} | {row['ms']:.1f} | {100 * row['of_limit']:.0f} % | "
            f"{row['ms'] / first['ms']:.2f} | {row['gflop'] / first['gflop']:.2f} |"
        )
    lines += ["", f"Both are a reference pass and one epoch of training; {report['about']}"]
    return lines


def _gpu_report(report: dict[str, Any]) -> list[str]:
    head = f"### {report['title']}"
    if not report["settings"]:
        return [head, "", "not measured"]
    lines = [
        head,
        "",
        "| | checkpointing | pairs/s (slowest to fastest round) | x TRL | MFU | of the matmul rate | peak memory, GB |",
    ]
    lines.append("|---|---|---|---|---|---|---|")
    for setting in report["settings"]:
        best = max((s["pairs_per_s"] for s in setting["sides"] if s["name"].startswith("trl")), default=0)
        for side in setting["sides"]:
            name = f"| {side['title']} | {'on' if setting['checkpointing'] else 'off'} |"
            if side["failed"]:
                lines.append(f"{name} failed: {side['failed']} | | | | |")
                continue
            mfu = f"{100 * side['mfu']:.0f} %" if side["mfu"] else "unknown peak"
            ratio = f"{side['pairs_per_s'] / best:.2f}" if best else ""
            lines.append(
                f"{name} {_speed(side)} | {ratio} | {mfu} | "
                f"{100 * side['of_limit']:.0f} % | {side['before_gb'] + side['memory_gb']:.1f} |"
            )
    lines += ["", report["about"]]
    for setting in report["settings"]:
        lines += ["", *_check_lines(setting)]
    return lines


if __name__ == "__main__":
    main()
