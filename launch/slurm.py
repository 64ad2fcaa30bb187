"""Slurm: a plan as a batch job that saves, ends and is queued again before its time is up."""

import argparse
import os
import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, StrictUndefined

from data_pipes.files import write_atomically
from launch.plan import Plan
from launch.verdict import DONE, MACHINE, REQUEST, RunError, make_folder

SIGNAL_SECONDS = 120
"""From the order to stop to the time limit: a step, and a checkpoint on a slow disk."""
PASSED_ON = ("MASKWRIGHT_CACHE", "HF_HOME", "HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE", "TORCH_EXTENSIONS_DIR")
"""Variables that the file keeps, so that it does not depend on the shell it is submitted from. No secrets."""

_SHORT = {"c": "cpus-per-task", "G": "gpus", "J": "job-name", "N": "nodes", "n": "ntasks", "o": "output",
          "t": "time"}  # fmt: skip
_OURS = {
    "nodes": "--nodes",
    "ntasks": "--devices",
    "ntasks-per-node": "--devices",
    "signal": "--slurm-signal",
    "no-requeue": "nothing: a job that was stopped goes on by being queued again",
}
"""Options that the rest of the file stands on, and where they are given instead."""
_RANKED = 'export NODE_RANK="$SLURM_NODEID"; exec "$@"'
"""The shell that a machine's command replaces, so that signals reach the command."""
_GPUS = {"gpus", "gpus-per-node", "gres"}


@dataclass(frozen=True)
class Job:
    """What Slurm is asked for.

    Attributes:
        name: of the job.
        output: the run folder; Slurm's log lies in it.
        nodes, devices: machines, and processes on each.
        has_gpus: whether a process takes a GPU.
        time: the limit in Slurm's spelling; None: the partition's.
        arguments: options of sbatch as the user gave them; they stand in place of ours of the same name.
        setup: shell lines before the run (`module load cuda`).
        signal_seconds: before the limit, when the run is told to save and end.
    """

    name: str
    output: Path
    nodes: int
    devices: int
    has_gpus: bool
    time: str | None = None
    arguments: tuple[str, ...] = ()
    setup: tuple[str, ...] = ()
    signal_seconds: int = SIGNAL_SECONDS

    @classmethod
    def of(cls, plan: Plan, arguments: argparse.Namespace, *, has_gpus: bool) -> "Job":
        """The job of a plan, by a command line with the arguments of `add_slurm`."""
        return cls(
            name=plan.recipe,
            output=Path(plan.output),
            nodes=plan.nodes,
            devices=plan.devices,
            has_gpus=has_gpus,
            time=arguments.slurm_time,
            arguments=tuple(arguments.slurm_arg),
            setup=tuple(arguments.slurm_setup),
            signal_seconds=arguments.slurm_signal,
        )

    def options(self) -> list[str]:
        """The #SBATCH lines, each quoted as sbatch reads it.

        Raises:
            RunError: an argument is no option, or one that the plan gives.
        """
        theirs = [_name_option(text) for text in self.arguments]
        cores = self.devices * (8 if self.has_gpus else 1)
        ours = {
            "job-name": self.name,
            "nodes": str(self.nodes),
            "ntasks-per-node": "1",
            "gpus-per-node": str(self.devices) if self.has_gpus and not _GPUS & set(theirs) else None,
            "cpus-per-task": str(cores),
            "time": self.time,
            "output": f"{str(self.output.absolute()).replace('%', '%%')}/slurm-%j.out",
            "open-mode": "append",
            "signal": f"B:USR1@{self.signal_seconds}",
        }
        lines = [
            f"--{name}={shlex.quote(value)}"
            for name, value in ours.items()
            if value is not None and name not in theirs
        ]
        return [*lines, "--requeue", *map(_quote_option, self.arguments)]


def add_slurm(parser: argparse.ArgumentParser) -> None:
    """Add the options of a batch job to the verb `run`."""
    group = parser.add_argument_group("slurm (a batch job instead of a run here and now)")
    group.add_argument(
        "--slurm", action="store_true", help="submit it; with --dry-run, print the file. Wants --profile"
    )
    group.add_argument(
        "--slurm-time", metavar="LIMIT", help="8:00:00, for instance; default: the partition's"
    )
    group.add_argument(
        "--slurm-arg",
        action="append",
        default=[],
        metavar="OPTION",
        help='of sbatch, several times: --slurm-arg="--partition=gpu"',
    )
    group.add_argument(
        "--slurm-setup",
        action="append",
        default=[],
        metavar="LINE",
        help='shell line before the run, several times: --slurm-setup "module load cuda"',
    )
    group.add_argument(
        "--slurm-signal",
        type=int,
        default=SIGNAL_SECONDS,
        metavar="SECONDS",
        help=f"before the limit, to save and be queued again; default {SIGNAL_SECONDS}",
    )


