"""The ladder: ways to lay a step out on a card, the cheapest first, climbed down until one fits.

Plain, then gradient checkpointing, then a loss in chunks of targets, then the optimizer in CPU memory, then
the parameters there too. Each rung takes the largest micro-batch that fits.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from launch.sharding import NONE, read_sharding

USABLE_SHARE = 0.975
"""Of the memory that a card is sold with: torch sees 10.76 of 11 GiB and 39.4 of 40."""
LOSS_CHUNK = 256
"""Targets at a time: large enough for the products to run at their speed."""


@dataclass(frozen=True)
class Layout:
    """A way to lay a step out on a device, without its micro-batch."""

    sharding: str = NONE
    checkpointing: bool = False
    loss_chunk: int | None = None

    @property
    def offload(self) -> Literal["optimizer", "parameters"] | None:
        """What its sharding keeps in CPU memory."""
        return read_sharding(self.sharding).offload

    @property
    def zero_stage(self) -> int | None:
        """Of its sharding."""
        return read_sharding(self.sharding).zero_stage

    def describe(self) -> str:
        """In words."""
        parts = [] if self.sharding == NONE else [self.sharding]
        parts += ["checkpointing"] if self.checkpointing else []
        parts += ["chunked loss"] if self.loss_chunk else []
        return ", ".join(parts) or "plain"


@dataclass(frozen=True)
class Rung:
    """A layout with its micro-batch, and what that costs.

    Attributes:
        micro_batch: the largest that fits, else the smallest that was tried.
        gpu_bytes, cpu_bytes: predicted for it.
        dominant: the largest term on the card.
        step_seconds: predicted; None: the card's peak is not known.
    """

    layout: Layout
    micro_batch: int
    fits: bool
    gpu_bytes: int
    cpu_bytes: int
    dominant: str
    step_seconds: float | None

    def as_dict(self) -> dict[str, Any]:
        """For the plan as JSON."""
        values = asdict(self)
        layout = values.pop("layout")
        return {"name": self.layout.describe(), **layout, **values}


@dataclass(frozen=True)
class Ladder:
    """The rungs that were tried, the one that was taken (None: none fits) and why it ended there."""

    rungs: tuple[Rung, ...]
    taken: Rung | None
    reason: str


def list_layouts(
    shardings: Sequence[str],
    checkpointing: bool | None = None,
    loss_chunk: int | Literal["off"] | None = None,
) -> list[Layout]:
    """The layouts to try, the cheapest first.

    Args:
        shardings: to try, in their order.
        checkpointing: where it is settled; None: both ways.
        loss_chunk: the same.
    """
    switches = [False, True] if checkpointing is None else [checkpointing]
    chunks = [None, LOSS_CHUNK] if loss_chunk is None else [None if loss_chunk == "off" else loss_chunk]
    first, *rest = shardings
    layouts = [Layout(first, on, chunk) for on in switches for chunk in chunks]
    if len(layouts) == 4:
        layouts.pop(1)  # chunks without checkpointing save less than either costs
    # Further shardings come when all else was not enough, so that they come with all else.
    return [*layouts, *(Layout(name, switches[-1], chunks[-1]) for name in rest)]


def climb(
    layouts: Iterable[Layout],
    micro_batches: Sequence[int],
    measure: Callable[[Layout, int], Rung],
) -> Ladder:
    """Try layouts until one fits and the next is not faster.

    Args:
        layouts: the cheapest first.
        micro_batches: to try in each, the largest first.
        measure: a layout with a micro-batch -> its rung.
    """
    rungs: list[Rung] = []
    taken: Rung | None = None
    for layout in layouts:
        rung = _find_largest(layout, micro_batches, measure)
        rungs.append(rung)
        if taken is not None and not _is_faster(rung, taken):
            return Ladder(tuple(rungs), taken, _compare(taken, rung))
        taken = rung if rung.fits else taken
    if taken is None:
        return Ladder(tuple(rungs), None, "none fits")
    return Ladder(tuple(rungs), taken, f"{taken.layout.describe()} is the last one, and it fits")


def _find_largest(
    layout: Layout, micro_batches: Sequence[int], measure: Callable[[Layout, int], Rung]
) -> Rung:
    *larger, least = micro_batches
    for micro_batch in larger:
        rung = measure(layout, micro_batch)
        if rung.fits:
            return rung
    return measure(layout, least)


def _is_faster(rung: Rung, taken: Rung) -> bool:
    if not rung.fits or rung.step_seconds is None or taken.step_seconds is None:
        return False
    return rung.step_seconds < taken.step_seconds


def _compare(taken: Rung, rung: Rung) -> str:
    name = taken.layout.describe()
    if not rung.fits or rung.step_seconds is None or taken.step_seconds is None:
        return f"{name} fits"
    more = rung.step_seconds / taken.step_seconds - 1
    return f"{name} fits, and {rung.layout.describe()} would take {more:.0%} longer"


def find_change(
    layout: Layout, micro_batch: int, smaller: Sequence[int], measure: Callable[[Layout, int], Rung]
) -> str:
    """The smallest change that makes a setting fit, as an option of the command line.

    Args:
        layout: with `micro_batch`, what does not fit.
        micro_batch: asked for.
        smaller: micro-batches to try, the largest first.
        measure: as of `climb`.
    """
    plain = layout.sharding == NONE
    for text, changed in (
        ("--checkpointing on", replace(layout, checkpointing=True)),
        (f"--loss-chunk {LOSS_CHUNK}", replace(layout, loss_chunk=LOSS_CHUNK)),
        (
            f"--checkpointing on --loss-chunk {LOSS_CHUNK}",
            replace(layout, checkpointing=True, loss_chunk=LOSS_CHUNK),
        ),
    ):
        if changed != layout and measure(changed, micro_batch).fits:
            return text
    for number in smaller:
        if number < micro_batch and measure(layout, number).fits:
            return f"--micro-batch {number}"
    if plain:
        for name in ("zero2-offload", "zero3-offload-parameters"):
            everything = Layout(name, checkpointing=True, loss_chunk=LOSS_CHUNK)
            for number in (n for n in smaller if n <= micro_batch):
                if measure(everything, number).fits:
                    return (
                        f"--sharding {name} --checkpointing on --loss-chunk {LOSS_CHUNK} "
                        f"--micro-batch {number}"
                    )
    return "a smaller model, a shorter data.row_length, or a card with more memory"
