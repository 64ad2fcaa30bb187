"""The partitions of a DeepSpeed engine: where ZeRO keeps the masters and moments of each parameter.

Filled from a training state by name, and read back. What is used of DeepSpeed 0.19 beside its own functions
is where a parameter lies (`_hp_mapping` under ZeRO-1 and 2, `grad_position` under ZeRO-3) and the flat fp32
tensors of a rank.
"""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from launch.checkpoints.universal import KEYS, LossScale, Part, TrainingState, UniversalError, find_shape


@dataclass(frozen=True)
class _Place:
    """Where this rank's part of a parameter lies: its numbers from `first` are a flat's from `start`."""

    flat: int
    start: int
    first: int
    numel: int


def fill_partitions(engine: Any, model: nn.Module, state: TrainingState) -> None:
    """Put a training state into an engine: masters, moments, counts of steps and the weights themselves.

    All ranks call it, with a state that fits (`find_misfit`).

    Raises:
        UniversalError: parameters were updated unequally often; the engine cannot count them apart.
    """
    zero = engine.optimizer
    flats = list_flats(zero)
    moments = {key: [torch.zeros_like(flat) for flat in flats] for key in KEYS}
    counts: set[float] = set()  # of all parameters, so that every rank has the same
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if not parameter.requires_grad:
                continue
            part = state.read(name)
            if part.moments:
                counts.add(part.step)
            _set_weight(parameter, part.weight)
            place = _find_place(zero, parameter)
            if place is None:
                continue
            _copy(flats[place.flat], part.weight, place)
            for key, value in part.moments.items():
                _copy(moments[key][place.flat], value, place)
    if len(counts) > 1:
        raise UniversalError(f"its parameters were updated {sorted(counts)} times, ZeRO counts them as one")
    zero.optimizer.state.clear()
    for count in counts:
        _set_states(zero, flats, moments, count)
    _set_loss_scale(zero, state.loss_scale)
    if counts:
        _link(zero)
    if engine.zero_optimization_stage() == 3:
        zero.checkpoint_event_epilogue()  # small weights stay gathered


