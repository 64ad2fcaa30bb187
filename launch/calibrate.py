"""Calibration: a few real steps of a plan on this machine, kept for later plans of the same setting."""

import hashlib
import json
import statistics
import tempfile
from dataclasses import asdict
from datetime import datetime, timezone
from pathlib import Path

from data_pipes.files import find_cache_root, write_atomically
from launch.events import read_events
from launch.forecast import Calibration
from launch.plan import Plan
from launch.recipe import Recipe
from launch.verdict import DEFECT, DONE, RunError, Verdict

NUM_STEPS = 10
NUM_FIRST = 3
"""Steps that are not counted: kernels are chosen and memory is claimed in them."""
OVERRIDES = (
    f"training.max_steps={NUM_STEPS}",
    "training.warmup_steps=0",
    f"evaluation.every={NUM_STEPS // 2}",
    "evaluation.samples=[]",
    f"checkpoint.every={NUM_STEPS // 2}",
    "logging.every=1",
    "stopping=null",
    "training.spikes=null",
    "report_to=[]",
)
"""What makes a run of a recipe a short one with the same steps."""


def find_calibration(recipe: Recipe, plan: Plan) -> Calibration | None:
    """What was measured on this machine for this setting, if it was."""
    path = _find_path(recipe, plan)
    try:
        return Calibration(**json.loads(path.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def read_calibration(folder: Path, recipe: Recipe, plan: Plan) -> Calibration:
    """Take what the short run in a folder measured, and keep it.

    Raises:
        RunError: it logged too few steps.
    """
    steps = [
        event for event in read_events(folder / "metrics.jsonl").of("train") if event["step"] > NUM_FIRST
    ]
    if not steps:
        raise RunError(DEFECT, f"the calibration run in {folder} logged no step after the first {NUM_FIRST}")
    environment = json.loads((folder / "environment.json").read_text(encoding="utf-8"))
    found = Calibration(
        step_seconds=plan.global_batch / statistics.median(event["rows_per_second"] for event in steps),
        peak_memory_bytes=max(event["peak_memory_bytes"] for event in steps),
        num_steps=len(steps),
        device=f"{plan.world_size} x {environment['device']}",
        date=datetime.now(timezone.utc).date().isoformat(),
    )
    path = _find_path(recipe, plan)
    write_atomically(path, json.dumps(asdict(found)).encode())
    return found


def make_folder() -> "tempfile.TemporaryDirectory[str]":
    """A folder for the short run, gone with its context."""
    return tempfile.TemporaryDirectory(prefix="maskwright-calibration-")


def check_verdict(verdict: Verdict) -> None:
    """Stop when the short run did not come to its end.

    Raises:
        RunError: with its exit code.
    """
    if verdict.exit_code != DONE:
        raise RunError(verdict.exit_code, f"the calibration run ended: {verdict.message}")


def _find_path(recipe: Recipe, plan: Plan) -> Path:
    settings = {
        "model": recipe.model.model_dump(mode="json"),
        "objective": recipe.objective.model_dump(mode="json"),
        "data": recipe.data.model_dump(mode="json", include={"row_length", "packing", "sources"}),
        "plan": plan.model_dump(
            mode="json",
            include={
                "profile", "peak_flops", "world_size", "nodes", "global_batch", "micro_batch", "precision",
                "gradient_checkpointing", "loss_chunk", "sharding", "attention",
            },
        ),
    }  # fmt: skip
    key = hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:32]
    return find_cache_root() / "calibrations" / f"{key}.json"
