"""The doctor: what this machine has and lacks for a profile."""

import json
import os
import shutil
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import Any

from data_pipes.files import find_cache_root
from launch.doctor import gpu, machine, ops, packages
from launch.doctor.finding import Finding
from launch.hardware import Profile
from launch.sharding import NONE
from launch.verdict import DONE, MACHINE

_COLORS = {"ok": "green", "note": "yellow", "lacks": "bold red"}
_TO_COMPILE = {"C++ compiler", "ninja", "package deepspeed"}
Waiting = Callable[[str], AbstractContextManager[Any]]


def examine(profile: Profile, *, may_build: bool, is_offline: bool, waiting: Waiting) -> list[Finding]:
    """Look at everything that a profile stands on.

    Args:
        profile: that is asked about.
        may_build: compile what DeepSpeed would compile at first use.
        is_offline: do not ask the hub.
        waiting: a context around what takes long, given what is being done.
    """
    gpus, system = gpu.find_gpus(), gpu.find_system()
    findings = gpu.judge_gpus(gpus, profile, system)
    with waiting("asking torch"):
        findings += gpu.judge_torch(gpu.find_torch(), gpus, profile)
    findings += _examine_machine(profile)
    is_deepspeed = profile.sharding not in (None, NONE)
    extras = {"deepspeed": "deepspeed"} if is_deepspeed else {}
    findings += packages.judge_packages(find_requirements(), find_version, extras)
    with waiting("asking the hub"):
        findings += machine.judge_hub(os.environ, machine.ask_hub, is_offline=is_offline)
    builders = ops.list_ops(profile)
    findings += machine.judge_compiler(find_program, builders, profile)
    if builders and (left := ops.judge_lock(ops.find_left_lock())):
        return findings + left
    missing = {finding.name for finding in findings if finding.state == "lacks"}
    if not builders or missing & _TO_COMPILE:
        return findings
    with waiting("compiling DeepSpeed's ops for the CPU (half a minute the first time, or more)"):
        return findings + ops.build_ops(builders, ops.compile_in_child, may_build=may_build)


def _examine_machine(profile: Profile) -> list[Finding]:
    findings = []
    if sys.platform == "linux":
        findings.append(machine.judge_memory(machine.find_memory(), profile))
        findings.append(machine.judge_shm(machine.find_shm(), profile))
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    findings.append(machine.judge_cores(cores, profile))
    mounts = Path("/proc/mounts")
    for what, place in (("runs", Path("runs")), ("cache", find_cache_root())):
        there = machine.find_parent(place)
        findings.append(machine.judge_disk(what, place, shutil.disk_usage(there).free))
        if mounts.is_file():
            kind = machine.read_file_system(there.resolve(), mounts.read_text(encoding="utf-8"))
            findings.append(machine.judge_file_system(what, place, kind))
    return findings


def find_requirements() -> list[str]:
    """What our distribution requires; empty in a checkout that is not installed."""
    try:
        return requires(packages.OURS) or []
    except PackageNotFoundError:
        return []


def find_version(package: str) -> str | None:
    """The version of an installed package; None: not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def find_program(name: str) -> str | None:
    """A program on the PATH, or beside this Python (where pip puts ninja)."""
    beside = Path(sys.executable).parent
    return shutil.which(name) or shutil.which(name, path=str(beside))


def conclude(findings: Sequence[Finding]) -> tuple[int, list[str]]:
    """The exit code, and a line for each thing that is lacking: what to install or change."""
    lines = [f"{finding.name}: {finding.remedy}" for finding in findings if finding.state == "lacks"]
    return (MACHINE if lines else DONE), lines


def show(findings: Sequence[Finding], profile: Profile) -> None:
    """Print the findings as a table, and what is to be done below it."""
    from rich.markup import escape
    from rich.table import Table

    from launch.terminal import Console

    console = Console(highlight=False)
    console.print(f"[bold]{escape(profile.name)}[/]  {escape(profile.summary)}\n")
    table = Table("", "", "found", "wanted", box=None, header_style="dim", pad_edge=False)
    fine = [finding for finding in findings if finding.state == "ok" and finding.name.startswith("package ")]
    for finding in findings:
        if finding in fine:
            continue
        state = f"[{_COLORS[finding.state]}]{finding.state}[/]"
        table.add_row(state, escape(finding.name), escape(finding.found), escape(finding.wanted))
    names = ", ".join(finding.name.removeprefix("package ") for finding in fine)
    table.add_row("[green]ok[/]", f"{len(fine)} packages", escape(names))
    console.print(table)
    for finding in findings:
        if finding.state == "note" and finding.remedy:
            console.print(
                f"\n[yellow]note[/]  {escape(finding.name)}: {escape(finding.remedy)}", soft_wrap=True
            )
    code, lines = conclude(findings)
    if code == DONE:
        console.print(f"\n[green]nothing is lacking[/] for {escape(profile.name)}")
        return
    console.print(f"\n[bold red]lacking[/] for {escape(profile.name)}:")
    for line in lines:
        console.print(f"[red]  - [/]{escape(line)}", soft_wrap=True)


def show_json(findings: Sequence[Finding]) -> None:
    """Print the findings as a list of objects."""
    print(json.dumps([asdict(finding) for finding in findings], indent=2, ensure_ascii=False))  # noqa: T201
