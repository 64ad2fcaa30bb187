"""The forecast of a run: its time by parts, and what a number of devices does to it."""

from dataclasses import asdict, dataclass
from typing import Any

from launch.costing.timing import (
    ASSUMED_MFU,
    ASSUMED_RANGE,
    StepTime,
    Way,
    communication_bytes,
    describe_hours,
    estimate_evaluation,
    estimate_save,
    estimate_step,
)
from launch.costing.work import Work
from launch.hardware import Profile
from launch.recipe import Recipe

MIN_EFFICIENCY = 0.5
"""Below it the plan says so."""


@dataclass(frozen=True)
class Calibration:
    """What a few real steps of the same recipe, profile and setting took.

    Attributes:
        step_seconds: the median of the steps after the first ones.
        peak_memory_bytes: of a rank; on a CPU of its process.
        device: that ran them.
        date: when.
    """

    step_seconds: float
    peak_memory_bytes: int
    num_steps: int
    device: str
    date: str


@dataclass(frozen=True)
class Length:
    """What a forecast needs of a run's length; None: unknown."""

    num_steps: int | None
    num_evaluations: int | None
    num_saves: int | None
    num_rows: int | None


@dataclass(frozen=True)
class Forecast:
    """Seconds of the run, in all and by part, and where they come from.

    Attributes:
        seconds: None: neither the card's peak nor a calibration is known.
        parts: `step`, what a step goes to, `evaluations`, `saves`, `mfu`, `origin`.
        scaling: of several devices: rows and bytes of each, expected efficiency.
        notes: for the reader.
    """

    seconds: float | None
    parts: dict[str, Any]
    scaling: dict[str, Any]
    notes: list[str]


def forecast(
    recipe: Recipe, profile: Profile, work: Work, way: Way, length: Length, calibration: Calibration | None
) -> Forecast:
    """Predict a run's time."""
    gpu = profile.gpu
    step = estimate_step(work, way, gpu, network_bandwidth=profile.network_bandwidth) if gpu else None
    scaling = _scale(profile, work, way, step)
    if calibration is not None:
        return _from_calibration(calibration, work, way, length, profile, scaling)
    if step is None or gpu is None or length.num_steps is None:
        return Forecast(None, {}, scaling, [])
    peak = gpu.peak_flops(way.precision)
    assert peak is not None
    evaluations = _evaluations_seconds(recipe, work, way, length, peak * ASSUMED_MFU)
    saves = (length.num_saves or 0) * estimate_save(work)
    seconds = step.seconds * length.num_steps + evaluations + saves
    parts = {
        "origin": "assumed",
        "mfu": ASSUMED_MFU,
        "step": step.seconds,
        **asdict(step),
        "evaluations": evaluations,
        "saves": saves,
    }
    slow, fast = (_steps_seconds(profile, work, way, length.num_steps, share) for share in ASSUMED_RANGE)
    note = (
        f"the time is assumed, not measured: {ASSUMED_MFU:.0%} of {peak / 1e12:,.0f} TFLOP/s a card and "
        f"nothing overlapped; the steps take {describe_hours(fast)} at {ASSUMED_RANGE[1]:.0%}, "
        f"{describe_hours(slow)} at {ASSUMED_RANGE[0]:.0%}. --calibrate measures it on the machine itself"
    )
    if work.is_bound:
        note += "; every row counted as the longest, as data.expected_tokens is not given"
    return Forecast(seconds, parts, scaling, [note, *_note_scaling(scaling)])


def _note_scaling(scaling: dict[str, Any]) -> list[str]:
    efficiency = scaling.get("efficiency", 1.0)
    if efficiency >= MIN_EFFICIENCY:
        return []
    return [
        f"at an expected efficiency of {efficiency:.0%} most of the devices wait for each other: the global "
        f"batch leaves each of them {scaling['rows_per_device']:,} rows; fewer devices cost little time"
    ]


def _steps_seconds(profile: Profile, work: Work, way: Way, num_steps: int, mfu: float) -> float:
    assert profile.gpu is not None
    step = estimate_step(work, way, profile.gpu, network_bandwidth=profile.network_bandwidth, mfu=mfu)
    assert step is not None
    return step.seconds * num_steps


def _from_calibration(
    found: Calibration, work: Work, way: Way, length: Length, profile: Profile, scaling: dict[str, Any]
) -> Forecast:
    peak = profile.gpu.peak_flops(way.precision) if profile.gpu else None
    mfu = work.flops() / (found.step_seconds * peak * way.world_size) if peak else None
    seconds = None if length.num_steps is None else found.step_seconds * length.num_steps
    parts = {"origin": "measured", "step": found.step_seconds, "mfu": mfu, "calibration": asdict(found)}
    note = (
        f"the time is measured: {found.num_steps} steps on {found.device} on {found.date}, "
        f"{found.step_seconds:.3g} s each; evaluations and saves come on top"
    )
    return Forecast(seconds, parts, scaling, [note])


def _evaluations_seconds(recipe: Recipe, work: Work, way: Way, length: Length, speed: float) -> float:
    share = recipe.data.evaluation_share
    if not length.num_rows or not length.num_evaluations:
        return 0.0
    num_rows = round(length.num_rows * share / (1 - share))
    once = estimate_evaluation(work, num_rows, speed, way.world_size, 1.0)
    return once * (length.num_evaluations + 1)


def _scale(profile: Profile, work: Work, way: Way, step: StepTime | None) -> dict[str, Any]:
    if way.world_size == 1:
        return {}
    scaling: dict[str, Any] = {
        "rows_per_device": work.num_rows // way.world_size,
        "communication_bytes_per_step": communication_bytes(work, way),
    }
    if step is not None and profile.gpu is not None:
        alone = Way(1, 1, way.accumulation * way.world_size, way.precision, way.checkpointing, way.is_chunked)
        one = estimate_step(work, alone, profile.gpu, network_bandwidth=profile.network_bandwidth)
        assert one is not None
        scaling["communication_seconds_per_step"] = step.communication
        scaling["efficiency"] = one.seconds / (step.seconds * way.world_size)
    return scaling
