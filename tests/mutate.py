"""Mutations: each guard of tests/mutations.json is taken out in a copy of the tree; its tests must go red.

`python -m tests.mutate [NAME...]` runs those whose name contains one of the words; without any, all of them.
An entry has `name`, `file`, `old` (a text that stands there once), `new`, and `tests` (pytest node ids, each
of which must fail). A mutation that its tests do not notice, and one whose `old` is gone, end in exit code 1.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LIST = Path(__file__).with_name("mutations.json")
# A mutation may make its test wait for ever; that is noticed, too.
TIMEOUT_SECONDS = 240
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


def read_mutations(words: Sequence[str] = ()) -> list[dict[str, Any]]:
    """The entries whose name contains one of the words; all without any."""
    entries = json.loads(LIST.read_text(encoding="utf-8"))
    return [entry for entry in entries if not words or any(word in entry["name"] for word in words)]


def mutate(text: str, entry: dict[str, Any]) -> str:
    """A file's text after a mutation.

    Raises:
        ValueError: what it replaces does not stand there exactly once.
    """
    count = text.count(entry["old"])
    if count != 1:
        raise ValueError(f"stale: its old text stands {count} times in {entry['file']}")
    return text.replace(entry["old"], entry["new"])


def judge(entry: dict[str, Any], tree: Path) -> str:
    """Run an entry's tests on a mutated tree; what is wrong with them, or an empty text."""
    path = tree / entry["file"]
    whole = path.read_text(encoding="utf-8")
    try:
        path.write_text(mutate(whole, entry), encoding="utf-8")
        # With stale bytecode a mutation of the same second and size would not be seen.
        environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-m", "pytest", "-q", "--tb=no", "-rfE", "--durations=0"]
        done = subprocess.run(
            [*command, "-p", "no:cacheprovider", *entry["tests"]],
            cwd=tree,
            env=environment,
            capture_output=True,
            text=True,
            timeout=TIMEOUT_SECONDS,
            check=False,
        )
    except ValueError as error:
        return str(error)
    except subprocess.TimeoutExpired:
        return ""
    finally:
        path.write_text(whole, encoding="utf-8")
    if done.returncode != 1:
        return f"pytest ended with {done.returncode}: {(done.stdout + done.stderr).strip()[-300:]}"
    failed = re.findall(r"^(?:FAILED|ERROR) (\S+)", done.stdout, re.MULTILINE)
    missed = [test for test in entry["tests"] if not any(name.startswith(test) for name in failed)]
    return f"not noticed by {', '.join(missed)}" if missed else ""


def main(words: Sequence[str]) -> int:
    """Judge mutations one after the other; the exit code."""
    entries = read_mutations(words)
    if not entries:
        print(f"no mutation is named like {' or '.join(words)}", file=sys.stderr)
        return 2
    problems = 0
    with tempfile.TemporaryDirectory(prefix="mutate-") as folder:
        tree = Path(folder) / "tree"
        shutil.copytree(ROOT, tree, ignore=_LEFT_OUT, symlinks=True)
        for entry in entries:
            start = time.monotonic()
            problem = judge(entry, tree)
            problems += bool(problem)
            seconds = time.monotonic() - start
            print(
                f"{'GREEN' if problem else 'red  '}  {seconds:5.1f} s  {entry['name']}  {problem}", flush=True
            )
    print(f"{len(entries) - problems} of {len(entries)} mutations were noticed")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
