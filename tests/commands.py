"""A way to run the real command on a small recipe and to read what it left."""

import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
# One thread a process: two ranks and one process then add up in the same order.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "160", "HF_HUB_OFFLINE": "1"}
# In 50 steps the warmup is 3 long; the recipe's own rate so early would blow rounding up.
RATE = "training.learning_rate=1e-3"
# Enough of the recipes' own data to train on, and sizes that leave most of a test to starting processes.
QUICK = {
    "canine-tiny-domains-char": ("data.limit=20000", "training.global_batch=32"),
    "deberta-tiny-encyclopedia-wwm": ("data.limit=1500", "training.global_batch=16", RATE),
}
RTD = "deberta-tiny-encyclopedia-rtd"
SETTINGS = {**QUICK, RTD: QUICK["deberta-tiny-encyclopedia-wwm"]}


@dataclass(frozen=True)
class Ran:
    """A finished command and its run folder."""

    exit_code: int
    stdout: str
    stderr: str
    folder: Path

    def events(self, *kinds):
        lines = (self.folder / "metrics.jsonl").read_text().splitlines()
        return [event for event in map(json.loads, lines) if event["kind"] in kinds]

    def losses(self):
        return [event["loss"] for event in self.events("train")]


def start(command, folder, environment=ENVIRONMENT):
    done = subprocess.run(command, capture_output=True, text=True, env=environment, cwd=ROOT, check=False)
    return Ran(done.returncode, done.stdout, done.stderr, folder)


def start_recipe(folder, recipe, *arguments, num_steps=50, environment=ENVIRONMENT):
    """`maskwright run`, quick."""
    halves = (f"evaluation.every={num_steps // 2}", f"checkpoint.every={num_steps // 2}")
    steps = (f"training.max_steps={num_steps}", *halves)
    command = [
        sys.executable,
        "-m",
        "launch",
        "run",
        recipe,
        "--output",
        str(folder),
        *SETTINGS[recipe],
        *steps,
    ]
    return start([*command, *arguments], folder, environment)


def run_recipe(folder, recipe, *arguments, num_steps=50):
    """`maskwright run`, quick; asserts that it worked."""
    ran = start_recipe(folder, recipe, *arguments, num_steps=num_steps)
    assert ran.exit_code == 0, ran.stdout + ran.stderr
    return ran
