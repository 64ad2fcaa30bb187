"""The verb `doctor`."""

import argparse
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from launch.hardware import detect_profile, find_profile

AFTER = (
    "exit codes:\n  0 nothing is lacking   2 no such profile   3 something is lacking: a line each says what"
)


def add_doctor(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add the verb."""
    doctor = add(
        "doctor", _doctor, "what this machine has and lacks for a profile",
        "doctor --profile cpu-2proc-zero2", after=AFTER,
    )  # fmt: skip
    doctor.add_argument("--profile", help="a name from `maskwright profiles`; default: this machine's")
    doctor.add_argument("--json", action="store_true", help="print a list of objects")
    doctor.add_argument("--no-build", action="store_true", help="compile nothing")
    doctor.add_argument("--offline", action="store_true", help="do not ask the hub")


def _doctor(arguments: argparse.Namespace) -> int:
    from launch.doctor.examination import conclude, examine, show, show_json

    profile = find_profile(arguments.profile) if arguments.profile else detect_profile()
    findings = examine(profile, may_build=not arguments.no_build, is_offline=arguments.offline, waiting=_wait)
    if arguments.json:
        show_json(findings)
    else:
        show(findings, profile)
    return conclude(findings)[0]


@contextmanager
def _wait(what: str) -> Iterator[None]:
    """A spinner on stderr with the time that has gone by."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    from launch.terminal import Console

    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        progress.add_task(what, total=None)
        yield