def set_fixed(model: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Set what is not trained: buffers and frozen parameters. All ranks call it."""
    for name, buffer in model.named_buffers():
        if name in weights:
            buffer.copy_(weights[name])
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad and name in weights:
            _set_weight(parameter, weights[name])


def list_flats(zero: Any) -> list[Tensor]:
    """The flat fp32 tensors of this rank, of a ZeRO optimizer of any stage."""
    names = ("fp32_partitioned_groups_flat", "single_partition_of_fp32_groups", "fp32_groups_flat_partition")
    return list(next(getattr(zero, name) for name in names if hasattr(zero, name)))


def find_steps(zero: Any) -> set[float]:
    """How often this rank's flat tensors were updated, by the optimizer's count."""
    return {float(state["step"]) for state in zero.optimizer.state.values() if "step" in state}


def gather_masters(model: nn.Module, *, is_kept: bool) -> dict[str, Tensor]:
    """The fp32 masters of the parameters that are trained, by each of their names, in host memory.

    All ranks call it; those that do not keep them get nothing.
    """
    from deepspeed.utils import safe_get_full_fp32_param

    found: dict[int, Tensor] = {}
    for parameter in model.parameters():
        master = safe_get_full_fp32_param(parameter)
        if is_kept and master is not None:
            found[id(parameter)] = master.detach().float().to("cpu", copy=True)
    named = model.named_parameters(remove_duplicate=False)
    return {name: found[id(parameter)] for name, parameter in named if id(parameter) in found}


def find_difference(engine: Any, model: nn.Module, state: TrainingState) -> str | None:
    """What an engine has otherwise than a state, in words, read back by DeepSpeed's own functions.

    All ranks call it. None: all is equal, to the bit.
    """
    steps = find_steps(engine.optimizer)
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        wanted, found = state.read(name), read_part(engine, parameter, has_moments=bool(steps))
        if not torch.equal(found.weight.cpu(), wanted.weight):
            return f"the weight {name}"
        for key, value in found.moments.items():
            if not torch.equal(value.cpu(), wanted.moments.get(key, torch.zeros(()).expand_as(value))):
                return f"{key} of {name}"
        if wanted.moments and steps != {wanted.step}:
            return f"the number of updates ({sorted(steps)}, not {wanted.step:g})"
    return None


def read_part(engine: Any, parameter: nn.Parameter, *, has_moments: bool = True) -> Part:
    """A parameter's whole state as the engine has it; all ranks call it."""
    from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

    zero = engine.optimizer
    if has_moments:
        _link(zero)
    weight = safe_get_full_fp32_param(parameter)
    keys = KEYS if has_moments else ()
    moments = {key: safe_get_full_optimizer_state(parameter, key) for key in keys}
    shape = find_shape(parameter)
    assert weight is not None
    return Part(
        weight.reshape(shape),
        {key: value.reshape(shape) for key, value in moments.items() if value is not None},
        next(iter(find_steps(zero)), 0.0),
    )


def _link(zero: Any) -> None:
    """Let ZeRO-1 and 2 look at the moments that are there now.

    They do it by themselves in their first step, when only the first group of parameters has any: those of
    the others cannot be read afterwards (0.19.8).
    """
    if hasattr(zero, "_hp_optimizer_states_linked"):
        zero._hp_optimizer_states_linked = False
        zero._lazy_init_hp_params_optimizer_state()


def _find_place(zero: Any, parameter: Any) -> _Place | None:
    """Where this rank's part of a parameter lies; None: it has none."""
    if hasattr(parameter, "ds_id"):
        flat, start, share = zero.grad_position[zero.get_param_id(parameter)]
        first = share * torch.distributed.get_rank(zero.dp_process_group)
        numel = max(0, min(share, parameter.ds_numel - first))
        return _Place(flat, start, first, numel) if numel else None
    mapping = parameter._hp_mapping
    if mapping is None:
        return None
    high, low = mapping.hp_fragment_address, mapping.lp_fragment_address
    return _Place(mapping.param_group_index, high.start, low.start, high.numel)


def _copy(flat: Tensor, value: Tensor, place: _Place) -> None:
    source = value.reshape(-1)[place.first : place.first + place.numel]
    flat.data[place.start : place.start + place.numel].copy_(source)


def _set_weight(parameter: Any, weight: Tensor) -> None:
    """The weight that is computed with; under ZeRO-3 rank 0 sends the others their parts."""
    if not hasattr(parameter, "ds_id"):
        parameter.data.copy_(weight)
        return
    with _gathered(parameter):
        if torch.distributed.get_rank() == 0:
            parameter.data.copy_(weight)


def _gathered(parameter: Any) -> Any:
    from deepspeed.runtime.zero import GatheredParameters

    return GatheredParameters([parameter], modifier_rank=0) if parameter.ds_numel else nullcontext()


def _set_states(zero: Any, flats: list[Tensor], moments: dict[str, list[Tensor]], num_updates: float) -> None:
    """Give the optimizer inside the state that it would have after as many updates."""
    defaults = zero.optimizer.defaults
    is_on_device = defaults.get("fused") or defaults.get("capturable")
    for number, flat in enumerate(flats):
        count = torch.tensor(num_updates, dtype=torch.float32, device=flat.device if is_on_device else "cpu")
        values = {key: of_flats[number] for key, of_flats in moments.items()}
        zero.optimizer.state[flat] = {"step": count, **values}


def _set_loss_scale(zero: Any, scale: LossScale | None) -> None:
    scaler: Any = getattr(zero, "loss_scaler", None)
    if scale is None or not getattr(scaler, "dynamic", False):
        return
    scaler.cur_scale = scale.value
    scaler.last_overflow_iter, scaler.cur_iter = -1, scale.num_steps % scaler.scale_window
