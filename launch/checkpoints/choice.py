"""The choice of the checkpoint that a run starts from: the newest whole one, the same on every rank."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data_pipes.store import Store
from launch.agreement import check_folder, gather, share
from launch.build import Job
from launch.checkpoints.manifest import (
    FORMAT,
    find_checkpoints,
    find_damage,
    find_step,
    read_manifest,
    set_aside,
)
from launch.checkpoints.removal import may_remove
from launch.checkpoints.resume import check_state, load_checkpoint
from launch.checkpoints.rotation import find_model_step, sweep_leftovers
from launch.folder import is_finished, write_run_files
from launch.plan import Plan
from launch.progress import Progress
from launch.recipe_change import check_resume
from launch.request import Request
from launch.strict_yaml import load_yaml
from launch.verdict import MACHINE, RESUME, RunError
from launch.world import World


@dataclass(frozen=True)
class Damage:
    """A checkpoint that is not whole, and what is wrong with it: a file and why."""

    place: Path
    reason: str


@dataclass(frozen=True)
class Start:
    """Where a run starts.

    Attributes:
        place: the checkpoint; None: nowhere, it is a fresh start.
        damages: of newer ones in the same folder.
    """

    place: Path | None = None
    damages: tuple[Damage, ...] = ()


def find_start(request: Request, world: World, plan: Plan, store: Store) -> tuple[Start, bool]:
    """Where the run starts, which rank 0 alone looks at, and whether it is over, which each rank sees.

    Raises:
        RunError: see choose_start; or the run is over and the recipe is another one now.
    """
    folder = request.output
    is_done = request.resume == "auto" and is_finished(folder, plan.num_steps or 0)
    if is_done and not find_checkpoints(folder):  # removed by hand, to have the room
        _check_recipe(request, store)
        return Start(), True
    start = choose_start(folder, request.resume) if is_done or world.rank == 0 else Start()
    if not is_done or start.place is None:
        return start, False
    check_state(request.recipe, store, start.place, request.accepted)
    return start, True


def _check_recipe(request: Request, store: Store) -> None:
    """Check the recipe against that of a run whose checkpoints are gone; its text is taken for the same."""
    try:
        then = load_yaml((request.output / "recipe.resolved.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return
    key = store.manifest["key"]
    state = {"recipe": then, "data_key": key, "step": 0}
    check_resume(state, request.recipe, data_key=key, place=request.output, accepted=request.accepted)


def take_up(job: Job, start: Start, request: Request) -> tuple[Progress, list[dict[str, Any]]]:
    """Put the state of rank 0's start into a job, and the run folder in order; how far it is, and events."""
    folder, is_main = request.output, job.accelerator.is_main_process
    check_folder(folder)
    start = agree_on_start(start)
    progress, is_other = Progress(), False
    if start.place is not None:
        progress = load_checkpoint(job, start.place, folder, request.accepted)
        _, changes = check_state(job.recipe, job.store, start.place, request.accepted)
        is_other = request.resume != "auto" or bool(changes)
    if is_main:
        write_run_files(folder, job)
    events = tidy_folder(folder, start, progress.step, is_other_course=is_other) if is_main else []
    job.accelerator.wait_for_everyone()
    return progress, events


def choose_start(folder: Path, resume: str) -> Start:
    """The checkpoint to start from; nothing is changed.

    Args:
        folder: the run folder.
        resume: `auto` (the newest whole one), `never`, or a checkpoint's path.

    Raises:
        RunError: there are checkpoints and none is whole, the newest is of a later version, there is none
            of a run that is over, or `never` in a folder that has a run in it.
    """
    found = find_checkpoints(folder)
    if resume == "never":
        if found or (folder / "metrics.jsonl").exists():
            raise RunError(RESUME, f"--resume never: {folder} holds a run already; name another --output")
        return Start()
    if resume != "auto":
        found = [Path(resume)]
    damages: list[Damage] = []
    for place in found:
        _check_format(place)
        reason = find_damage(place)
        if reason is None:
            return Start(place, tuple(damages))
        damages.append(Damage(place, reason))
    if not found and may_remove(folder / "final"):
        raise RunError(
            RESUME,
            f"{folder} holds a run that is over and no checkpoint of it to go on from; name another "
            "--output, or move it away",
        )
    if damages:
        reasons = "; ".join(f"{damage.place.name}: {damage.reason}" for damage in damages)
        raise RunError(
            RESUME, f"no whole checkpoint to resume from ({reasons}); move it away to start afresh"
        )
    return Start()


def agree_on_start(start: Start) -> Start:
    """Rank 0's start, on every rank. All ranks call it.

    Raises:
        RunError: on every rank, if one does not see that checkpoint.
    """
    start = share(start)
    blind = [
        rank for rank, sees in enumerate(gather(start.place is None or start.place.is_dir())) if not sees
    ]
    if blind:
        ranks = ", ".join(map(str, blind))
        raise RunError(
            RESUME,
            f"rank {ranks} does not see {start.place}; put it on a file system that all machines share",
        )
    return start


def tidy_folder(
    folder: Path, start: Start, step: int, *, is_other_course: bool = False
) -> list[dict[str, Any]]:
    """Put a run folder in order once a run goes on from a start: rank 0 calls it, before anything is saved.

    Damaged checkpoints newer than the start are renamed to `damaged-<step>-<time>`, whole ones, of a course
    that the run has left, to `left-<step>-<time>`; what killed saves have left is removed.

    Args:
        folder: the run folder.
        start: where the run goes on from.
        step: that of the start.
        is_other_course: the run will not go the way that it went from there before: a later RUN/best is
            renamed to `left-best-<time>`, as nothing would make it again or take its place for sure.

    Returns:
        An event for each thing that is worth a word.

    Raises:
        RunError: a folder cannot be renamed.
    """
    events: list[dict[str, Any]] = []
    damages = {damage.place: damage.reason for damage in start.damages}
    try:
        for place in find_checkpoints(folder):
            if find_step(place) <= step and place not in damages:
                continue
            reason = damages.get(place)
            new = set_aside(place, "damaged" if reason else "left")
            if reason:
                message = (
                    f"warning: {place.name} is damaged ({reason}): set aside as {new.name}, going on from "
                    f"{start.place and start.place.name}"
                )
                values = {"path": str(place), "reason": reason, "moved_to": new.name, "message": message}
                events.append({"kind": "damage", "step": step, **values})
        best = find_model_step(folder / "best")
        if is_other_course and best is not None and best > step:
            new = set_aside(folder / "best", "left")
            text = f"best is of step {best:,} of a course that the run has left: set aside as {new.name}"
            events.append({"kind": "note", "step": step, "message": text})
    except OSError as error:
        raise RunError(MACHINE, f"a folder in {folder} cannot be set aside: {error}") from error
    return events + [{"kind": "note", "step": step, "message": note} for note in sweep_leftovers(folder)]


def _check_format(place: Path) -> None:
    try:
        found = read_manifest(place).get("format", 1)
    except ValueError:
        return  # that is damage
    if isinstance(found, int) and found > FORMAT:
        raise RunError(
            RESUME,
            f"{place} has a manifest of format {found}, this version reads up to {FORMAT}; go on with the "
            "version that wrote it, or train in another --output",
        )
