"""Mutations: each guard of tests/mutations.json is taken out in a copy of the tree; its tests must go red.

`python -m tests.mutate [PATTERN...]` runs those whose name contains one of the words or fits one of the
patterns (`save-*`); without any, all of them. `-j 2` runs two at a time, each in a copy of its own.
An entry has `name`, `file`, `old` (a text that stands there once), `new`, and `tests` (pytest node ids, each
of which must fail). With `"hangs": true` its tests may also be noticed by never coming to an end.

Red means noticed only where the same tests are green without the mutation, so they are run as the copy is
first (`--baseline-only` stops there). The exit code is 1 when an entry has a problem: its tests are not green
or do not notice it, they hang, or its `old` is gone.
"""

import argparse
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from fnmatch import fnmatch
from pathlib import Path
from queue import SimpleQueue
from typing import Any, TypeVar

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("mutations.json")
MUTATION_SECONDS = 600
# All named tests of a file in one go, on a machine that does other things too.
BASELINE_SECONDS = 1200
# For tests that hang to end what they started.
_LAST_WORDS_SECONDS = 20
_LEFT_OUT = shutil.ignore_patterns(
    ".git",
    ".venv",
    "runs",
    "shared",
    "__pycache__",
    ".pytest_cache",
    ".ruff_cache",
    ".hypothesis",
    "*.egg-info",
)
_PYTEST = (
    sys.executable,
    "-m",
    "pytest",
    "-q",
    "--tb=no",
    "-rpfE",
    "--durations=0",
    "-p",
    "no:cacheprovider",
)
_OUTCOME = re.compile(r"^(PASSED|FAILED|ERROR) (.+?)(?: - .*)?$", re.MULTILINE)
# So that Ctrl-C, which they do not get themselves, ends them.
_RUNNING: set["subprocess.Popen[str]"] = set()
Entry = dict[str, Any]
T = TypeVar("T")


def read_mutations(patterns: Sequence[str] = ()) -> list[Entry]:
    """The entries whose name contains one of the words or fits one of the patterns; all without any."""
    entries = json.loads(LIST.read_text(encoding="utf-8"))
    wanted = [f"*{pattern}*" for pattern in patterns] or ["*"]
    return [entry for entry in entries if any(fnmatch(entry["name"], pattern) for pattern in wanted)]


def mutate(text: str, entry: Entry) -> str:
    """A file's text after a mutation.

    Raises:
        ValueError: what it replaces does not stand there exactly once.
    """
    count = text.count(entry["old"])
    if count != 1:
        raise ValueError(f"stale: its old text stands {count} times in {entry['file']}")
    return text.replace(entry["old"], entry["new"])


def run_tests(tests: Sequence[str], tree: Path, timeout: float) -> tuple[int, str]:
    """Run tests in a tree; pytest's exit code and what it said.

    Raises:
        TimeoutError: they took longer than `timeout` seconds; they and what they started are ended.
    """
    # With stale bytecode a mutation of the same second and size would not be seen.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [*_PYTEST, *tests],
        cwd=tree,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    _RUNNING.add(process)
    try:
        said, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired as error:
        # As after Ctrl-C, tests may end what they started in sessions of their own.
        process.send_signal(signal.SIGINT)
        with suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=_LAST_WORDS_SECONDS)
        raise TimeoutError(f"not over after {timeout:.0f} s") from error
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        _RUNNING.discard(process)
    return process.returncode, said


def find_outcomes(said: str, test: str) -> set[str]:
    """How a test ended, by pytest's summary: of PASSED, FAILED and ERROR those of any of its parameters."""
    return {kind for kind, name in _OUTCOME.findall(said) if name == test or name.startswith(f"{test}[")}


def find_not_green(tests: Sequence[str], tree: Path) -> dict[str, str]:
    """Run tests on a tree without a mutation; what is wrong with each that does not pass."""
    try:
        code, said = run_tests(tests, tree, BASELINE_SECONDS)
    except TimeoutError as error:
        return {test: f"{test} and others of its file are {error}, unmutated" for test in tests}
    wrong = {}
    for test in tests:
        outcomes = find_outcomes(said, test)
        if outcomes != {"PASSED"}:
            how = " and ".join(sorted(outcomes)).lower() or f"not run ({_shorten(code, said)})"
            wrong[test] = f"{test} is {how}, unmutated"
    return wrong


def judge(entry: Entry, tree: Path) -> str:
    """Run an entry's tests on a mutated tree; what is wrong with them, or an empty text."""
    path = tree / entry["file"]
    whole = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutate(whole, entry), encoding="utf-8")
        code, said = run_tests(entry["tests"], tree, MUTATION_SECONDS)
    except ValueError as error:
        return str(error)
    except TimeoutError as error:
        return "" if entry.get("hangs") else f'{error}: say "hangs": true if that is how it is noticed'
    finally:
        path.write_text(whole, encoding="utf-8")
    if code != 1:
        return f"not noticed: {_shorten(code, said)}"
    missed = [test for test in entry["tests"] if not find_outcomes(said, test) & {"FAILED", "ERROR"}]
    return f"not noticed by {', '.join(missed)}" if missed else ""


