"""The first losses of the small recipes, to the last bit: `python -m tests.golden.record` writes them anew.

A change that should not move results leaves the files as they are. One that should is a commit of its own,
with its reason in docs/decisions.md.
"""

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

NUM_STEPS = 20
RECIPES = ("canine-tiny-domains-char", "deberta-tiny-encyclopedia-wwm")
FOLDER = Path(__file__).parent
ROOT = FOLDER.parent.parent


def golden_path(recipe: str) -> Path:
    return FOLDER / f"{recipe}.txt"


def measure(recipe: str) -> dict[str, object]:
    """Losses of the first steps in a process of its own with one thread, and what computed them."""
    code = f"from tests.golden.record import train; train({recipe!r})"
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def train(recipe_name: str) -> None:
    """Train the first steps of a recipe as it stands and print the losses as JSON."""
    import torch

    from launch.build import build_job
    from launch.corpus import measure_corpus, prepare_corpus
    from launch.hardware import find_profile
    from launch.optim import set_rate
    from launch.options import Options
    from launch.plan import make_plan
    from launch.recipe_file import read_recipe
    from launch.step import take_step

    recipe, profile = read_recipe(recipe_name), find_profile("cpu")
    store = prepare_corpus(recipe)
    plan = make_plan(recipe, profile, Options(), measure_corpus(recipe))
    job = build_job(recipe, plan, profile, store)
    rates = plan.rate_schedule(recipe)
    losses = []
    for step, batch in enumerate(job.feed.steps(0, NUM_STEPS), start=1):
        set_rate(job.optimizer, rates.at(step))
        outcome = take_step(job, batch)
        losses.append(outcome.means["loss"])
    flags = next(
        (line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("flags")), ""
    )
    machine = f"{torch.backends.cpu.get_cpu_capability()}-{hashlib.sha256(flags.encode()).hexdigest()[:12]}"
    print(json.dumps({"machine": machine, "torch": torch.__version__, "losses": losses}))


def render(found: dict) -> str:
    lines = [f"# cpu {found['machine']} torch {found['torch']} threads 1"]
    lines += [f"{step} {loss.hex()} {loss:.9f}" for step, loss in enumerate(found["losses"], start=1)]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    for name in RECIPES:
        golden_path(name).write_text(render(measure(name)))
        print(f"wrote {golden_path(name)}")
