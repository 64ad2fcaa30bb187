"""A job that can be saved, as small as can be: a CANINE of one layer, Adam, no data and no launcher."""

import os
import signal
import sys
import traceback
from datetime import timedelta
from functools import cache
from types import SimpleNamespace
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from transformers import CanineTokenizer

from launch.build import Job
from launch.checkpoints.saving import Saver
from launch.progress import Progress
from launch.recipe_file import read_recipe
from modeling import hf

CONFIG = {
    "hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16,
    "max_position_embeddings": 64, "num_hash_buckets": 64,
}  # fmt: skip


class Notes:
    """Keeps events instead of writing them."""

    def __init__(self):
        self.events: list[dict[str, Any]] = []

    def log(self, kind, step, **values):
        self.events.append({"kind": kind, "step": step, **values})

    def of(self, kind):
        return [event for event in self.events if event["kind"] == kind]


@cache
def find_tokenizer():
    """It takes a second to make."""
    return CanineTokenizer()


def make_job(*overrides, num_bytes=0) -> Job:
    """`num_bytes` of weights come on top of some 100 kB; Adam's moments are twice as much again."""
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe = read_recipe("canine-tiny-domains-char", overrides)
    model = hf.build("canine", config=CONFIG, dropout=0.0, head_code_points=range(97, 123), seed=1)
    if num_bytes:
        model.register_parameter("ballast", torch.nn.Parameter(torch.ones(num_bytes // 4)))
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    anything: Any = SimpleNamespace(
        num_steps=10,
        world_size=1,
        zero_stage=None,
        precision="fp32",
        sharding="none",
        manifest={"key": "0"},
    )
    job = Job(
        recipe=recipe, plan=anything, store=anything, accelerator=Accelerator(cpu=True), model=model,
        bare_model=model, terms=(), optimizer=optimizer, tokenizer=find_tokenizer(), feed=anything,
        frozen=anything, load_report=None,
    )  # fmt: skip
    change(job)
    return job


def change(job):
    """What a step does to what is saved."""
    for parameter in job.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    job.optimizer.step()
    torch.rand(1)


def open_saver(folder, *overrides, job=None, notes=None) -> Saver:
    notes = notes or Notes()
    return Saver(job or make_job(*overrides), notes, folder)  # pyright: ignore[reportArgumentType]


def run_in_child(act):
    """Do something in a copy of this process; the signal that ended it, 0 if it came to its end, else -1."""
    return wait_for(start_child(act))


def run_ranks(num_ranks, act, meeting):
    """Do something as several ranks of one gloo group, each a copy of this process; how each ended.

    `meeting` is a file that is not there yet.
    """

    def act_as(rank):
        os.environ["RANK"] = str(rank)
        torch.distributed.init_process_group(
            "gloo", f"file://{meeting}", timedelta(seconds=20), rank=rank, world_size=num_ranks
        )
        act(rank)
        torch.distributed.barrier()

    children = [start_child(lambda rank=rank: act_as(rank)) for rank in range(num_ranks)]
    return [wait_for(child) for child in children]


def start_child(act):
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            torch.set_num_threads(1)  # a pool of threads does not survive a fork
            act()
            code = 0
        except BaseException:  # noqa: BLE001 - said before the process ends
            traceback.print_exc()
        finally:
            sys.stderr.flush()
            os._exit(code)
    return pid


def wait_for(pid):
    _, status = os.waitpid(pid, 0)
    if os.WIFSIGNALED(status):
        return signal.Signals(os.WTERMSIG(status))
    return 0 if os.WEXITSTATUS(status) == 0 else -1


def at(step, **values) -> Progress:
    return Progress(step=step, **values)
