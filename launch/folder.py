"""The run folder: what was asked, what was planned and where it ran, written before the first step."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from launch.command import command_text
from launch.events import read_events
from launch.recipe_file import resolved_yaml
from launch.redaction import redact

if TYPE_CHECKING:
    from launch.build import Job


def write_run_files(folder: Path, job: "Job") -> None:
    """Write recipe.resolved.yaml, plan.json, command.txt and environment.json."""
    from launch.engine import describe_environment

    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "recipe.resolved.yaml": resolved_yaml(job.recipe),
        "plan.json": job.plan.model_dump_json(indent=2) + "\n",
        "command.txt": command_text(job.plan) + "\n",
        "environment.json": json.dumps(describe_environment(job.accelerator), indent=2) + "\n",
    }
    for name, text in files.items():
        draft = folder / f".{name}.partial"
        draft.write_text(redact(text), encoding="utf-8")
        draft.replace(folder / name)


def is_finished(folder: Path, num_steps: int) -> bool:
    """Whether a run came to its end, which is not before so many steps unless its patience ended it."""
    marks = read_events(folder / "metrics.jsonl").marks
    if not marks or marks[-1]["kind"] != "end" or not (folder / "final").is_dir():
        return False
    return marks[-1].get("reason") == "patience" or marks[-1]["step"] >= num_steps


def finish_folder(folder: Path) -> Path:
    """Write the model cards and the report; the report's path."""
    from launch.export import write_card
    from launch.report import write_report

    for name in ("best", "final", "best/generator", "final/generator"):
        if (folder / name).is_dir():
            write_card(folder / name, run_folder=folder)
    return write_report([folder])
