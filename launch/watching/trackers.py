"""Trackers beside metrics.jsonl: TensorBoard, Weights & Biases, trackio and MLflow, as Accelerate has them.

None is imported unless a recipe names it. Each is served by a thread of its own, so that a slow network never
holds up a step; one that fails is dropped, and what it missed is sent when the run is resumed. Trackers only
ever append: steps that they have already are not sent again (TensorBoard purges them instead). So where a
run goes back within a session a tracker keeps the values of a step that it was given first; metrics.jsonl,
and a tracker that is opened later, have those of the course that counts.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from launch.events import Event, keep_later
from launch.liveness import find_timeout
from launch.redaction import redact, show
from launch.verdict import MACHINE, RunError
from launch.watching.courier import Courier, CourierError
from launch.watching.tracker_kinds import OPENERS, Target

TrackerName = Literal["tensorboard", "wandb", "trackio", "mlflow"]
STATE = "trackers.json"
KINDS = ("train", "eval")
_SECTIONS = (
    "name", "model", "tokenizer", "data", "objective", "training", "evaluation", "checkpoint", "stopping",
    "logging", "precision",
)  # fmt: skip
_PLAN = (
    "profile", "devices", "nodes", "world_size", "global_batch", "micro_batch", "accumulation", "num_steps",
    "num_epochs", "num_warmup_steps", "num_tokens", "num_rows", "precision", "gradient_checkpointing",
    "loss_chunk", "sharding", "offload", "zero_stage", "attention", "num_parameters", "flops_per_step",
)  # fmt: skip
_ENVIRONMENT = ("python", "packages", "device", "num_processes", "distributed")
_START_SECONDS = 120.0
_LEFT_OUT = ("evaluation.samples",)


@dataclass(frozen=True)
class Wish:
    """What a recipe wants to be tracked by.

    Attributes:
        names: of the trackers.
        project, run_name: under which they file the run.
        config: flat settings of the run, without secrets (`describe_config`).
    """

    names: Sequence[str] = ()
    project: str = "maskwright"
    run_name: str = "run"
    config: Mapping[str, Any] = field(default_factory=dict)


def require_packages(names: Iterable[str]) -> None:
    """Stop where a tracker is not installed.

    Raises:
        RunError: with what to install.
    """
    missing = [name for name in names if not _is_installed(name)]
    if missing:
        raise RunError(
            MACHINE,
            f"report_to names what is not installed: {', '.join(missing)}; pip install {' '.join(missing)}, "
            "or take it out",
        )


def _is_installed(package: str) -> bool:
    spec = find_spec(package)
    # A folder of that name in the working directory, as wandb makes one, is found too; it has no origin.
    return spec is not None and spec.origin is not None


def describe_config(
    recipe: Mapping[str, Any], plan: Mapping[str, Any], environment: Mapping[str, Any]
) -> dict[str, Any]:
    """What goes along with a run, flat: named parts of recipe, plan and environment, without secrets."""
    parts = {
        "recipe": {name: recipe[name] for name in _SECTIONS if name in recipe},
        "plan": {name: plan[name] for name in _PLAN if name in plan},
        "environment": {name: environment[name] for name in _ENVIRONMENT if name in environment},
    }
    flat: dict[str, Any] = {}
    for part, values in parts.items():
        _flatten(values, part, flat)
    hidden = tuple(f"recipe.{name}" for name in _LEFT_OUT)
    return {key: value for key, value in flat.items() if not key.startswith(hidden)}


def _flatten(value: Any, path: str, flat: dict[str, Any]) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _flatten(item, f"{path}.{redact(str(key))}", flat)
    elif isinstance(value, list | tuple) and any(isinstance(item, Mapping) for item in value):
        for index, item in enumerate(value):
            _flatten(item, f"{path}.{index}", flat)
    elif isinstance(value, list | tuple):
        flat[path] = redact(json.dumps(list(value), ensure_ascii=False, default=str))
    else:
        flat[path] = redact(value) if isinstance(value, str) else value


def to_values(event: Event) -> dict[str, float]:
    """The numbers of a training or evaluation event, by `<kind>/<key>`; none of other events."""
    kind = event["kind"]
    if kind not in KINDS:
        return {}
    return {
        f"{kind}/{name.removeprefix(f'{kind}/')}": value
        for name, value in event.items()
        if isinstance(value, int | float) and not isinstance(value, bool) and name not in ("kind", "step")
    }


@dataclass
class _Entry:
    """What trackers.json keeps of one: its run's id, and the highest steps that it has.

    `is_behind`: later steps of metrics.jsonl did not reach it.
    """

    id: str
    train: int = 0
    eval: int = -1  # step 0 is evaluated
    is_behind: bool = False


class Trackers:
    """All trackers of a run that are still there.

    Args:
        folder: of the run.
        wish: what the recipe wants.
        resumed_step: None: the run starts anew, under new ids.
    """

    def __init__(self, folder: Path, wish: Wish, resumed_step: int | None = None):
        self._path = folder / STATE
        self._couriers: dict[str, Courier] = {}
        self._handed: dict[tuple[str, str], int] = {}
        self._folder, self._wish, self._resumed_step = folder, wish, resumed_step
        self._entries = {} if resumed_step is None else self._read()

    def open(self, kept: Sequence[Event], logged: Mapping[str, int]) -> list[str]:
        """Start them, and send what they miss of the events so far; messages for a person.

        Args:
            kept: events of the run up to the step that it is resumed from.
            logged: the highest step by kind that an earlier session logged, taken back since or not.

        Raises:
            RunError: one cannot be started. On a resume it is dropped instead.
        """
        messages = []
        for name, entry in self._entries.items():
            self._take_up(entry, logged)
            entry.is_behind = entry.is_behind or name not in self._wish.names
        for name in self._wish.names:
            try:
                messages += self._open(name, kept)
            except CourierError as error:
                if self._resumed_step is None:
                    raise RunError(
                        MACHINE,
                        f"report_to names {name}, which does not start: {error}; set it up, or take it out",
                    ) from error
                messages.append(self._drop(name, error))
        if self._entries:
            self._write()
        return messages

    def log(self, event: Event) -> list[str]:
        """Hand an event on; messages about trackers that are dropped."""
        values = to_values(event) if self._couriers else {}
        return [said for name in list(self._couriers) if (said := self._send(name, event, values))]

    def close(self) -> list[str]:
        """Wait for what is under way, not for ever; messages about trackers that did not get it all."""
        messages = []
        for name, courier in list(self._couriers.items()):
            try:
                courier.close()
            except CourierError as error:
                messages.append(self._drop(name, error))
        self._couriers = {}
        return messages

    def _open(self, name: str, kept: Sequence[Event]) -> list[str]:
        entry = self._entries.get(name)
        wish = self._wish
        target = Target(
            self._folder, wish.project, wish.run_name, wish.config, entry and entry.id, self._resumed_step
        )
        courier = Courier(name)
        # The other ranks wait meanwhile, and not for ever.
        found = courier.start(lambda: OPENERS[name](target), min(_START_SECONDS, find_timeout() / 2))
        entry = self._entries[name] = entry or _Entry(found.id)
        entry.id, entry.is_behind = found.id, False
        if found.sent is not None:
            entry.train, entry.eval = found.sent.get("train", 0), found.sent.get("eval", -1)
        self._couriers[name] = courier
        for event in keep_later(kept):
            if said := self._send(name, event, to_values(event)):
                return [said]
        last = max(entry.train, entry.eval)
        if self._resumed_step is not None and last > self._resumed_step:
            return [f"{name} has the steps up to {last:,} already; they are not sent again"]
        return []

    def _send(self, name: str, event: Event, values: Mapping[str, float]) -> str | None:
        entry, kind, step = self._entries[name], event["kind"], event["step"]
        if not values or step <= max(getattr(entry, kind), self._handed.get((name, kind), -1)):
            return None
        try:
            self._couriers[name].send(values, step)
        except CourierError as error:
            return self._drop(name, error)
        self._handed[name, kind] = step
        return None

    def _drop(self, name: str, error: CourierError) -> str:
        courier = self._couriers.pop(name, None)
        entry = self._entries.get(name)
        if entry is not None:
            entry.is_behind = True
            for kind, step in (courier.sent if courier else {}).items():
                setattr(entry, kind, max(getattr(entry, kind), step))
        self._write()
        return show(
            f"{name} is left out from here: {error}. metrics.jsonl has everything; a resume sends the rest"
        )

    def _take_up(self, entry: _Entry, logged: Mapping[str, int]) -> None:
        if not entry.is_behind:
            entry.train = max(entry.train, logged.get("train", 0))
            entry.eval = max(entry.eval, logged.get("eval", -1))

    def _read(self) -> dict[str, _Entry]:
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            return {name: _Entry(**values) for name, values in found.items() if name in OPENERS}
        except FileNotFoundError:
            return {}
        except (ValueError, TypeError, AttributeError) as error:
            raise RunError(
                MACHINE, f"{self._path} cannot be read ({error}): remove it, and trackers start new runs"
            ) from error

    def _write(self) -> None:
        draft = self._path.with_suffix(".partial")
        text = json.dumps({name: asdict(entry) for name, entry in self._entries.items()}, indent=1)
        draft.write_text(text + "\n", encoding="utf-8")
        draft.replace(self._path)
