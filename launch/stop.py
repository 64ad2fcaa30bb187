"""The wish to stop: a signal sets a flag, which the loop shares over all ranks after each step."""

import signal
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

    from launch.pulse import Pulse
    from launch.watching.display import Display

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopAsked(Exception):  # noqa: N818 - it is no error
    """All ranks have agreed to stop, in the middle of something that can be left out for now."""


class StopFlag:
    """While it is open, SIGTERM, SIGINT and SIGUSR1 are noted instead of ending the process.

    After one of them it stays so when it is closed: the process is ending, and a second one must not keep it
    from saying why.

    Attributes:
        pulse: this rank's, which sees when the launcher dies; that is a wish to stop as well.
        display: is told what the loop does now; None on all ranks but one.
    """

    def __init__(self) -> None:
        self.pulse: Pulse | None = None
        self.display: Display | None = None
        self._place = ("", 0)
        self._is_signalled = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        if self._is_signalled:
            return
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    @property
    def is_asked(self) -> bool:
        """Whether this rank is asked to stop; other ranks may not be, so share it before acting on it."""
        return self._is_signalled or (self.pulse is not None and self.pulse.is_orphaned)

    @property
    def reason(self) -> str:
        """What asked this rank, or another one: its launcher is that of this rank as well."""
        is_orphaned = self.pulse is not None and self.pulse.sees_dead_launcher() and not self._is_signalled
        return "because its launcher is dead" if is_orphaned else "by a signal"

    def mark(self, phase: str, step: int, num_done: int = 0, num_all: int = 0) -> None:
        """Say what this rank does now: `step`, `evaluation`, `save`; of how many parts so many are done."""
        self._place = (phase, step)
        if self.pulse is not None:
            self.pulse.mark(phase, step, num_done, num_all)
        if self.display is not None:
            self.display.mark(phase, step, num_done, num_all)

    def count(self, num_done: int, num_all: int) -> None:
        """Say how far it is with what was marked last."""
        self.mark(*self._place, num_done, num_all)

    def check(self, device: "torch.device") -> None:
        """Look whether any rank is asked to stop. All ranks call it, equally often.

        Raises:
            StopAsked: on every rank, if one is.
        """
        import torch

        from launch.engine import sum_over_ranks

        asked = sum_over_ranks(torch.tensor([float(self.is_asked)], device=device))
        if asked.item() > 0:
            raise StopAsked

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._is_signalled = True
