"""However a global batch is cut, over micro-batches and ranks, its steps are those of the whole batch.

In micro-batches of one row nothing is padded, in the whole batch nearly every row is: padding is told from
text here too. Names have from 4 to 63 characters, so that targets are spread unevenly over the parts.
"""

import json
import sys

import pytest

from tests.commands import ROOT, start

pytestmark = pytest.mark.ranks
CANINE = "canine-tiny-domains-char"
BATCH, NUM_STEPS = 8, 6
SETTINGS = ["data.limit=2000", f"training.global_batch={BATCH}", "training.max_steps=50"]
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")


def train_cut(micro_batches):
    """Print the first steps for each micro-batch size, as one line of JSON; rank 0 does."""
    from accelerate.state import AcceleratorState

    from launch.build import build_job
    from launch.corpus import measure_corpus, prepare_corpus
    from launch.hardware import find_profile
    from launch.optim import set_rate
    from launch.options import Options
    from launch.plan import make_plan
    from launch.recipe_file import read_recipe
    from launch.step import take_step
    from launch.world import World

    world = World.find()
    recipe, profile = read_recipe(CANINE, SETTINGS), find_profile("cpu" if world.size == 1 else "cpu-2proc")
    store, found = prepare_corpus(recipe), {}
    for micro_batch in micro_batches:
        AcceleratorState._reset_state(reset_partial_state=True)
        plan = make_plan(recipe, profile, Options(micro_batch=micro_batch), measure_corpus(recipe))
        assert (plan.accumulation or 0) * micro_batch * world.size == BATCH
        job = build_job(recipe, plan, profile, store)
        rates, steps = plan.rate_schedule(recipe), []
        for step, batch in enumerate(job.feed.steps(0, NUM_STEPS), start=1):
            set_rate(job.optimizer, rates.at(step))
            counts = [int((part["labels"] >= 0).sum()) for part in batch.micro_batches]
            outcome = take_step(job, batch)
            figures = (outcome.loss, outcome.grad_norm, outcome.num_targets)
            steps.append(dict(zip(("loss", "grad_norm", "num_targets"), figures, strict=True), counts=counts))
        found[micro_batch] = steps
    if world.rank == 0:
        print(json.dumps(found), flush=True)


def cut(micro_batches, *launcher):
    command = [sys.executable, *launcher, "-m", "tests.launch.test_accumulation", *map(str, micro_batches)]
    done = start(command, ROOT)
    assert done.exit_code == 0, done.stderr
    return {int(size): steps for size, steps in json.loads(done.stdout.splitlines()[-1]).items()}


def test_every_cut_of_a_global_batch_over_micro_batches_and_ranks_takes_the_same_steps():
    one, two = cut((8, 4, 2, 1)), cut((4, 2, 1), *TORCHRUN)
    whole = one[BATCH]
    assert all(len(step["counts"]) == 1 for step in whole)
    # A mean of the means of parts as uneven as these would be another loss.
    assert max(max(step["counts"]) / min(step["counts"]) for step in one[1]) > 3
    for found in [*one.values(), *two.values()]:
        assert [step["num_targets"] for step in found] == [step["num_targets"] for step in whole]
        for key in ("loss", "grad_norm"):
            assert [step[key] for step in found] == pytest.approx([step[key] for step in whole], rel=2e-6), (
                key
            )


if __name__ == "__main__":
    train_cut([int(word) for word in sys.argv[1:]])
