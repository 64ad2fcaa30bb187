"""The shards that DeepSpeed writes: one of each rank, from which parameters are put together by name.

ZeRO-1 and 2 lay the parameters of a group end to end and cut that into one partition a rank; a shard says by
name which part of its partition is whose. ZeRO-3 cuts every parameter into equal parts, the last ones padded;
a rank's parts lie end to end in the order of the parameters.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from launch.checkpoints.universal import KEYS, LossScale, Part, UniversalError
from modeling.trust import load_tensors


@dataclass(frozen=True)
class _Piece:
    """Where a piece of a parameter lies: in which flat tensor of which rank."""

    rank: int
    flat: int
    start: int
    numel: int


class ShardedState:
    """The state that DeepSpeed has written under ZeRO-1, 2 or 3, put together from the shards of all ranks.

    Args:
        shards: the content of the optimizer's files, by rank.
        shapes: of the parameters by group (ZeRO-3: by subgroup), in order.

    Raises:
        UniversalError: a part is missing, or in a form that is not known here.
    """

    def __init__(
        self, shards: Sequence[Mapping[str, Any]], shapes: Sequence[Mapping[str, Sequence[int]]]
    ) -> None:
        is_split = "fp32_flat_groups" in shards[0]
        self.shapes = {name: tuple(shape) for group in shapes for name, shape in group.items()}
        if is_split:
            self._pieces = _locate_split(shapes, len(shards))
        else:
            self._pieces = _locate_listed([shard["param_slice_mappings"] for shard in shards])
        for name, shape in self.shapes.items():
            found = sum(piece.numel for piece in self._pieces.get(name, ()))
            if found != math.prod(shape):
                raise UniversalError(f"its shards hold {found:,} of {math.prod(shape):,} numbers of {name}")
        self._flats = [_read_flats(shard, is_split=is_split) for shard in shards]
        for piece in (piece for pieces in self._pieces.values() for piece in pieces):
            if self._flats[piece.rank][piece.flat]["fp32"].numel() < piece.start + piece.numel:
                raise UniversalError(
                    "a shard is shorter than its parameters (a part may lie on a disk: nvme)"
                )
        self.loss_scale = _read_loss_scaler(shards[0])

    def read(self, name: str) -> Part:
        """A parameter's state."""
        pieces, shape = self._pieces[name], self.shapes[name]
        flats = [self._flats[piece.rank][piece.flat] for piece in pieces]
        steps = {float(flat.get("step", 0)) for flat in flats}
        if len(steps) != 1:
            raise UniversalError(f"the ranks have updated {name} {sorted(steps)} times")

        def join(key: str) -> Tensor:
            cut = [f[key][p.start : p.start + p.numel] for f, p in zip(flats, pieces, strict=True)]
            return torch.cat(cut).float().reshape(shape)

        moments = {key: join(key) for key in KEYS if all(key in flat for flat in flats)}
        return Part(join("fp32"), moments, steps.pop())


def _locate_listed(mappings: Sequence[Sequence[Mapping[str, Any]]]) -> dict[str, list[_Piece]]:
    """Where the parts of each parameter lie under ZeRO-1 and 2, as the shards say it, in order."""
    found: dict[str, list[_Piece]] = {}
    for rank, groups in enumerate(mappings):
        for group, addresses in enumerate(groups):
            for name, address in addresses.items():
                found.setdefault(name, []).append(_Piece(rank, group, address.start, address.numel))
    return found


def _locate_split(shapes: Sequence[Mapping[str, Sequence[int]]], num_ranks: int) -> dict[str, list[_Piece]]:
    """Where the parts of each parameter lie under ZeRO-3, in order."""
    found: dict[str, list[_Piece]] = {}
    for group, members in enumerate(shapes):
        start = 0
        for name, shape in members.items():
            numel = math.prod(shape)
            share = -(-numel // num_ranks)
            found[name] = [
                _Piece(rank, group, start, max(0, min(share, numel - rank * share)))
                for rank in range(num_ranks)
            ]
            start += share
    return found


def _read_flats(shard: Mapping[str, Any], *, is_split: bool) -> list[dict[str, Any]]:
    """Of each flat tensor of a rank the masters, and the optimizer's state if there is one."""
    weights = shard["fp32_flat_groups" if is_split else "single_partition_of_fp32_groups"]
    saved = shard["optimizer_state_dict" if is_split else "base_optimizer_state"]
    if not isinstance(saved, Mapping):
        raise UniversalError("it was written with elastic_checkpoint, which sorts the optimizer's state anew")
    numbers = [number for group in saved["param_groups"] for number in group["params"]]
    if len(numbers) != len(weights):
        raise UniversalError(f"a shard has masters of {len(weights)} groups and a state of {len(numbers)}")
    flats = []
    for number, weight in zip(numbers, weights, strict=True):
        state = saved["state"].get(number, {})
        # Masters are written without the padding at the end of a partition, moments with it.
        if any(key in state and state[key].numel() < weight.numel() for key in KEYS):
            raise UniversalError("a shard has moments of fewer numbers than masters")
        flats.append({"fp32": weight, **state})
    return flats


def _read_loss_scaler(shard: Mapping[str, Any]) -> LossScale | None:
    scaler = shard.get("loss_scaler")
    if not shard.get("dynamic_loss_scale") or scaler is None:
        return None
    return LossScale(float(scaler.cur_scale), int(scaler.cur_iter - scaler.last_overflow_iter - 1))


def read_shards(folder: Path, num_ranks: int) -> ShardedState:
    """The state in a folder that DeepSpeed has written, whose pickles were looked at before.

    Args:
        folder: with the files themselves.
        num_ranks: how many processes wrote it.

    Raises:
        UniversalError: files are missing or hold something else.
    """
    optimizers = sorted(folder.glob("*_optim_states.pt"), key=_find_rank)
    models = sorted(folder.glob("*_model_states.pt"), key=_find_rank)
    if [_find_rank(path) for path in optimizers] != list(range(num_ranks)) or not models:
        raise UniversalError(f"{len(optimizers)} shards of an optimizer are there, {num_ranks} were written")
    shards = [_load_shard(path)["optimizer_state_dict"] for path in optimizers]
    return ShardedState(shards, _load_shard(models[0])["param_shapes"])


def _find_rank(path: Path) -> int:
    """The rank in `[bf16_]zero_pp_rank_<rank>_mp_rank_00_...`; -1 of `mp_rank_00_...`, which is of all."""
    _, found, rest = path.name.partition("zero_pp_rank_")
    return int(rest.split("_")[0]) if found else -1


def _load_shard(path: Path) -> dict[str, Any]:
    from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
    from deepspeed.runtime.zero.config import ZeroStageEnum
    from deepspeed.utils.tensor_fragment import fragment_address

    allowed: list[Any] = [DynamicLossScaler, LossScaler, ZeroStageEnum, fragment_address]
    try:
        return load_tensors(path, allowed)
    except ValueError as error:
        raise UniversalError(str(error)) from error
