"""Runs that differ in the seed of the training are judged on the same targets, drawn by one of their own."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState

from launch import judge
from launch.build import build_job
from launch.corpus import measure_corpus, prepare_corpus
from launch.examples import log_examples
from launch.hardware import find_profile
from launch.judging.suite import Suite
from launch.opening import describe_start
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from tests.saved_job import CONFIG, Notes

RECIPE = "canine-tiny-domains-char"
SETTINGS = [
    "data.limit=3000", "training.global_batch=8", "training.max_steps=50", "evaluation.samples=[]",
    f"model.config={CONFIG | {'max_position_embeddings': 128, 'num_hash_buckets': 128}}",
    "evaluation.metrics={names: {max_span: 2, num_spans: 40}}",
]  # fmt: skip


def build(*overrides):
    AcceleratorState._reset_state(reset_partial_state=True)
    recipe, profile = read_recipe(RECIPE, [*SETTINGS, *overrides]), find_profile("cpu")
    store = prepare_corpus(recipe)
    return build_job(recipe, make_plan(recipe, profile, Options(), measure_corpus(recipe)), profile, store)


@pytest.fixture(scope="module")
def jobs():
    return [build(f"training.seed={seed}") for seed in (1, 2)]


def list_targets(batches):
    return [(batch["input_ids"].tolist(), batch["labels"].tolist()) for _, batch in batches]


def list_hidden(batches):
    """What is hidden in all rows, however these are cut into batches."""
    return sorted(
        batch["labels"][row, batch["labels"][row] >= 0].tolist()
        for _, batch in batches
        for row in range(len(batch["labels"]))
    )


def test_another_seed_of_the_training_changes_weights_order_and_masks_but_no_target_of_the_evaluation(jobs):
    one, two = jobs
    assert list_targets(one.frozen) == list_targets(two.frozen)
    weights = [next(job.bare_model.parameters()) for job in jobs]
    assert not torch.equal(*weights)
    batches = [next(job.feed.steps(0, 1)).micro_batches[0]["input_ids"] for job in jobs]
    assert batches[0].shape != batches[1].shape or not torch.equal(*batches)


def test_the_seed_of_the_evaluation_changes_its_targets(jobs):
    other = build("training.seed=1", "evaluation.seed=7")
    assert list_targets(other.frozen) != list_targets(jobs[0].frozen)
    assert torch.equal(next(other.bare_model.parameters()), next(jobs[0].bare_model.parameters()))


def test_further_metrics_read_the_targets_that_the_model_is_scored_on(jobs):
    for job in jobs:
        suite = job.suite
        assert isinstance(suite, Suite)
        rows = suite.main.rows.load(np.arange(job.store.evaluation.num_rows))
        assert len(rows.places) == sum(int((batch["labels"] >= 0).sum()) for _, batch in job.frozen)
        assert rows.hidden.is_target.tolist() == (
            jobs[0].suite.main.rows.load(rows.row_ids).hidden.is_target.tolist()
        )
    spans = [job.suite.spans[0].rows.spans for job in jobs]
    assert spans[0].firsts.tolist() == spans[1].firsts.tolist()
    assert spans[0].rows.tolist() == spans[1].rows.tolist()


def test_yardsticks_are_those_of_the_targets_and_examples_the_same_rows(jobs):
    logs = []
    for job in jobs:
        notes = Notes()
        describe_start(job, notes, SimpleNamespace(step=0))
        log_examples(job, notes, 0)
        logs.append(notes)
    assert logs[0].of("yardstick") == logs[1].of("yardstick") != []
    num_targets = sum(int((batch["labels"] >= 0).sum()) for _, batch in jobs[0].frozen)
    assert {event["num_targets"] for event in logs[0].of("yardstick")} == {num_targets}
    rows = [[event["row"] for event in log.of("example")] for log in logs]
    assert rows[0] == rows[1] != []
    hidden = [
        [part["hidden"] for event in log.of("example") for part in event["parts"] if "hidden" in part]
        for log in logs
    ]
    assert hidden[0] == hidden[1] != []


def test_a_judged_model_is_scored_on_the_targets_of_the_runs(jobs, monkeypatch, tmp_path):
    found = []

    def score(model, frozen, device, suite):
        found.append(list_hidden(frozen))

    monkeypatch.setattr(judge, "evaluate", score)
    monkeypatch.setattr(judge, "build_metrics", lambda *_: None)
    for number, job in enumerate(jobs):
        folder = tmp_path / str(number)
        job.bare_model.save_pretrained(folder)
        judge.judge_folder(folder, job.recipe)
    assert found == [list_hidden(job.frozen) for job in jobs]
