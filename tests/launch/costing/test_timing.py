"""Times against sums worked out by hand from the numbers in the profiles."""

from dataclasses import replace
from typing import Any

import pytest

from launch.costing.timing import (
    ASSUMED_MFU,
    HOST_MEMORY_BANDWIDTH,
    LAYER_SECONDS,
    Way,
    communication_bytes,
    describe_hours,
    estimate_evaluation,
    estimate_step,
)
from launch.costing.work import Work
from launch.hardware import Gpu, load_profiles
from launch.recipe_file import read_recipe

WORK: Any = Work.of(read_recipe("deberta-v3-base-paleo-wwm"), 512.0)
TURING, A100 = (load_profiles()[name].gpu for name in ("rtx2080ti-11gb", "a100-40gb"))
NUM = WORK.num_parameters


def time_of(way, gpu: Any = TURING, **more) -> Any:
    return estimate_step(WORK, way, gpu, network_bandwidth=12.5e9, **more)


def test_products_take_their_flops_at_a_share_of_the_peak():
    step = time_of(Way(1, 1, 16, "fp16"))
    # 128 rows of 512 at 722 MFLOP a token, less what the last layer spares
    assert step.compute == pytest.approx(128 * 512 * 722e6 / (53.8e12 * ASSUMED_MFU), rel=0.08)
    assert step.seconds == pytest.approx(step.compute + step.optimizer)
    assert step.optimizer == pytest.approx(30 * NUM / 616e9)
    assert time_of(Way(1, 1, 16, "fp16"), mfu=0.7).compute == pytest.approx(step.compute / 2)


def test_checkpointing_costs_what_the_layers_cost_forward():
    plain, again = (time_of(Way(1, 1, 16, "fp16", checkpointing=on)) for on in (False, True))
    assert again.compute == plain.compute
    assert again.recompute / again.compute == pytest.approx(0.29, abs=0.02)


def test_a_chunked_loss_computes_the_head_again():
    chunked = time_of(Way(1, 1, 16, "fp16", is_chunked=True))
    # 2 x 768 x 128,100 a target, and the square transform before
    head = 2 * WORK.num_targets * (768 * 128_100 + 768 * 768)
    assert chunked.recompute == pytest.approx(head / (53.8e12 * ASSUMED_MFU), rel=0.01)


@pytest.mark.parametrize(("accumulation", "copies"), [(1, 2), (2, 4), (16, 32)])
def test_offload_moves_gradients_in_every_micro_batch_and_updates_on_the_cpu(accumulation, copies):
    step = time_of(Way(1, 1, accumulation, "fp16", zero_stage=2, offload="optimizer"))
    assert step.offload == pytest.approx(copies * 2 * NUM / 12e9)
    assert step.optimizer == pytest.approx(28 * NUM / HOST_MEMORY_BANDWIDTH)
    more = time_of(Way(1, 1, accumulation, "fp16", zero_stage=3, offload="parameters"))
    assert more.offload == pytest.approx((copies + 2 * accumulation) * 2 * NUM / 12e9)


def test_gradients_go_round_a_ring():
    ring = 7 / 8
    assert communication_bytes(WORK, Way(1, 1, 1, "bf16")) == 0
    assert communication_bytes(WORK, Way(8, 1, 4, "bf16")) == pytest.approx(2 * ring * 4 * NUM)
    assert communication_bytes(WORK, Way(8, 1, 4, "bf16", zero_stage=1)) == pytest.approx(3 * ring * 2 * NUM)
    assert communication_bytes(WORK, Way(8, 1, 4, "bf16", zero_stage=2)) == pytest.approx(
        (4 + 1) * ring * 2 * NUM
    )
    assert communication_bytes(WORK, Way(8, 1, 4, "bf16", zero_stage=3)) == pytest.approx(
        (4 + 8) * ring * 2 * NUM
    )
    inside = time_of(Way(8, 1, 1, "bf16"), A100).communication
    across = time_of(Way(8, 2, 1, "bf16"), A100).communication
    assert inside == pytest.approx(2 * ring * 4 * NUM / 300e9)
    assert across == pytest.approx(2 * ring * 4 * NUM / 12.5e9)


def test_few_rows_cannot_be_faster_than_starting_the_kernels():
    few = replace(WORK, num_rows=1, num_targets=77)
    assert A100 is not None
    step = estimate_step(few, Way(1, 1, 1, "bf16"), A100, network_bandwidth=1e9)
    assert step is not None
    assert step.compute == pytest.approx(12 * LAYER_SECONDS)


def test_a_feed_slower_than_the_device_sets_the_pace():
    small = replace(WORK, parts=({**WORK.parts[0], "num_hidden_layers": 1, "vocab_size": 100},))
    assert A100 is not None
    step = estimate_step(small, Way(1, 1, 1, "bf16"), A100, network_bandwidth=1e9, mfu=1.0)
    assert step is not None
    assert step.seconds == max(step.busy, step.feed)
    assert step.feed == pytest.approx(128 * 512 / 1.9e6)


def test_a_card_whose_peak_is_not_known_has_no_time():
    assert time_of(Way(1, 1, 1, "bf16"), Gpu(memory_gb=24, compute_capability=8.9)) is None
    assert time_of(Way(1, 1, 1, "tf32")) is None


def test_an_evaluation_is_a_third_of_the_training_of_its_rows():
    found = estimate_evaluation(WORK, 128, 53.8e12, 1, ASSUMED_MFU)
    assert found == pytest.approx(time_of(Way(1, 1, 16, "fp16")).compute / 3, rel=0.03)


def test_durations_are_said_as_people_say_them():
    found = [describe_hours(seconds) for seconds in (2.34, 90, 5400, 10 * 86400)]
    assert found == ["2.3 s", "1.5 min", "1.5 h", "10.0 days"]
