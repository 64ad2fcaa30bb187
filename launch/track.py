"""Tracking: every event of a run into metrics.jsonl, to the terminal and, if asked, to TensorBoard."""

import json
import os
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from launch.display import Display
from launch.verdict import MACHINE, RunError


class Tracker:
    """Writes events of the main rank; on other ranks every call does nothing.

    Args:
        folder: the run folder.
        is_main: whether this rank writes.
        display: what a person sees; None on other ranks.
        report_to: trackers beside metrics.jsonl.
        resumed_step: events after this step are cut off, as they will be written again.
    """

    def __init__(
        self,
        folder: Path,
        *,
        is_main: bool,
        display: Display | None,
        report_to: Sequence[str] = (),
        resumed_step: int | None = None,
    ):
        self._display = display
        self._file = None
        self._board = None
        if not is_main:
            return
        path = folder / "metrics.jsonl"
        _cut_events(path, resumed_step)
        self._file = path.open("a", encoding="utf-8")
        if "tensorboard" in report_to:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RunError(
                    MACHINE, "report_to names tensorboard, which is not installed: pip install tensorboard"
                ) from error
            purge = None if resumed_step is None else resumed_step + 1
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=purge)

    def log(self, kind: str, step: int, **values: Any) -> None:
        """Write one event and show it."""
        if self._file is None:
            return
        event = {"kind": kind, "step": step, **values}
        self._file.write(json.dumps(event, ensure_ascii=False) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in values.items():
                if isinstance(value, int | float) and kind in ("train", "eval"):
                    self._board.add_scalar(f"{kind}/{name.removeprefix(f'{kind}/')}", value, step)
        if self._display is not None:
            self._display.show(event)

    def close(self) -> None:
        """Flush and close what is open."""
        if self._display is not None:
            self._display.close()
        if self._board is not None:
            self._board.close()
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()

    def __enter__(self) -> "Tracker":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Stopwatch:
    """Where the time of training goes: waiting for data, and working; not evaluating and saving."""

    def __init__(self) -> None:
        self._mark = time.perf_counter()
        self._waited = self._worked = 0.0
        self._num_pieces = self._num_rows = self._num_flops = 0

    def waited(self) -> None:
        """The data has just arrived."""
        self._waited += self._lap()

    def worked(self, num_pieces: int, num_rows: int, num_flops: int = 0) -> None:
        """A step with so much in it is done; 0 model FLOPs: they are not known."""
        self._worked += self._lap()
        self._num_pieces += num_pieces
        self._num_rows += num_rows
        self._num_flops += num_flops

    def go_on(self) -> None:
        """Something that is not counted is over."""
        self._lap()

    def read(self, peak_flops: float | None = None) -> dict[str, float]:
        """Speeds and the share of the time spent waiting, since the last reading.

        `peak_flops` is that of all devices together; with it comes the share of it (MFU).
        """
        seconds = max(self._waited + self._worked, 1e-9)
        found = {
            "tokens_per_second": self._num_pieces / seconds,
            "rows_per_second": self._num_rows / seconds,
            "data_wait_fraction": self._waited / seconds,
        }
        if self._num_flops:
            found["flops_per_second"] = self._num_flops / seconds
            if peak_flops:
                found["mfu"] = found["flops_per_second"] / peak_flops
        self._waited = self._worked = 0.0
        self._num_pieces = self._num_rows = self._num_flops = 0
        return found

    def _lap(self) -> float:
        before, self._mark = self._mark, time.perf_counter()
        return self._mark - before


def _cut_events(path: Path, resumed_step: int | None) -> None:
    """Keep the events up to a step; a line that a crash cut short goes too."""
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            event = json.loads(line)
        except json.JSONDecodeError:
            continue
        if resumed_step is not None and event["step"] <= resumed_step and event["kind"] != "end":
            kept.append(line + "\n")
    draft = path.with_suffix(".partial")
    draft.write_text("".join(kept), encoding="utf-8")
    draft.replace(path)
