"""The run: executes the command of a plan and says how it ended."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import IO

from launch.manifest import find_checkpoints
from launch.plan import Plan
from launch.rendering import write_configs
from launch.verdict import (
    DEFECT,
    DONE,
    REQUEST,
    STOPPED,
    UNDER_RUN,
    RunError,
    Verdict,
    clear_verdict,
    has_verdict,
    make_folder,
    read_verdict,
)


def execute(plan: Plan, configs: dict[str, str], output: Path) -> Verdict:
    """Write the plan's configuration files, start its command, wait for it and read its trainer's verdict.

    SIGTERM and SIGINT are handed to the whole process group: `accelerate launch` with one process would
    die alone and leave the training running.
    """
    environment = {**os.environ, **plan.environment, UNDER_RUN: "1"}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    open_names = [word[1:] for word in plan.command if word.startswith("$") and word[1:] not in environment]
    if open_names:
        wanted = ", ".join(open_names)
        return Verdict(REQUEST, f"a run on {plan.nodes} machines wants {wanted} in the environment of each")
    command = [environment[word[1:]] if word.startswith("$") else word for word in plan.command]
    try:
        clear_verdict(make_folder(output))
        write_configs(configs, output)
    except RunError as error:
        return error.verdict
    process = subprocess.Popen(command, env=environment, start_new_session=True, stderr=subprocess.PIPE)
    assert process.stderr is not None
    listener = Thread(target=_pass_on, args=(process.stderr, output))
    listener.start()
    with _signals_forwarded(process) as forwarded:
        exit_code = process.wait()
    listener.join()
    verdict = read_verdict(output)
    if verdict is not None:
        return verdict
    if exit_code == 0:
        return Verdict(DONE, "done")
    if forwarded:
        return _stopped(signal.Signals(forwarded[0]).name, output)
    return Verdict(DEFECT, f"the launcher ended with {exit_code} before a trainer could say why; see above")


def _pass_on(stderr: IO[bytes], output: Path) -> None:
    """Show what comes on stderr until a trainer has said why it ends.

    What follows is the launchers' own traceback of a process that failed; it goes into RUN/launcher.log.
    """
    with (output / "launcher.log").open("wb") as log:
        for line in stderr:
            log.write(line)
            if not has_verdict(output):
                sys.stderr.buffer.write(line)
                sys.stderr.buffer.flush()


def _stopped(signal_name: str, output: Path) -> Verdict:
    found = find_checkpoints(output)
    if not found:
        return Verdict(
            STOPPED, f"stopped by {signal_name} before the first checkpoint; the same command starts anew"
        )
    return Verdict(STOPPED, f"stopped by {signal_name}; the same command goes on from {found[0].name}")


@contextmanager
def _signals_forwarded(process: subprocess.Popen) -> Iterator[list[int]]:
    """Hand signals to the process group of a child; the numbers of those that came."""
    forwarded: list[int] = []

    def forward(number: int, _: FrameType | None) -> None:
        forwarded.append(number)
        if process.poll() is None:
            os.killpg(process.pid, number)

    previous = {number: signal.signal(number, forward) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield forwarded
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
