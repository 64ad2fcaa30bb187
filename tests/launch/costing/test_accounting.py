from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from launch.costing.accounting import StepCounter
from launch.costing.flops import count_flops
from launch.costing.sizes import find_sizes
from launch.costing.work import Work
from launch.recipe_file import read_recipe
from launch.watching.track import Stopwatch
from modeling import hf
from modeling.canine import row_slots
from modeling.heads import IGNORED_LABEL
from modeling.pair import build_pair, list_parts

SIZES = {"hidden_size": 32, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 48}
DEBERTA = {**SIZES, "position_buckets": 16, "max_position_embeddings": 64}
WORDS, CHARACTERS, PAIR = (
    "deberta-tiny-encyclopedia-wwm",
    "canine-tiny-domains-char",
    "deberta-tiny-encyclopedia-rtd",
)


def make_batch(num_rows, num_slots, num_targets):
    torch.manual_seed(0)
    input_ids = torch.randint(5, 90, (num_rows, num_slots))
    labels = torch.full_like(input_ids, IGNORED_LABEL)
    labels[:, :num_targets] = 7
    return {"input_ids": input_ids, "attention_mask": torch.ones_like(input_ids), "labels": labels}


def count_by_torch(model, batches):
    with FlopCounterMode(display=False) as counter:
        for batch in batches:
            output = model(**batch)
            sums = [value for name, value in output.items() if name.endswith("loss_sum")]
            sum(sums).backward()
    return counter.get_total_flops()


def build_deberta() -> Any:
    return hf.build("deberta", config=DEBERTA, num_pieces=90, dropout=0.0, seed=0)


def sizes_of(*arguments) -> Any:
    return find_sizes(*arguments)


def flops_of(*arguments) -> Any:
    work: Any = Work.of(*arguments)
    return work.flops()


def test_a_step_is_the_sum_of_its_micro_batches():
    model, batches = build_deberta(), [make_batch(2, 40, 6), make_batch(3, 24, 4)]
    counter = StepCounter.of(list_parts(model))
    assert counter.count(batches) == pytest.approx(count_by_torch(model, batches), rel=1e-9)
    model.sparse_last_layer = True
    sparse = StepCounter.of(list_parts(model))
    assert sparse.count(batches) == pytest.approx(count_by_torch(model, batches), rel=1e-9)
    assert sparse.count(batches) < counter.count(batches)


def test_both_models_of_a_pair_are_counted():
    pair: Any = build_pair(build_deberta(), share=0.5, seed=0, special_pieces=[0, 1, 2, 3, 4], num_pieces=90)
    batches = [make_batch(2, 40, 6)]
    found = StepCounter.of(list_parts(pair)).count(batches)
    assert found == pytest.approx(count_by_torch(pair, batches), rel=0.01)


def test_what_no_one_counts_has_no_counter():
    part = SimpleNamespace(config=SimpleNamespace(to_dict=lambda: {"model_type": "gpt2"}))
    assert StepCounter.of([part]) is None


def test_a_planned_step_costs_what_a_full_one_does():
    recipe = read_recipe(WORDS)
    model: Any = hf.build("deberta", config=recipe.model.config, num_pieces=2000, dropout=0.0, seed=0)
    model.sparse_last_layer = True
    length = recipe.data.row_length
    batch = make_batch(recipe.training.global_batch, length, round(0.15 * length))
    assert flops_of(recipe, None) == pytest.approx(StepCounter.of(list_parts(model)).count([batch]), rel=0.01)
    pair = read_recipe(PAIR, [f"training.global_batch={recipe.training.global_batch}"])
    assert flops_of(pair, None) > 1.5 * flops_of(recipe, None)


@pytest.mark.parametrize("mean", [3, 14, 40, None])
def test_planned_names_have_the_slots_that_canine_asks_for(mean):
    recipe = read_recipe(CHARACTERS)
    num_used = recipe.data.row_length if mean is None else mean + 2
    rows = recipe.training.global_batch
    wanted = count_flops(
        {"model_type": "canine", **recipe.model.config},
        num_rows=rows,
        num_slots=row_slots(num_used),
        num_targets=round(0.15 * rows * num_used),
        sparse_last_layer=True,
    )
    assert flops_of(recipe, mean) == wanted.model


def test_sizes_come_from_the_recipe_a_folder_or_a_table(tmp_path):
    model = build_deberta()
    hf.save(model, tmp_path / "model")
    found = sizes_of("deberta", str(tmp_path / "model"), {})
    shape: dict[str, Any] = {"num_rows": 2, "num_slots": 40, "num_targets": 12}
    of_scratch = sizes_of("deberta", "scratch", DEBERTA, 90)
    assert (
        count_flops(found, **shape) == count_flops(of_scratch, **shape) == count_flops(model.config, **shape)
    )
    assert sizes_of("deberta", "microsoft/deberta-v3-base", {})["hidden_size"] == 768
    assert sizes_of("canine", "google/canine-c", {})["model_type"] == "canine"
    assert sizes_of("deberta", "someone/unknown", {}) is None


def test_speed_in_flops_and_its_share_of_the_peak_are_logged_where_they_are_known():
    watch = Stopwatch()
    watch.worked(10, 1)
    assert not {"flops_per_second", "mfu"} & set(watch.read(1e12))
    for peak in (None, 8e12):
        watch.worked(1000, 10, 10**9)
        found = watch.read(peak)
        assert found["flops_per_second"] == pytest.approx(found["tokens_per_second"] * 10**6)
        if peak:
            assert found["mfu"] == pytest.approx(found["flops_per_second"] / peak)
        else:
            assert "mfu" not in found