def submit_run(plan: Plan, arguments: argparse.Namespace, *, has_gpus: bool) -> int:
    """Leave the batch file of a plan in its run folder and submit it, or print it on a dry run.

    Raises:
        RunError: an option of Slurm cannot be used, or the job could not be submitted.
    """
    job = Job.of(plan, arguments, has_gpus=has_gpus)
    environment = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    text = render_sbatch(build_task(plan), environment, job, Path.cwd())
    if arguments.dry_run:
        print(text, end="")  # noqa: T201
        return DONE
    path = make_folder(job.output) / "job.sbatch"
    write_atomically(path, text.encode())
    print(f"job {submit(path)}: {path}, log in {job.output}/slurm-*.out")  # noqa: T201
    return DONE


def build_task(plan: Plan) -> list[str]:
    """What each machine of the job executes: `maskwright run` with everything that the plan has decided."""
    trainer = plan.command[plan.command.index("launch.train") + 1 :]
    more = ["--rendezvous", plan.rendezvous] if plan.nodes > 1 else []
    return [sys.executable, "-m", "launch", "run", *trainer, *more]


def render_sbatch(command: Sequence[str], environment: Mapping[str, str], job: Job, folder: Path) -> str:
    """The batch file: pure text.

    Args:
        command: what each machine executes; it finds NODE_RANK, and MASTER_ADDR and MASTER_PORT where there
            are several.
        environment: variables to set.
        job: what Slurm is asked for.
        folder: the working folder of the command.
    """
    task = shlex.join(command)
    if job.nodes > 1:
        task = f"bash -c {shlex.quote(_RANKED)} task {task}"
    template = Environment(undefined=StrictUndefined, keep_trailing_newline=True).from_string(
        (Path(__file__).parent / "sbatch.sh.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        options=job.options(),
        folder=shlex.quote(str(folder)),
        environment=[(name, shlex.quote(value)) for name, value in environment.items()],
        nodes=job.nodes,
        setup=job.setup,
        output=shlex.quote(str(job.output.absolute())),
        task=task,
    )


def submit(path: Path) -> str:
    """Hand a batch file to Slurm; the id of the job.

    Raises:
        RunError: there is no sbatch here, or it refuses the file.
    """
    try:
        done = subprocess.run(
            ["sbatch", "--parsable", str(path)], capture_output=True, text=True, timeout=120, check=False
        )
    except FileNotFoundError as error:
        raise RunError(
            MACHINE, f"--slurm wants sbatch on the PATH; submit {path} on a machine of the cluster"
        ) from error
    except subprocess.TimeoutExpired as error:
        raise RunError(
            MACHINE, f"sbatch did not answer within 120 s; {path} is written, submit it"
        ) from error
    if done.returncode:
        raise RunError(REQUEST, f"sbatch refused {path}: {done.stderr.strip()}")
    return done.stdout.strip().split(";")[0]  # after it, the name of a cluster


def _name_option(text: str) -> str:
    """The long name of an option of sbatch.

    Raises:
        RunError: it is none, or ours.
    """
    name = text.removeprefix("--").split("=")[0].split()[0] if text.startswith("--") and text != "--" else ""
    if not name and text.startswith("-") and text[1:2].isalpha():
        name = _SHORT.get(text[1], text[1])
    if not name:
        raise RunError(REQUEST, f'--slurm-arg {text!r}: wanted an option of sbatch, "--partition=gpu" say')
    if name in _OURS:
        raise RunError(REQUEST, f"--slurm-arg {text!r} contradicts the job: give {_OURS[name]}")
    return name


def _quote_option(text: str) -> str:
    """An option with its value quoted; `--name value` and `-n value` become one word each."""
    if "\n" in text:
        raise RunError(REQUEST, f"--slurm-arg {text!r}: wanted one line")
    head, mark, value = text.partition("=" if text.startswith("--") and "=" in text else " ")
    return f"{head}{mark}{shlex.quote(value)}" if mark else head
