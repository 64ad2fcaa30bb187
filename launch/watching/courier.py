"""The courier: a thread that serves one tracker, so that neither its speed nor its errors reach the loop."""

import queue
from collections.abc import Callable, Mapping
from threading import Event, Thread
from typing import Protocol

_MAX_WAITING = 20_000
"""Events that may wait for a tracker; one that is so far behind is not coming back."""
_CLOSE_SECONDS = 60.0


class CourierError(Exception):
    """A tracker cannot be used any more."""


class Opened(Protocol):
    """A tracker that was opened; `write` and `finish` are called in the thread that opened it."""

    id: str
    sent: Mapping[str, int] | None

    def write(self, values: Mapping[str, float], step: int) -> None:
        """Log the values of a step."""
        ...

    def finish(self) -> None:
        """End the tracker's run."""
        ...


class Courier:
    """Carries events to one tracker.

    Attributes:
        sent: the highest step by kind that the tracker has taken.
    """

    def __init__(self, name: str):
        self.sent: dict[str, int] = {}
        self._opened: Opened | None = None
        self._error: BaseException | None = None
        self._waiting: queue.Queue[tuple[Mapping[str, float], int] | None] = queue.Queue(_MAX_WAITING)
        self._is_open = Event()
        self._name = name
        self._thread: Thread | None = None

    def start(self, opener: Callable[[], Opened], timeout_seconds: float) -> Opened:
        """Open the tracker in the courier's thread.

        Raises:
            CourierError: it does not open, or takes too long to.
        """
        self._thread = Thread(target=self._run, args=(opener,), name=f"tracker-{self._name}", daemon=True)
        self._thread.start()
        if not self._is_open.wait(timeout_seconds):
            self._error = TimeoutError("given up")
            raise CourierError(f"it did not open within {timeout_seconds:.0f} s")
        self._check()
        assert self._opened is not None
        return self._opened

    def send(self, values: Mapping[str, float], step: int) -> None:
        """Hand over the values of a step; returns at once.

        Raises:
            CourierError: an earlier one failed, or too many wait.
        """
        self._check()
        try:
            self._waiting.put_nowait((values, step))
        except queue.Full:
            self._error = TimeoutError("given up")
            raise CourierError(f"{_MAX_WAITING:,} events wait for it") from None

    def close(self, timeout_seconds: float = _CLOSE_SECONDS) -> None:
        """Wait until everything is sent and the tracker's run is ended.

        Raises:
            CourierError: something failed, or it takes too long.
        """
        self._check()
        try:
            self._waiting.put(None, timeout=timeout_seconds)
        except queue.Full:
            raise CourierError(f"it did not take its events within {timeout_seconds:.0f} s") from None
        if self._thread is not None:
            self._thread.join(timeout_seconds)
            if self._thread.is_alive():
                raise CourierError(f"it did not end within {timeout_seconds:.0f} s")
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            lines = str(self._error).strip().splitlines()
            raise CourierError(f"{type(self._error).__name__}: {lines[0] if lines else ''}")

    def _run(self, opener: Callable[[], Opened]) -> None:
        try:
            self._opened = opener()
            self._is_open.set()
            while (item := self._waiting.get()) is not None and self._error is None:
                self._opened.write(*item)
                kind = next(iter(item[0])).partition("/")[0]
                self.sent[kind] = item[1]
            if self._error is None:
                self._opened.finish()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - anything a tracker raises: told, and it is dropped
            self._error = error
        finally:
            self._is_open.set()
