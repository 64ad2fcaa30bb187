"""The run: executes the command of a plan, watches its ranks and says how it ended."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from threading import Thread
from types import FrameType
from typing import IO

from data_pipes.files import write_atomically
from launch import fault
from launch.checkpoints.manifest import find_checkpoints
from launch.liveness import (
    STARTING,
    Lost,
    Watch,
    clear_beats,
    describe_lost,
    find_timeout,
    read_beats,
    read_signals,
)
from launch.lock import Holder, find_holders, hold
from launch.plan import Plan
from launch.process import Process, find_marked
from launch.rendering import write_configs
from launch.verdict import (
    DEFECT,
    DONE,
    LOST,
    MACHINE,
    REQUEST,
    STOPPED,
    UNDER_RUN,
    RunError,
    Verdict,
    clear_verdict,
    find_disk_failure,
    has_verdict,
    make_folder,
    read_verdict,
    write_verdict,
)

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
_LOOK_SECONDS = 0.25
_WORD_SECONDS = 5.0
"""How long survivors of a lost rank may take to say so themselves, and then to end."""
_LOG = "launcher.log"


def execute(plan: Plan, configs: dict[str, str], output: Path) -> Verdict:
    """Write the plan's configuration files, start its command, wait for it and read its trainer's verdict.

    The run folder is held meanwhile; the first of several machines does so for all of them.

    Raises:
        OSError: of another kind than a full, a read-only or a broken disk.
    """
    token = str(Process.of(os.getpid()))
    environment = {**os.environ, **plan.environment, UNDER_RUN: token}
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment.get("PATH", "")])
    # A save may take longer than the 30 s that torchrun leaves its workers after a signal.
    environment.setdefault("TORCH_ELASTIC_SHUTDOWN_TIMEOUT", f"{find_timeout():.0f}")
    open_names = [word[1:] for word in plan.command if word.startswith("$") and word[1:] not in environment]
    if open_names:
        wanted = ", ".join(open_names)
        return Verdict(REQUEST, f"a run on {plan.nodes} machines wants {wanted} in the environment of each")
    command = [environment[word[1:]] if word.startswith("$") else word for word in plan.command]
    is_first = plan.nodes == 1 or environment.get("NODE_RANK", "0") == "0"
    try:
        fault.check()
        make_folder(output)
        with ExitStack() as held:
            _require_launcher(command[0], environment["PATH"])
            left = held.enter_context(hold(output, token)) if is_first else None
            if is_first or not find_holders(output):
                _clear(configs, output)
            else:
                _add_configs(configs, output)
            return _Execution(command, environment, output, token, plan.devices).follow(left)
    except RunError as error:
        return error.verdict
    except OSError as error:
        verdict = find_disk_failure(error)
        if verdict is None:
            raise
        return verdict


def _clear(configs: dict[str, str], output: Path) -> None:
    """Forget what an earlier run said in a folder that is ours, and write the configuration files."""
    clear_verdict(output)
    clear_beats(output)
    (output / _LOG).write_bytes(b"")
    write_configs(configs, output)


def _add_configs(configs: dict[str, str], output: Path) -> None:
    """Write the files that are missing in a folder that the first machine holds, on a disk of both.

    A machine that is late, or there by mistake, forgets no word of that run and changes no file of it. On a
    disk of its own it finds the folder free, with the words of its own last run in it: these it does forget.
    """
    for name, text in configs.items():
        if not (output / name).exists():
            write_atomically(output / name, text.encode())


def _require_launcher(name: str, path: str) -> None:
    if shutil.which(name, path=path) is None:
        raise RunError(
            MACHINE, f"{name} is neither beside {sys.executable} nor on the PATH: pip install accelerate"
        )


class _Execution:
    """A launcher that was started, with the ranks it started in turn.

    Signals reach the ranks themselves, by the numbers in their files, and always as SIGTERM: `accelerate
    launch` with one process would die of it and leave the training running, torchrun ends its workers 30 s
    later, and SIGUSR1 would kill it and not them.
    """

    def __init__(
        self, command: list[str], environment: dict[str, str], output: Path, token: str, num_ranks: int
    ) -> None:
        self.output, self.token, self.num_ranks = output, token, num_ranks
        self.watch = Watch(output, token, find_timeout())
        self.lost: list[Lost] = []
        self._lost_since: float | None = None
        self._was_starting = True
        self._ranks: list[Process] = []
        self.process = subprocess.Popen(
            command, env=environment, start_new_session=True, stderr=subprocess.PIPE
        )

    def follow(self, left: Holder | None) -> Verdict:
        """Wait until the last of its processes has ended; how it went."""
        assert self.process.stderr is not None
        listener = Thread(target=_pass_on, args=(self.process.stderr, self.output, left), daemon=True)
        listener.start()
        with signals_noted() as came:
            num_passed = 0
            while self.process.poll() is None:
                time.sleep(_LOOK_SECONDS)
                if len(came) > num_passed:
                    num_passed = len(came)
                    self._stop_ranks()
                self._look()
            self._end_rest()
            listener.join(timeout=_WORD_SECONDS)
            verdict = self._conclude(came)
        if verdict.exit_code != LOST:
            with suppress(OSError):
                clear_beats(self.output)
        return verdict

    def _find_ranks(self) -> list[Process]:
        """The living ranks of this machine; while their files cannot be read, of those that were there."""
        with suppress(OSError):
            self._ranks = [beat.process for beat in read_beats(self.output, self.token)]
        return [process for process in self._ranks if process.is_alive]

    def _stop_ranks(self) -> None:
        """Ask all ranks to stop; while some are not there yet, the launcher: there is nothing to lose."""
        ranks = self._find_ranks()
        if len(ranks) < self.num_ranks and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGTERM)
        for rank in ranks:
            rank.send(signal.SIGTERM)

    def _look(self) -> None:
        """See to lost ranks; where the file system fails for a moment, the next look does."""
        with suppress(OSError):
            self._end_lost()

    def _end_lost(self) -> None:
        """See which ranks are lost; if they are, let the others speak first, then end them."""
        lost = self.watch.look()
        if self.watch.beats:
            self._was_starting = all(beat.phase == STARTING for beat in self.watch.beats)
        verdict = read_verdict(self.output)
        if not lost and (verdict is None or verdict.exit_code != LOST):
            self._lost_since, self.lost = None, []
            return
        now = time.monotonic()
        self._lost_since = self._lost_since or now
        self.lost = self.lost or lost
        if now - self._lost_since < _WORD_SECONDS:
            return
        if lost:
            with suppress(OSError):  # on a full disk they are ended all the same
                write_verdict(self.output, Verdict(LOST, describe_lost(lost)))
        for rank in self._find_ranks():
            rank.send(signal.SIGKILL)
        if now - self._lost_since > 2 * _WORD_SECONDS and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)

    def _end_rest(self) -> None:
        """Wait for ranks that outlive their launcher while they come on, and end what then is left.

        They see its death themselves. Those that were still starting are told, others only wait (a pool
        that compiles).
        """
        self._look()
        is_told = False
        silent_since = time.monotonic()
        places: list[tuple[str, int]] = []
        while rest := list(find_marked(UNDER_RUN, self.token)):
            ranks = self._find_ranks()
            if not ranks and not is_told:
                for process in rest:
                    process.send(signal.SIGTERM)
                is_told = True
            now = [(beat.phase, beat.step) for beat in self.watch.beats]
            if now != places:
                places, silent_since = now, time.monotonic()
            patience = self.watch.timeout_seconds if ranks else _WORD_SECONDS
            if time.monotonic() - silent_since > patience:
                for process in rest:
                    process.send(signal.SIGKILL)
            time.sleep(_LOOK_SECONDS)
            self._look()

    def _conclude(self, came: list[int]) -> Verdict:
        verdict = read_verdict(self.output)
        if came and self._was_starting and (verdict is None or verdict.exit_code == LOST):
            return _stopped(signal.Signals(came[0]).name, self.output)
        if self.lost and (verdict is None or verdict.exit_code == LOST):
            # The launcher alone knows which signal ended a rank.
            verdict = Verdict(LOST, describe_lost(self.lost, self._read_signals()))
            with suppress(OSError):
                clear_verdict(self.output)
                write_verdict(self.output, verdict)
            return verdict
        if verdict is not None:
            return verdict
        exit_code = self.process.returncode
        if exit_code == 0:
            return Verdict(DONE, "done")
        if came:
            return _stopped(signal.Signals(came[0]).name, self.output)
        return Verdict(
            DEFECT, f"the launcher ended with {exit_code} before a trainer could say why; see above"
        )

    def _read_signals(self) -> dict[int, int]:
        try:
            log = (self.output / _LOG).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return {}
        found = read_signals(log)
        alone = found.pop(0, None)
        if alone is not None and len(self.lost) == 1:
            found[self.lost[0].beat.process.pid] = alone
        return found


def _pass_on(stderr: IO[bytes], output: Path, left: Holder | None) -> None:
    """Show what comes on stderr until a trainer has said why it ends.

    What follows is the launchers' own traceback of a process that failed; it goes into RUN/launcher.log.
    The launcher would wait for ever for a reader that a full disk or a closed terminal has ended.
    """
    with ExitStack() as opened:
        log = None
        with suppress(OSError):
            # Other machines, and trainers without a terminal, write at its end too.
            log = opened.enter_context((output / _LOG).open("ab", buffering=0))
            if left is not None:
                log.write(f"the lock of this folder was left behind by {left}; it was taken over\n".encode())
        for line in stderr:
            with suppress(OSError):
                if log is not None:
                    log.write(line)
            with suppress(OSError):
                if not has_verdict(output):
                    sys.stderr.buffer.write(line)
                    sys.stderr.buffer.flush()


def _stopped(signal_name: str, output: Path) -> Verdict:
    found = find_checkpoints(output)
    if not found:
        return Verdict(
            STOPPED, f"stopped by {signal_name} before the first checkpoint; the same command starts anew"
        )
    return Verdict(STOPPED, f"stopped by {signal_name}; the same command goes on from {found[0].name}")


@contextmanager
def signals_noted() -> Iterator[list[int]]:
    """Note signals instead of ending of them; the numbers of those that came."""
    came: list[int] = []

    def note(number: int, _: FrameType | None) -> None:
        came.append(number)

    # What the caller has set to be ignored (nohup: SIGHUP) stays so.
    numbers = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    previous = {number: signal.signal(number, note) for number in numbers}
    try:
        yield came
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