class Trees:
    """Copies of a tree, as many as there are jobs; each is used by one at a time."""

    def __init__(self, root: Path, folder: Path, num_jobs: int):
        self._num_jobs = num_jobs
        self._free: SimpleQueue[Path] = SimpleQueue()
        for number in range(num_jobs):
            copy = folder / f"tree-{number}"
            shutil.copytree(root, copy, ignore=_LEFT_OUT, symlinks=True)
            self._free.put(copy)

    def use(self, act: Callable[[Any, Path], T], items: Sequence[Any]) -> Iterator[tuple[Any, T, float]]:
        """Do something to each item in a tree; give item, result and seconds, the first to end first."""

        def act_in_a_tree(item: Any) -> tuple[Any, T, float]:
            tree = self._free.get()
            start = time.monotonic()
            try:
                return item, act(item, tree), time.monotonic() - start
            finally:
                self._free.put(tree)

        with ThreadPoolExecutor(self._num_jobs) as pool:
            futures = [pool.submit(act_in_a_tree, item) for item in items]
            try:
                for future in as_completed(futures):
                    yield future.result()
            finally:
                pool.shutdown(wait=False, cancel_futures=True)
                for process in list(_RUNNING):
                    process.send_signal(signal.SIGINT)


def find_baseline(entries: Sequence[Entry], trees: Trees) -> dict[str, str]:
    """Run all named tests without a mutation, those of a file together; what is wrong with each not green."""
    files: dict[str, list[str]] = {}
    for test in dict.fromkeys(test for entry in entries for test in entry["tests"]):
        files.setdefault(test.partition("::")[0], []).append(test)
    wrong: dict[str, str] = {}
    runs = trees.use(lambda tests, tree: find_not_green(tests, tree), list(files.values()))
    for number, (tests, found, seconds) in enumerate(runs, 1):
        wrong |= found
        file, num = tests[0].partition("::")[0], len(tests)
        _say(number, len(files), "NOT" if found else "green", seconds, f"{file} ({num})", found.values())
    return wrong


def judge_all(entries: Sequence[Entry], trees: Trees, wrong: dict[str, str]) -> dict[str, str]:
    """Judge entries one after the other; what is wrong with each that has a problem, by name.

    Args:
        entries: to judge.
        trees: copies to do it in.
        wrong: tests that are not green anyway; a mutation with one of them is not tried.
    """
    problems = {}
    for entry in entries:
        found = [wrong[test] for test in entry["tests"] if test in wrong]
        if found:
            problems[entry["name"]] = "; ".join(found)
    fair = [entry for entry in entries if entry["name"] not in problems]
    for number, (entry, problem, seconds) in enumerate(trees.use(judge, fair), 1):
        if problem:
            problems[entry["name"]] = problem
        _say(number, len(fair), "GREEN" if problem else "red", seconds, entry["name"], [problem])
    return problems


def _shorten(code: int, said: str) -> str:
    return f"pytest ended with {code}: {' | '.join(said.splitlines())[-300:].strip(' |')}"


def _say(number: int, total: int, how: str, seconds: float, what: str, problems: Any) -> None:
    count = f"{number:>{len(str(total))}}/{total}"
    print(f"{count}  {how:5}  {seconds:6.1f} s  {what}  {'; '.join(problems)}".rstrip(), flush=True)


def main(arguments: Sequence[str]) -> int:
    """Judge the mutations that are asked for; the exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m tests.mutate", description="Take guards away one by one."
    )
    parser.add_argument("patterns", nargs="*", metavar="PATTERN", help="words or patterns of names; else all")
    parser.add_argument("-j", "--jobs", type=int, default=1, help="how many at a time, each in a copy (1)")
    parser.add_argument("--baseline-only", action="store_true", help="only run the tests without a mutation")
    options = parser.parse_args(arguments)
    entries = read_mutations(options.patterns)
    if not entries:
        print(f"no mutation is named like {' or '.join(options.patterns)}", file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        trees = Trees(ROOT, Path(folder), max(1, options.jobs))
        wrong = find_baseline(entries, trees)
        if options.baseline_only:
            print(f"{len(wrong)} named tests are not green without a mutation")
            return 1 if wrong else 0
        problems = judge_all(entries, trees, wrong)
    print(f"{len(entries) - len(problems)} of {len(entries)} mutations were noticed")
    for name, problem in problems.items():
        print(f"{name}: {problem}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
