"""The wish to stop: a signal sets a flag, which the loop shares over all ranks after each step."""

import signal
from types import FrameType

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)


class StopFlag:
    """While it is open, SIGTERM, SIGINT and SIGUSR1 are noted instead of ending the process.

    Attributes:
        is_asked: whether one of them came to this rank.
    """

    def __init__(self) -> None:
        self.is_asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "StopFlag":
        self._previous = {number: signal.signal(number, self._note) for number in _SIGNALS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # pyright: ignore[reportArgumentType]

    def _note(self, number: int, frame: FrameType | None) -> None:
        self.is_asked = True
