"""The first phase of a run on a grown vocabulary: the rows of the new pieces learn before the rest does.

It is a pure function of the step, so that a resume needs no state of it: in its steps gradients are zero but
in the new rows and no weight decays, and with Adam's moments at zero every other weight stays as it is, to
the bit.

What it leaves behind is Adam's count of steps. The first update of the other weights is corrected for a
start that lies N steps back, and is (1 - b1) / sqrt(1 - b2) * sqrt(1 - b2^(N+1)) / (1 - b1^(N+1)) of the rate
instead of all of it: with betas of 0.9 and 0.98 after 200 steps 0.70. Under a gradient that does not change,
the later ones reach at most 1.6 times the rate (with 0.9 and 0.999 after a long phase 6.6 times). A
warmup, during which the rate is low, covers both.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from data_pipes.vocabulary.extend import map_new_pieces
from launch.optim import set_decays
from launch.plan import Plan
from launch.recipe import Recipe
from launch.verdict import REQUEST, RunError
from modeling.new_rows import NewRows
from modeling.trust import SAFE_CODE

if TYPE_CHECKING:
    from launch.build import Job
    from launch.watching.track import Tracker


@dataclass(frozen=True)
class FirstPhase:
    """The first steps of a run.

    Attributes:
        num_steps: how many they are.
        rows: what is trained in them.
        decays: the weight decay of each group of parameters after them.
    """

    num_steps: int
    rows: NewRows
    decays: Sequence[float]

    def enter(self, optimizer: Optimizer, step: int) -> None:
        """Prepare the update that makes `step`, in the phase or after it."""
        self.rows.is_on = step <= self.num_steps
        # Written each step, for a checkpoint of the phase brings its own back.
        set_decays(optimizer, [0.0] * len(self.decays) if self.rows.is_on else self.decays)

    def announce(self, tracker: "Tracker", step: int) -> None:
        """Log that the phase begins or is over, if it does with `step`."""
        num_pieces = len(self.rows.pieces)
        if step == 1:
            text = f"new rows only until step {self.num_steps:,}: {num_pieces:,} new pieces"
        elif step == self.num_steps + 1:
            text = f"all weights from step {step:,} on"
        else:
            return
        tracker.log("phase", step, num_steps=self.num_steps, num_pieces=num_pieces, message=text)


def enter_step(job: "Job", tracker: "Tracker", step: int) -> None:
    """Prepare the update that makes `step`, where the run has a first phase; log its begin and its end."""
    if job.first_phase is not None:
        job.first_phase.enter(job.optimizer, step)
        job.first_phase.announce(tracker, step)


def build_first_phase(
    recipe: Recipe, plan: Plan, model: Any, tokenizer: PreTrainedTokenizerBase, optimizer: Optimizer
) -> FirstPhase | None:
    """The first phase of a run, where its recipe has one.

    Args:
        recipe: of the run.
        plan: of the run.
        model: the one inside, with its parameters as they will be trained.
        tokenizer: the extended one.
        optimizer: as it was prepared, with the weight decays of the recipe.

    Raises:
        RunError: the model knows all pieces already, or brings no tokenizer to tell.
    """
    if not plan.num_first_phase_steps:
        return None
    pieces = find_old_pieces(recipe.model.source, tokenizer)
    if not pieces:
        raise RunError(
            REQUEST,
            f"tokenizer.extend.first_phase: no piece is new to {recipe.model.source}, which brings its own "
            "tokenizer with all of them, or another one, or none; remove first_phase, or take the model and "
            "tokenizer that the terms extend",
        )
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    return FirstPhase(plan.num_first_phase_steps, NewRows(model, list(pieces)), decays)


def find_old_pieces(source: str, tokenizer: PreTrainedTokenizerBase) -> dict[int, list[int]]:
    """The pieces that the model's own tokenizer lacks, and how it cuts them; none if it has no tokenizer."""
    try:
        before = AutoTokenizer.from_pretrained(source, **SAFE_CODE)
    except (OSError, ValueError):
        return {}
    old, new = before.get_vocab(), tokenizer.get_vocab()
    is_extended = all(new.get(piece) == number for piece, number in old.items())
    return map_new_pieces(before, tokenizer) if is_extended and len(new) > len(old) else {}
