"""A soak: a small recipe under random faults until its last step, held against the run that nobody disturbs.

    python -m benchmarks.soak FOLDER [--faults 60] [--minutes 60] [--steps 6000] [--profile cpu-2proc]
    python -m benchmarks.soak FOLDER --worlds 12

Each start of the same command meets one fault (benchmarks/soak_faults.py); some then lose a checkpoint to
damage. Every start must end as its fault lets it, and at the end weights, optimizer and every logged figure
must be those of the undisturbed run, to the bit. With `--worlds` nothing breaks but the world changes:
processes, sharding, micro-batch. Each change is held against a copy of the run that stays in its old world.
"""

import argparse
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.soak_faults import KINDS, Situation, damage_newest
from data_pipes.files import hash_stream
from launch.checkpoints.manifest import find_checkpoints, find_damage
from launch.events import read_events
from launch.process import find_marked

_MARK = "MASKWRIGHT_SOAK_RUN"
_EQUAL = ("loss", "num_targets", "learning_rate", "grad_norm", "epoch", "skipped_steps")
_WORLDS = (
    ("cpu",),
    ("cpu-2proc",),
    ("cpu-2proc-zero2",),
    ("cpu", "--micro-batch", "16"),
    ("cpu-2proc-zero3",),
    ("cpu-2proc", "--micro-batch", "8"),
    ("cpu-2proc-zero1",),
)
_NUM_COMPARED = 50
_DAMAGE_SHARE = 0.25
_FAULT_SECONDS = 15.0
"""What one start with its fault takes until that is known: the steps are to last as long as the time."""
_LEAST_ROOM = 40
"""With fewer steps left few faults would find the point at which they strike."""
_LOSS_TOLERANCE, _FINAL_TOLERANCE = 1e-5, 1e-3


@dataclass
class Soak:
    """One recipe with its settings, trained again and again into one folder.

    Attributes:
        folder: holds the runs and what was said.
        settings: `key=value` overrides, the same at every start.
        log: lines for the record; no names of machines or processes.
    """

    folder: Path
    recipe: str
    settings: list[str]
    num_steps: int
    log: list[str] = field(default_factory=list)

    def say(self, text: str) -> None:
        """A line of the record."""
        print(text, flush=True)
        self.log.append(text)
        (self.folder / "soak.log").write_text("\n".join(self.log) + "\n", encoding="utf-8")

    def start(
        self, name: str, world: Sequence[str], fault: str = "", settings: Sequence[str] = ()
    ) -> "subprocess.Popen[bytes]":
        """Start the run of a name; what it prints goes into a file beside it."""
        command = [sys.executable, "-m", "launch", "run", self.recipe, "--output", str(self.folder / name)]
        command += ["--profile", *world, *self.settings, *settings]
        environment = {**os.environ, "MASKWRIGHT_FAULT": fault, _MARK: str(self.folder / name)}
        environment["OMP_NUM_THREADS"] = "1"
        with (self.folder / f"{name}.out").open("ab") as output:
            return subprocess.Popen(command, env=environment, stdout=output, stderr=output)

    def wait(self, name: str, process: "subprocess.Popen[bytes]") -> int:
        """The exit code, once every process of the run has ended."""
        code = process.wait()
        end = time.monotonic() + 300
        while any(find_marked(_MARK, str(self.folder / name))):
            if time.monotonic() > end:
                raise SystemExit(f"processes of {name} are left behind after exit code {code}")
            time.sleep(0.1)
        return code

    def train(self, name: str, world: Sequence[str]) -> None:
        """Train to the end with no fault."""
        code = self.wait(name, self.start(name, world))
        if code:
            raise SystemExit(f"{name} ended with {code}; see {self.folder / name}.out")

    def newest_step(self, name: str) -> int:
        """Of the whole checkpoints."""
        places = find_checkpoints(self.folder / name)
        steps = [int(p.name.removeprefix("checkpoint-")) for p in places if find_damage(p) is None]
        return max(steps, default=0)

    def curve(self, name: str) -> dict[int, tuple[Any, ...]]:
        """What was logged of each training step, by step."""
        events = read_events(self.folder / name / "metrics.jsonl").of("train")
        return {event["step"]: tuple(event.get(key) for key in _EQUAL) for event in events}


@dataclass
class Tally:
    """What has struck so far."""

    struck: Counter[str] = field(default_factory=Counter)
    num_starts: int = 0
    num_steps_again: int = 0
    num_surprises: int = 0


