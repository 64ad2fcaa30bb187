"""Storages of a step: when each is born and dies, and what it is for. Meta tensors have them too."""

import weakref
from collections.abc import Iterable
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

KINDS = ("activations", "casts", "logits", "temporaries", "gradients")
"""`activations` are kept for the backward, `casts` are half copies of weights, `logits` have one number for
each target and class, `gradients` are those that parameters have got so far."""


class StorageTracker(TorchDispatchMode):
    """Counts operations, and at which of them storages are born and die.

    Gradients of parameters are taken away as soon as they are there, and counted apart: what remains is the
    same whether they then go into a sum, a bucket or nowhere.
    """

    def __init__(self, model: nn.Module, num_logits: int, answers: "Answers"):
        super().__init__()
        self.num_logits, self.answers = num_logits, answers
        self.num_events = 0
        self.marks: list[tuple[str, int]] = []
        self._lives: list[list[Any]] = []
        self._rows: dict[int, int] = {}
        self._watches: dict[int, weakref.ref[Any]] = {}
        self._gradients: list[tuple[int, int]] = []
        self._hooks = [
            parameter.register_post_accumulate_grad_hook(self._take_gradient)
            for parameter in model.parameters()
            if parameter.requires_grad
        ]
        self._static = [t.untyped_storage() for t in (*model.parameters(), *model.buffers())]
        self._ignored = {storage._cdata for storage in self._static}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = self.answers.run(func, args, kwargs or {})
        self.num_events += 1
        self.note(tree_leaves(result))
        return result

    def note(self, tensors: Iterable[Any]) -> None:
        """Take up the storages of tensors that are new."""
        for tensor in tensors:
            if not isinstance(tensor, Tensor):
                continue
            storage = tensor.untyped_storage()
            key = storage._cdata
            if key in self._ignored or key in self._rows:
                continue
            row = len(self._lives)
            is_logits = tensor.numel() == self.num_logits
            self._lives.append(
                [self.num_events, -1, storage.nbytes(), "logits" if is_logits else "temporaries"]
            )
            self._rows[key] = row
            self._watches[key] = weakref.ref(storage, partial(self._end, key, row))

    def _end(self, key: int, row: int, _: Any) -> None:
        self._lives[row][1] = self.num_events
        del self._rows[key], self._watches[key]

    def mark(self, name: str) -> None:
        """A phase begins."""
        self.marks.append((name, self.num_events))

    def classify(self, tensor: Tensor, kind: str) -> None:
        """Say what a storage is for, unless that is known."""
        row = self._rows.get(tensor.untyped_storage()._cdata)
        if row is not None and self._lives[row][3] == "temporaries":
            self._lives[row][3] = kind

    def keep(self, tensor: Tensor) -> Tensor:
        """For `saved_tensors_hooks`: what is kept for the backward."""
        self.classify(tensor, "activations")
        return tensor

    def count_kept(self) -> int:
        """Bytes that live now because the backward wants them, logits included and casts left out."""
        return sum(life[2] for life in self._lives if life[1] < 0 and life[3] in ("activations", "logits"))

    def _take_gradient(self, parameter: Tensor) -> None:
        assert parameter.grad is not None
        self._gradients.append((self.num_events, parameter.grad.numel() * parameter.grad.element_size()))
        parameter.grad = None

    def close(self) -> None:
        """Take the hooks off the model."""
        for hook in self._hooks:
            hook.remove()

    def draw(self) -> np.ndarray:
        """Live bytes of each of `KINDS` after each operation: int64 [kinds, operations + 1]."""
        changes = np.zeros((len(KINDS), self.num_events + 2), np.int64)
        for birth, death, num_bytes, kind in self._lives:
            row = KINDS.index(kind)
            changes[row, birth] += num_bytes
            # What dies while operation n returns lives on through n.
            changes[row, (self.num_events if death < 0 else death) + 1] -= num_bytes
        for event, num_bytes in self._gradients:
            changes[KINDS.index("gradients"), event + 1] += num_bytes
        return changes.cumsum(1)[:, :-1]


class Answers:
    """Runs operations whose result depends on data, which tensors without storage have not.

    Attributes:
        num_targets: of the batch.
        num_row_targets: of the row that has most.
        num_judged: slots that a discriminator judges.
    """

    def __init__(self, num_targets: int, num_row_targets: int, num_judged: int):
        self.num_targets, self.num_row_targets, self.num_judged = num_targets, num_row_targets, num_judged

    def run(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The operation, or its answer where the tensors are on the meta device."""
        given = next((a for a in args if isinstance(a, Tensor)), None)
        if given is None or given.device.type != "meta":
            return func(*args, **kwargs)
        aten = torch.ops.aten
        if func is aten.nonzero.default:
            return torch.empty(self.num_targets, given.dim(), dtype=torch.long, device="meta")
        if func is aten._local_scalar_dense.default:
            return self.num_row_targets
        if func is aten.index.Tensor and args[1][0] is not None and args[1][0].dtype == torch.bool:
            return torch.empty(self.num_judged, dtype=given.dtype, device="meta")
        return func(*args, **kwargs)
