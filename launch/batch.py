"""The batch of a step, split evenly over devices and micro-batches."""

from launch.hardware import Profile
from launch.recipe import Recipe

ASSUMED_TOKENS, ASSUMED_GB = 4096, 11
"""Tokens at a time that a card of so many GiB takes, where its memory is not looked at."""
MIN_CHARACTER_CUTS = 2


def count_rows(recipe: Recipe, world_size: int, errors: list[str]) -> int | None:
    """Rows of a device in a step; None, and an error, where they cannot be equally many."""
    global_batch = recipe.training.global_batch
    if global_batch % world_size == 0:
        return global_batch // world_size
    below, above = global_batch // world_size * world_size, (global_batch // world_size + 1) * world_size
    near = f"{below:,} or {above:,}" if below else f"{above:,}"
    errors.append(
        f"training.global_batch {global_batch:,} is not divisible by {world_size} devices; set it to "
        f"{near}, or use another number of devices"
    )
    return None


def list_micro_batches(recipe: Recipe, num_rows: int) -> list[int]:
    """The micro-batches that divide a device's rows, the largest first."""
    most = num_rows
    if recipe.model.family == "canine" and num_rows > 1:
        # Names are cut by length: in one micro-batch all are as long as the longest, 1.8 times the slots that
        # they need; in two 1.2 times, in four 1.04 (1.5 M registered names, 256 a step).
        most = -(-num_rows // MIN_CHARACTER_CUTS)
    return [number for number in range(most, 0, -1) if num_rows % number == 0]


def check_micro_batch(recipe: Recipe, micro_batch: int, num_rows: int, errors: list[str]) -> int | None:
    """The micro-batch that was asked for; None, and an error, where it does not divide a device's rows."""
    if micro_batch >= 1 and num_rows % micro_batch == 0:
        return micro_batch
    global_batch = recipe.training.global_batch
    divisors = ", ".join(str(n) for n in range(1, num_rows + 1) if num_rows % n == 0)
    errors.append(
        f"--micro-batch {micro_batch} does not divide the {num_rows:,} rows of a device "
        f"(global batch {global_batch:,} / {global_batch // num_rows}); possible: {divisors}"
    )
    return None


def assume_batch(recipe: Recipe, profile: Profile) -> int:
    """Rows that a device takes at once, by rule of thumb.

    Evaluation uses it as it is, so that the number of devices does not change its sums.
    """
    if profile.micro_batch:
        return profile.micro_batch
    memory_gb = profile.gpu.memory_gb if profile.gpu else ASSUMED_GB
    return max(1, round(memory_gb / ASSUMED_GB * ASSUMED_TOKENS) // recipe.data.row_length)
