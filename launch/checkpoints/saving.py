"""Saving: when a run's checkpoints and models are written, in the background where that can be.

A save in the background is a copy of the state in host memory (on rank 0; every rank gives its random
states), a thread that writes it, and a look at each step whether it is done. What it came to is told to all
ranks, and all go on or all stop: a failed save costs no checkpoint that is there, and `checkpoint.on_failure`
says what it does to the run.
"""

import copy
import time
from collections.abc import Callable
from concurrent import futures
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

from launch import fault
from launch.agreement import find_error, gather, share
from launch.build import Job
from launch.checkpoints.contents import collect_state, describe_failure, estimate_shard_bytes, read_tensors
from launch.checkpoints.manifest import find_checkpoints
from launch.checkpoints.rotation import find_model_step
from launch.checkpoints.snapshot import Snapshot, count_bytes
from launch.checkpoints.space import find_shortage
from launch.checkpoints.weights import collect_weights
from launch.checkpoints.writer import Outcome, Task, write_checkpoint, write_model, write_sharded_checkpoint
from launch.progress import Progress
from launch.verdict import DIVERGED, MACHINE, RunError
from launch.watching.track import Tracker

_LOOK_SECONDS = 5.0
"""How long ranks wait for a thread before they give each other a sign of life."""


class Saver:
    """While it is open a run is saved through it. All ranks make the same calls, and get the same errors.

    Args:
        job: what is saved.
        tracker: gets an event `save` for each checkpoint that is committed, `save_failed` for each save that
            is not.
        folder: the run folder.
    """

    def __init__(self, job: Job, tracker: Tracker, folder: Path) -> None:
        self._job, self._tracker, self._folder = job, tracker, folder
        self._policy = job.recipe.checkpoint
        self._is_sharded = job.plan.zero_stage is not None
        self._in_background = self._policy.in_background and not self._is_sharded
        self._thread: ThreadPoolExecutor | None = None
        self._writing_job = job
        if self._in_background and job.accelerator.is_main_process:
            self._thread = ThreadPoolExecutor(1, "saver")
            # The loop may be using its tokenizer while the thread writes one.
            self._writing_job = replace(job, tokenizer=copy.deepcopy(job.tokenizer))
        self._snapshots: dict[str, Snapshot] = {}
        self._reserving: Future[None] | None = None
        self._tasks: list[Task] = []
        self._sizes: dict[str, int] = {}
        self._num_failures: dict[str, int] = {}
        self._errors: dict[str, str] = {}

    def __enter__(self) -> "Saver":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        """Let a save that is on its way come to its end, also where the run does not go on."""
        if self._thread is not None:
            self._thread.shutdown(wait=True)
        if kind is None:
            self.settle()
            return
        # The other ranks may be gone: nothing is exchanged any more.
        for task in self._tasks:
            if task.outcome is not None and task.outcome.exception() is None:
                self._conclude(task, task.outcome.result())

    def save(self, progress: Progress) -> None:
        """Write `checkpoint-<step>` and then remove what the recipe no longer keeps.

        Raises:
            RunError: it or an earlier save failed, and the recipe says that the run ends of it.
        """
        self._save_checkpoint(progress, in_background=self._in_background)

    def save_last(self, progress: Progress) -> None:
        """The save at a stop or at the end: it is made at once and must succeed.

        Raises:
            RunError: it failed.
        """
        self._save_checkpoint(progress, in_background=False)
        self._demand("checkpoint")

    def keep_best(self, progress: Progress) -> None:
        """Write the model to RUN/best, replacing an older one as a whole.

        Raises:
            RunError: it or an earlier save failed, and the recipe says that the run ends of it.
        """
        self._save_model("best", progress, in_background=self._in_background)

    def keep_final(self, progress: Progress) -> None:
        """Write the model to RUN/final; it must succeed, and so must RUN/best have.

        A best model that could not be written is written now if it is the last one too.

        Raises:
            RunError: it failed; or RUN/final is there, and a best model was lost.
        """
        self._save_model("final", progress, in_background=False)
        self._demand("final")
        if progress.best_step == progress.step and self._find_lost_best(progress):
            self._save_model("best", progress, in_background=False)
        if lost := self._find_lost_best(progress):
            raise RunError(MACHINE, f"{self._folder / 'final'} is written; {lost}")

    def look(self) -> None:
        """See what the saves in the background have come to; at each step.

        Raises:
            RunError: one failed, and the recipe says that the run ends of it.
        """
        if self._thread is not None and self._reserving is None:
            # After the first step there are moments. The first save then waits for no memory.
            snapshot = self._snapshots.setdefault("checkpoint", Snapshot())
            self._reserving = self._thread.submit(snapshot.reserve, read_tensors(self._job))
        if self._tasks:
            self._take(share(self._collect(0.0)))

    def settle(self, kind: str | None = None) -> None:
        """Wait for the saves in the background up to the last one of a kind; None: for all.

        Raises:
            RunError: one failed, and the recipe says that the run ends of it.
        """
        while any(kind in (None, task.kind) for task in self._tasks):
            self._job.stop.mark("save", self._tasks[0].step)
            self._take(share(self._collect(_LOOK_SECONDS)))

    def _save_checkpoint(self, progress: Progress, *, in_background: bool) -> None:
        begin = time.perf_counter()
        protected = (progress.step, progress.best_step, progress.resumed_from)
        task = Task(self._folder / f"checkpoint-{progress.step}", progress.step, protected)
        self._make_way(task, in_background=in_background)
        state = collect_state(self._job, progress)
        if self._has_room(task, state):
            self._start(task, state, write_checkpoint, begin, in_background=in_background)

    def _save_model(self, name: str, progress: Progress, *, in_background: bool) -> None:
        begin = time.perf_counter()
        task = Task(self._folder / name, progress.step)
        self._make_way(task, in_background=in_background)
        weights = collect_weights(self._job)
        if self._has_room(task, weights):
            self._start(task, weights, write_model, begin, in_background=in_background)

    def _make_way(self, task: Task, *, in_background: bool) -> None:
        """Wait until the buffers of this kind are free, or, for a save that is made at once, for all."""
        self._job.stop.mark("save", task.step)
        self.settle(task.kind if in_background else None)

    def _has_room(self, task: Task, state: Any) -> bool:
        """Whether every rank can begin to write; if not, that is a save that failed."""
        num_bytes = count_bytes(state)
        if self._is_sharded and task.kind == "checkpoint":
            num_bytes = estimate_shard_bytes(self._job)
        num_bytes = share(max(num_bytes, self._sizes.get(task.kind, 0)))
        try:
            if task.kind == "checkpoint":
                fault.at("before_save", step=task.step)
            obstacle = find_shortage(self._folder, num_bytes)
        except OSError as error:
            obstacle = describe_failure(error)
        error = find_error(gather(obstacle))
        if error is not None:
            self._judge([(task, Outcome(error=error))])
        return error is None

    def _start(
        self,
        task: Task,
        state: Any,
        write: Callable[[Job, Task, Any], Outcome],
        begin: float,
        *,
        in_background: bool,
    ) -> None:
        """Write a state now, or let the thread of rank 0 write a copy of it."""
        if self._is_sharded and task.kind == "checkpoint":
            outcome = write_sharded_checkpoint(self._job, task, state)
        elif not in_background:
            is_main = self._job.accelerator.is_main_process
            outcome = share(write(self._job, task, state) if is_main else Outcome())
        else:
            if self._thread is not None:
                task = replace(task, outcome=self._submit(self._thread, task, state, write))
            self._tasks.append(replace(task, blocked_seconds=time.perf_counter() - begin))
            return
        self._judge([(replace(task, blocked_seconds=time.perf_counter() - begin), outcome)])

    def _submit(
        self, thread: ThreadPoolExecutor, task: Task, state: Any, write: Callable[[Job, Task, Any], Outcome]
    ) -> "Future[Outcome]":
        """Let the thread write a copy of a state; without memory for one, wait until it is written."""
        try:
            if self._reserving is not None:
                self._reserving.result()
            taken = self._snapshots.setdefault(task.kind, Snapshot()).take(state)
        except (MemoryError, RuntimeError) as error:
            text = f"no memory for a save in the background ({describe_failure(error)}): it is made at once"
            self._tracker.log("note", task.step, message=f"warning: {text}")
            self._snapshots, self._reserving = {}, None
            future = thread.submit(write, self._writing_job, task, state)
            futures.wait([future])
            return future
        return thread.submit(write, self._writing_job, task, taken)

    def _collect(self, seconds: float) -> list[Outcome]:
        """What has come out, in the order of the saves; waits so long for the first. Rank 0 knows."""
        found: list[Outcome] = []
        for task in self._tasks:
            if task.outcome is None:
                break
            if not found and seconds:
                futures.wait([task.outcome], timeout=seconds)
            if not task.outcome.done():
                break
            found.append(task.outcome.result())
        return found

    def _take(self, outcomes: list[Outcome]) -> None:
        ended, self._tasks = self._tasks[: len(outcomes)], self._tasks[len(outcomes) :]
        self._judge(list(zip(ended, outcomes, strict=True)))

    def _judge(self, ended: list[tuple[Task, Outcome]]) -> None:
        """Log what saves came to; end the run if the recipe says so."""
        for task, outcome in ended:
            self._conclude(task, outcome)
        for task, outcome in ended:
            if outcome.is_lost:
                raise RunError(
                    DIVERGED,
                    f"training diverged: at step {task.step:,} {outcome.error}; they are not saved; "
                    "the last checkpoint is untouched. Try a lower training.learning_rate or a longer warmup",
                )
        for kind in {task.kind for task, outcome in ended if outcome.error is not None}:
            num = self._num_failures.get(kind, 0)
            if num and self._policy.on_failure == "stop":
                raise self._refuse(self._errors[kind], "checkpoint.on_failure is stop")
            if num >= self._policy.max_failures:
                raise self._refuse(self._errors[kind], f"{num} in a row failed")

    def _conclude(self, task: Task, outcome: Outcome) -> None:
        for note in outcome.notes:
            self._tracker.log("note", task.step, message=note)
        if outcome.error is None:
            self._sizes[task.kind] = outcome.num_bytes
            self._num_failures.pop(task.kind, None)
            self._errors.pop(task.kind, None)
            if task.kind == "checkpoint":
                figures = {"seconds": outcome.seconds, "blocked_seconds": task.blocked_seconds}
                self._tracker.log("save", task.step, path=str(task.place), bytes=outcome.num_bytes, **figures)
            return
        num = self._num_failures[task.kind] = self._num_failures.get(task.kind, 0) + 1
        error = self._errors[task.kind] = f"{task.place} could not be written ({outcome.error})"
        limit = self._policy.max_failures if self._policy.on_failure == "go_on" else 1
        self._tracker.log(
            "save_failed",
            task.step,
            path=str(task.place),
            reason=outcome.error,
            num_failures=num,
            message=f"warning: {error}; older ones are untouched (failure {num} of {limit} in a row)",
        )

    def _find_lost_best(self, progress: Progress) -> str | None:
        """What became of a best model that could not be written, maybe before a resume; None: it is there.

        All ranks call it.
        """
        place, wanted = self._folder / "best", progress.best_step or 0
        kept = share(find_model_step(place) if self._job.accelerator.is_main_process else None)
        error = self._errors.get("best")
        if error is None and (kept is None or kept >= wanted):
            return None
        error = error or f"{place} could not be written at step {wanted:,}"
        if kept is None:
            return f"{error}, and there is no older one; the same command ends the run without it"
        return f"{error}: it is still of step {kept:,}. Move it away, and the same command ends the run"

    def _demand(self, kind: str) -> None:
        if kind in self._errors:
            raise self._refuse(self._errors[kind], "the last save must succeed")

    def _refuse(self, error: str, why: str) -> RunError:
        found = find_checkpoints(self._folder)
        start = f"goes on from {found[0].name}" if found else "starts anew"
        return RunError(
            MACHINE,
            f"{error}; older ones are untouched ({why}). When there is room, the same command {start}",
        )
