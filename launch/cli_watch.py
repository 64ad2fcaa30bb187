"""The verbs `watch` and `runs`: runs that are somewhere else, seen from what they leave."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path

from launch.verdict import REQUEST, RunError


def add_watch(add: Callable[..., argparse.ArgumentParser]) -> None:
    """Add both verbs."""
    watch = add(
        "watch", _watch, "follow a run that is under way; Ctrl-C leaves it alone",
        "watch runs/canine-tiny-domains-char",
        after="It only reads the folder, and ends with the run (exit code 0).",
    )  # fmt: skip
    watch.add_argument("run", metavar="RUN", help="a run folder")
    way = watch.add_mutually_exclusive_group()
    way.add_argument("--once", action="store_true", help="say how it stands now, and end")
    way.add_argument("--wait", action="store_true", help="wait for a run that has not begun yet")
    runs = add("runs", _runs, "the runs of a folder: how they stand, how far, how good", "runs runs --json")
    runs.add_argument("folder", nargs="?", default="runs", metavar="FOLDER", help="default: runs")
    runs.add_argument("--json", action="store_true", help="print a list of objects")


def _watch(arguments: argparse.Namespace) -> int:
    from launch.watching.watch import watch

    return watch(Path(arguments.run), is_once=arguments.once, waits=arguments.wait)


def _runs(arguments: argparse.Namespace) -> int:
    from launch.console import print_table
    from launch.terminal import to_json
    from launch.watching.runs import as_dict, list_runs, tabulate

    folder = Path(arguments.folder)
    if not folder.is_dir():
        raise RunError(REQUEST, f"{folder} is not there; name a folder with runs in it")
    rows = list_runs(folder)
    if arguments.json:
        print(to_json([as_dict(row) for row in rows], indent=2))  # noqa: T201
    elif rows:
        print_table(*tabulate(rows, folder))
    else:
        print(f"no runs in {folder}{os.sep}")  # noqa: T201
    return 0
