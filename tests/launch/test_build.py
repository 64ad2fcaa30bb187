import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipes.collate import MASK_CHARACTER, Layout
from data_pipes.feed import Feed
from data_pipes.masking import Masking
from data_pipes.ordering.stream_order import StreamOrder
from data_pipes.rows import Rows
from data_pipes.stream import WriterError
from launch.build import Job
from launch.recipe_file import read_recipe
from launch.row_check import check_rows
from launch.verdict import MACHINE, RunError
from modeling import hf

CANINE = "canine-tiny-domains-char"
DEBERTA = "deberta-tiny-encyclopedia-wwm"


def build_canine(**config):
    recipe = read_recipe(CANINE)
    sizes = {**recipe.model.config, **config}
    return hf.build("canine", config=sizes, head_code_points=[97], dropout=0.0, seed=0)


def test_rows_longer_than_a_canine_reads_are_refused_before_training():
    check_rows(read_recipe(CANINE), build_canine())
    with pytest.raises(ValueError, match="row_length 66 takes 72 slots, and the model reads 64"):
        check_rows(read_recipe(CANINE), build_canine(max_position_embeddings=64))
    with pytest.raises(ValueError, match="the model reads 70"):
        check_rows(read_recipe(CANINE), build_canine(num_hash_buckets=70))


def test_packing_is_refused_for_a_model_with_absolute_positions():
    recipe = read_recipe(DEBERTA)
    config = {**recipe.model.config, "position_biased_input": True}
    model = hf.build("deberta", config=config, num_pieces=50, dropout=0.0, seed=0)
    with pytest.raises(ValueError, match="packing: false"):
        check_rows(recipe, model)
    check_rows(read_recipe(DEBERTA, ["data.packing=false"]), model)


class Stream(Rows):
    """A stream of one shard of four rows, and nothing behind it until it is closed."""

    rows_per_shard = 4
    fault = ValueError("closed")

    def __init__(self):
        pieces = np.tile(np.arange(97, 105, dtype=np.uint32), 4)
        is_first = np.arange(len(pieces)) % 8 == 0
        super().__init__(pieces, np.arange(5) * 8, np.ones(len(pieces), bool), is_first)
        object.__setattr__(self, "is_closed", threading.Event())

    def wait_for(self, num_rows):
        if num_rows > self.num_rows:
            self.is_closed.wait(20)
            raise self.fault
        return self.num_rows, False

    def close(self):
        self.is_closed.set()


def make_job(rows):
    letters = np.arange(97, 105, dtype=np.uint32)
    masking = Masking(
        kind="character",
        rate=0.3,
        mask_piece=MASK_CHARACTER,
        random_pieces=letters,
        special_pieces=np.array([], np.uint32),
    )
    feed = Feed(
        rows,
        layout=Layout(kind="characters", row_length=16),
        masking=masking,
        seed=1,
        global_batch=2,
        micro_batch=2,
        order=StreamOrder(rows, 1),
    )
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu")),
        plan=SimpleNamespace(devices=1),
        store=SimpleNamespace(train=rows),
        feed=feed,
    )


def test_a_run_that_ends_does_not_wait_for_the_rest_of_a_stream():
    steps = Job.steps(make_job(Stream()), 0, 10)
    assert next(steps).num_rows == 2
    began = time.monotonic()
    steps.close()
    assert time.monotonic() - began < 60


def test_a_stream_that_the_machine_cannot_write_ends_the_run_as_such():
    rows = Stream()
    object.__setattr__(rows, "fault", WriterError("the disk is full"))
    steps = Job.steps(make_job(rows), 0, 10)
    assert [next(steps).num_rows, next(steps).num_rows] == [2, 2]
    rows.close()
    with pytest.raises(RunError, match="the disk is full") as caught:
        next(steps)
    assert caught.value.verdict.exit_code == MACHINE
