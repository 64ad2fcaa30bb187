"""The universal form of a training state: of each parameter, by its name, what AdamW keeps of it in fp32.

It is the same whatever wrote a checkpoint, so that another number of processes or another sharding can go on
from it. Nothing is converted on disk: the files stay mapped, and a parameter is put together when it is
asked for.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from modeling import hf

KEYS = ("exp_avg", "exp_avg_sq")
"""What AdamW keeps of a parameter beside the count of its steps."""


class UniversalError(ValueError):
    """A state cannot be taken over into another world, in words."""


@dataclass(frozen=True)
class Part:
    """A parameter's training state, in fp32 and whole.

    Attributes:
        weight: in its shape.
        moments: by `KEYS`; none if the optimizer has never updated it.
        step: how often it has.
    """

    weight: Tensor
    moments: Mapping[str, Tensor]
    step: float = 0.0


@dataclass(frozen=True)
class LossScale:
    """The loss scale of fp16, and for how many steps it has held."""

    value: float
    num_steps: int


class TrainingState(Protocol):
    """A training state by parameter name."""

    @property
    def shapes(self) -> Mapping[str, Sequence[int]]:
        """The shapes of all parameters that are trained."""
        ...

    @property
    def loss_scale(self) -> LossScale | None:
        """That of fp16; None with another precision."""
        ...

    def read(self, name: str) -> Part:
        """A parameter's state."""
        ...


def list_trained(model: nn.Module) -> list[str]:
    """The names of the parameters that are trained, in the order of the optimizer's groups: decayed first."""
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = ([n for n, p in trained if hf.decays(n, p) is decayed] for decayed in (True, False))
    return [name for group in groups for name in group]


def name_parameters(optimizer: Any, model: nn.Module) -> list[str]:
    """The names of an optimizer's parameters in the order in which it numbers them; without ZeRO."""
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    return [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]


def find_shape(parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter; ZeRO-3 leaves an empty tensor in its place and the shape beside it."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def find_misfit(state: TrainingState, model: nn.Module) -> str | None:
    """What of a state does not fit a model, in words; None: all of it does, by name and shape."""
    wanted = {name: find_shape(p) for name, p in model.named_parameters() if p.requires_grad}
    missing, unknown = sorted(wanted.keys() - state.shapes.keys()), sorted(state.shapes.keys() - wanted)
    if missing or unknown:
        return f"missing {missing[:5]}, unknown {unknown[:5]}"
    for name, shape in wanted.items():
        if tuple(state.shapes[name]) != shape:
            return f"{name} has the shape {tuple(state.shapes[name])}, not {shape}"
    return None


class PlainState:
    """The state that one process or DDP has written: whole weights, and AdamW's state by number.

    Args:
        weights: of the model, by any of the names that a tied one has.
        saved: the content of optimizer.pt. Where it has no `names` it was written by an older version, which
            numbered parameters as `list_trained` does.
        model: of the job that takes it over.

    Raises:
        UniversalError: it is that of another model.
    """

    def __init__(self, weights: Mapping[str, Tensor], saved: Mapping[str, Any], model: nn.Module) -> None:
        names = saved.get("names") or list_trained(model)
        groups = saved["optimizer"]["param_groups"]
        numbers = [number for group in groups for number in group["params"]]
        if len(names) != len(numbers):
            raise UniversalError(f"its optimizer has {len(numbers)} parameters, the model {len(names)}")
        states = saved["optimizer"]["state"]
        self._states = {name: states.get(number, {}) for name, number in zip(names, numbers, strict=True)}
        self._weights = {name: weights[alias] for name, alias in _find_aliases(names, weights, model).items()}
        self.shapes = {name: tuple(weight.shape) for name, weight in self._weights.items()}
        for name, state in self._states.items():
            odd = [key for key in KEYS if key in state and tuple(state[key].shape) != self.shapes[name]]
            if odd:
                raise UniversalError(f"{odd[0]} of {name} has another shape than its weight")
        self.loss_scale = _read_scaler(saved.get("scaler"))

    def read(self, name: str) -> Part:
        """A parameter's state."""
        state = self._states[name]
        moments = {key: state[key].float() for key in KEYS if key in state}
        return Part(self._weights[name].float(), moments, float(state.get("step", 0)))


def fill_optimizer(optimizer: Any, model: nn.Module, state: TrainingState) -> None:
    """Put a training state into AdamW, and the masters into the model; every rank has all of it."""
    parameters = dict(model.named_parameters())
    states: dict[int, dict[str, Tensor]] = {}
    for number, name in enumerate(name_parameters(optimizer, model)):
        part = state.read(name)
        parameters[name].data.copy_(part.weight)
        if part.moments:
            copies = {key: value.clone() for key, value in part.moments.items()}
            states[number] = {"step": torch.tensor(part.step), **copies}
    optimizer.load_state_dict({"state": states, "param_groups": optimizer.state_dict()["param_groups"]})


def _find_aliases(names: Sequence[str], weights: Mapping[str, Tensor], model: nn.Module) -> dict[str, str]:
    """Under which name each parameter's weight was written: a tied one is once, under any of its names."""
    known: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        known.setdefault(id(parameter), []).append(name)
    groups = {name: group for group in known.values() for name in group}
    found = {}
    for name in names:
        written = [alias for alias in (name, *groups.get(name, ())) if alias in weights]
        if not written:
            raise UniversalError(f"it has no weight {name}")
        found[name] = written[0]
    return found


def _read_scaler(saved: Mapping[str, Any] | None) -> LossScale | None:
    return LossScale(float(saved["scale"]), int(saved["_growth_tracker"])) if saved else None