def soak(run: Soak, world: Sequence[str], num_faults: int, minutes: float, seed: int) -> bool:
    """Faults until enough have struck and enough time is over, then the rest; whether all is equal."""
    draw, tally = random.Random(seed), Tally()
    begun = time.monotonic()
    while True:
        num_left = num_faults - tally.struck.total()
        seconds_left = minutes * 60 - (time.monotonic() - begun)
        at = run.newest_step("soak")
        room = run.num_steps - at - 2
        if room < _LEAST_ROOM or (num_left <= 0 and seconds_left <= 0):
            break
        mean = (minutes * 60 - seconds_left) / tally.num_starts if tally.num_starts else _FAULT_SECONDS
        near = min(room, max(3, 2 * room // max(num_left, round(seconds_left / mean), 1)))
        if not meet_fault(run, world, Situation(run.folder / "soak", at, run.num_steps, near, draw), tally):
            break
    told = ", ".join(f"{name} {count}" for name, count in sorted(tally.struck.items()))
    spent = (time.monotonic() - begun) / 60
    run.say(f"{tally.struck.total()} faults in {tally.num_starts} starts and {spent:.0f} min: {told}")
    run.say(
        f"{tally.num_steps_again:,} steps were trained again; {tally.num_surprises} other ends than expected"
    )
    if run.wait("soak", run.start("soak", world)):
        raise SystemExit(f"the last start failed; see {run.folder}/soak.out")
    return compare_runs(run, "soak", "straight") and not tally.num_surprises


def meet_fault(run: Soak, world: Sequence[str], at: Situation, tally: Tally) -> bool:
    """One start that meets one fault; False: the run came to its end before."""
    kind = at.draw.choice(sorted(KINDS))
    fault = KINDS[kind](at)
    # One that has not struck by then never will.
    latest = min(at.step + 3 * max(at.room, 40), at.num_steps - 1)
    text = ";".join(filter(None, (fault.specification, f"point=before_step,action=kill,step={latest}")))
    process = run.start("soak", world, text, fault.settings)
    fault.act(at, process)
    code = run.wait("soak", process)
    if code == 0:
        run.say(f"{fault.name:40s} from step {at.step:>6,}: did not strike, the run is over")
        return False
    reached, newest = max(run.curve("soak"), default=0), run.newest_step("soak")
    tally.num_starts += 1
    tally.struck[kind] += 1
    tally.num_steps_again += max(0, reached - newest)
    damage = damage_newest(at) if at.draw.random() < _DAMAGE_SHARE else None
    tally.struck["damage"] += damage is not None
    run.say(
        f"{fault.name:40s} from step {at.step:>6,} to {reached:>6,}: exit {code:>3}, newest checkpoint "
        f"{newest:>6,}" + (f"; then {damage}" if damage else "")
    )
    if code not in fault.exit_codes:
        tally.num_surprises += 1
        run.say(f"  an end with {sorted(fault.exit_codes)} was expected; see soak.out")
    return True


def compare_runs(run: Soak, name: str, other: str) -> bool:
    """Whether two runs logged and saved the same, to the bit."""
    found, wanted = run.curve(name), run.curve(other)
    differing = [step for step in wanted if found.get(step) != wanted[step]]
    run.say(f"training steps: {len(wanted):,}, {len(differing)} of them with other figures")
    is_equal = not differing and len(found) == len(wanted)
    evaluations = [
        [{**e, "seconds": None} for e in read_events(run.folder / n / "metrics.jsonl").of("eval")]
        for n in (name, other)
    ]
    is_equal &= evaluations[0] == evaluations[1]
    run.say(
        f"evaluations: {len(evaluations[1])}, {'equal' if evaluations[0] == evaluations[1] else 'NOT equal'}"
    )
    lines = [json.loads(line) for line in (run.folder / name / "metrics.jsonl").read_text().splitlines()]
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    is_equal &= steps == sorted(set(steps))
    run.say(f"metrics.jsonl: {len(steps):,} training lines, {len(steps) - len(set(steps))} doubled")
    last = f"checkpoint-{run.num_steps}"
    for part in ("final/model.safetensors", f"{last}/model.safetensors", f"{last}/training/optimizer.pt"):
        places = [run.folder / n / part for n in (name, other)]
        if not all(place.exists() for place in places):
            continue
        hashes = [hash_file(place) for place in places]
        is_equal &= hashes[0] == hashes[1]
        run.say(f"{part}: {'equal' if hashes[0] == hashes[1] else 'NOT equal'} ({hashes[1][:12]})")
    return is_equal


def hash_file(place: Path) -> str:
    """SHA-256."""
    with place.open("rb") as file:
        return hash_stream(file)


def change_worlds(run: Soak, num_changes: int, seed: int) -> bool:
    """Go on in another world, again and again; whether all stays within the tolerances."""
    draw = random.Random(seed)
    worlds: list[Sequence[str]] = [_WORLDS[0]]
    while len(worlds) <= num_changes:
        worlds.append(draw.choice([world for world in _WORLDS if world != worlds[-1]]))
    segment = run.num_steps // (num_changes + 1)
    worst, step = 0.0, 0
    for number, world in enumerate(worlds):
        if number:
            stay(run, worlds[number - 1], step)
        is_last = number == num_changes
        stop = "" if is_last else f"point=before_step,action=raise,step={step + segment + 1}"
        code = run.wait("moved", run.start("moved", world, stop))
        if code != (0 if is_last else 1):
            raise SystemExit(f"exit code {code} in {' '.join(world)}; see {run.folder}/moved.out")
        if number:
            difference = compare_worlds(run, worlds[number - 1], world, step)
            worst = max(worst, difference)
        step = run.newest_step("moved")
    names = ("moved", "straight")
    last = [read_events(run.folder / name / "metrics.jsonl").of("eval")[-1]["loss"] for name in names]
    gap = abs(last[0] - last[1]) / last[1]
    run.say(f"final evaluation: {last[0]:.6f} after the changes, {last[1]:.6f} without: {gap:.1e} apart")
    run.say(f"largest relative difference of a loss within {_NUM_COMPARED} steps of a change: {worst:.1e}")
    return worst <= _LOSS_TOLERANCE and gap <= _FINAL_TOLERANCE


def stay(run: Soak, world: Sequence[str], step: int) -> None:
    """Let a copy of the run go on for as long as is compared, in the world that it was in."""
    shutil.rmtree(run.folder / "stayed", ignore_errors=True)
    shutil.copytree(run.folder / "moved", run.folder / "stayed", symlinks=True)
    stop = f"point=before_step,action=raise,step={step + _NUM_COMPARED + 1}"
    run.wait("stayed", run.start("stayed", world, stop))


def compare_worlds(run: Soak, before: Sequence[str], world: Sequence[str], step: int) -> float:
    """The largest relative difference of a loss after a change; infinite where other rows were masked."""
    stayed, moved = run.curve("stayed"), run.curve("moved")
    steps = range(step + 1, step + _NUM_COMPARED + 1)
    is_same = all(stayed[number][1] == moved[number][1] for number in steps)
    difference = max(abs(stayed[number][0] - moved[number][0]) / abs(stayed[number][0]) for number in steps)
    run.say(
        f"step {step:>6,}: {' '.join(before):30s} -> {' '.join(world):30s} losses {difference:.1e} apart, "
        f"targets {'equal' if is_same else 'NOT equal'}"
    )
    return difference if is_same else math.inf


def main() -> int:
    """Run a soak; 0 when the runs are equal."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--recipe", default="deberta-tiny-encyclopedia-wwm")
    parser.add_argument("--profile", default="cpu-2proc")
    parser.add_argument("--faults", type=int, default=60)
    parser.add_argument("--minutes", type=float, default=60)
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--every", type=int, default=20, help="steps between checkpoints")
    parser.add_argument("--worlds", type=int, default=0, help="change the world so often instead")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("settings", nargs="*", metavar="key=value")
    given = parser.parse_intermixed_args()
    # A shell that starts this in the background has it ignore SIGINT, and so would the runs.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    given.folder.mkdir(parents=True, exist_ok=True)
    settings = [f"training.max_steps={given.steps}", f"checkpoint.every={given.every}"]
    settings += [f"evaluation.every={given.every * 5}", "evaluation.samples=[]"]
    settings += ["training.rank_timeout_seconds=15", *given.settings]
    run = Soak(given.folder, given.recipe, settings, given.steps)
    world = ("cpu",) if given.worlds else (given.profile,)
    run.say(
        f"{given.recipe} on {world[0]}, {given.steps:,} steps, saved every {given.every}, seed {given.seed}"
    )
    began = time.monotonic()
    run.train("straight", world)
    run.say(f"the undisturbed run took {(time.monotonic() - began) / 60:.1f} min")
    if given.worlds:
        is_equal = change_worlds(run, given.worlds, given.seed)
    else:
        is_equal = soak(run, world, given.faults, given.minutes, given.seed)
    run.say("EQUAL" if is_equal else "NOT EQUAL")
    return 0 if is_equal else 1


if __name__ == "__main__":
    sys.exit(main())
