"""A snapshot of tensors in host memory that is used again: what a thread writes while training goes on."""

from collections.abc import Mapping
from dataclasses import is_dataclass
from typing import Any

import torch
from torch import Tensor

_Key = tuple[int, int, torch.Size, tuple[int, ...]]


class Snapshot:
    """A copy of a state; the next one goes into the same buffers.

    Tensors that share memory (tied weights) share it in the copy. Those of a GPU are copied into pinned
    buffers, all at once.
    """

    def __init__(self) -> None:
        self._buffers: dict[tuple[Any, ...], Tensor] = {}

    def reserve(self, state: Any) -> None:
        """Make the buffers for a state like this; any thread may, before the first `take`.

        Touching new memory takes longer than the copy.

        Raises:
            RuntimeError: there is not enough memory.
        """
        self._copy(state, (), {}, is_copied=False)

    def take(self, state: Any) -> Any:
        """A copy of a state, which is valid until the next one.

        Args:
            state: tensors, numbers and texts in dicts, lists, tuples and dataclasses.

        Raises:
            RuntimeError: there is not enough memory.
        """
        taken = self._copy(state, (), {}, is_copied=True)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        return taken

    def _copy(self, value: Any, path: tuple[Any, ...], known: dict[_Key, Tensor], *, is_copied: bool) -> Any:
        if isinstance(value, Tensor):
            return self._copy_tensor(value.detach(), path, known, is_copied=is_copied)
        if isinstance(value, Mapping):
            parts = value.items()
            return {key: self._copy(part, (*path, key), known, is_copied=is_copied) for key, part in parts}
        if is_dataclass(value) and not isinstance(value, type):
            return type(value)(**self._copy(vars(value), path, known, is_copied=is_copied))
        if isinstance(value, list | tuple):
            numbered = enumerate(value)
            return type(value)(
                self._copy(part, (*path, i), known, is_copied=is_copied) for i, part in numbered
            )
        return value

    def _copy_tensor(
        self, tensor: Tensor, path: tuple[Any, ...], known: dict[_Key, Tensor], *, is_copied: bool
    ) -> Tensor:
        key = (
            tensor.untyped_storage().data_ptr(),
            int(tensor.storage_offset()),
            tensor.shape,
            tensor.stride(),
        )
        if tensor.numel() and key in known:
            return known[key]
        buffer = self._buffers.get(path)
        if buffer is None or buffer.shape != tensor.shape or buffer.dtype != tensor.dtype:
            buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
            self._buffers[path] = buffer
            if not is_copied:
                buffer.zero_()
        if is_copied:
            buffer.copy_(tensor, non_blocking=True)
        known[key] = buffer
        return buffer


def count_bytes(state: Any) -> int:
    """The bytes of all tensors in a state; of those that share memory, once."""
    sizes: dict[tuple[int, int], int] = {}
    _measure(state, sizes)
    return sum(sizes.values())


def _measure(value: Any, sizes: dict[tuple[int, int], int]) -> None:
    if isinstance(value, Tensor):
        key = (value.untyped_storage().data_ptr(), int(value.storage_offset()))
        sizes[key] = max(sizes.get(key, 0), value.numel() * value.element_size())
        return
    value = vars(value) if is_dataclass(value) and not isinstance(value, type) else value
    parts = value.values() if isinstance(value, Mapping) else value
    for part in parts if isinstance(value, Mapping | list | tuple) else ():
        _measure(part, sizes)
