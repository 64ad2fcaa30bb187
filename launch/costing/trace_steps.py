"""A training step on the meta device: what would live in memory at each operation, on a card or a CPU.

The model is ours; its tensors have a shape and no storage. With real tensors the same gives what they take.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint
from transformers import CONFIG_MAPPING, AutoModelForMaskedLM

from launch.costing.trace_autocast import DeviceRules
from launch.costing.trace_storages import Answers, StorageTracker
from modeling import attention, general, heads, hf
from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM
from modeling.encoding import DebertaEncoding
from modeling.pair import list_parts
from modeling.rtd import DebertaDiscriminator, RtdModel

_DEFAULT_CLASSES = 256
_CANINE_PADDING = 6
"""Slots behind the characters of a row that is as long as they ask for."""


@dataclass(frozen=True)
class Request:
    """What to trace; the fields of `launch.costing.trace_cache.Shape`, a precision and a kernel."""

    sizes: Mapping[str, Any]
    row_length: int
    num_targets: int
    discriminator: Mapping[str, Any] | None
    device: str
    precision: str
    kernel: str


@dataclass(frozen=True)
class Step:
    """A step that was traced: live bytes [kinds, operations] and where each phase begins."""

    sizes: np.ndarray
    marks: tuple[tuple[str, int], ...]
    num_kept: int
    """Bytes that the backward wants, at the end of the forward."""

    def phase(self, name: str) -> np.ndarray:
        """Bytes [kinds, operations] of one phase."""
        names = [mark for mark, _ in self.marks]
        number = names.index(name)
        stop = self.marks[number + 1][1] if number + 1 < len(names) else self.sizes.shape[1] - 1
        return self.sizes[:, self.marks[number][1] + 1 : stop + 1]


def build_model(request: Request, depths: tuple[int | None, ...], device: str = "meta") -> nn.Module:
    """Our model with so many layers, for a pair of generator and discriminator; None: its own number."""
    with torch.device(device):
        model: Any = _build_part(request.sizes, depths[0])
        if request.discriminator is not None:
            judge = DebertaDiscriminator(_read_config(request.discriminator, depths[1]))
            model = RtdModel(model, judge, special_pieces=[0], num_pieces=model.config.vocab_size)
    for part in list_parts(model):
        if isinstance(part, DebertaForMaskedLM | CanineForMaskedLM):
            part.sparse_last_layer = True
        if isinstance(part, DebertaEncoding):
            # What the package of `flash` keeps is not known; it is no more than the fused attention does.
            part.set_attention("eager" if request.kernel == "eager" else "fast")
    return model.train()


def _build_part(sizes: Mapping[str, Any], depth: int | None) -> Any:
    config = _read_config(sizes, depth)
    if config.model_type == "deberta-v2":
        return DebertaForMaskedLM(config)
    if config.model_type == "canine":
        classes = getattr(config, "head_code_points", None) or range(
            getattr(config, "num_classes", _DEFAULT_CLASSES)
        )
        return CanineForMaskedLM(config, list(classes))
    return general.adapt(AutoModelForMaskedLM.from_config(config))


def _read_config(sizes: Mapping[str, Any], depth: int | None) -> Any:
    values = dict(sizes)
    if values["model_type"] == "deberta-v2" and "position_biased_input" not in values:
        values = {**hf.DEBERTA_V3_STYLE, **values}
    if depth is not None:
        values["num_hidden_layers"] = depth
    return CONFIG_MAPPING[values.pop("model_type")](**values)


def list_stacks(model: nn.Module) -> list[list[nn.Module]]:
    """The layers that are alike, of each part."""
    stacks = []
    for part in list_parts(model):
        base = part.base_model
        layers = base.encoder.layer if hasattr(base, "encoder") else base.layers
        stacks.append(list(layers))
    return stacks


def make_batch(request: Request, model: Any, num_rows: int, device: str = "meta") -> dict[str, torch.Tensor]:
    """Rows as the feed gives them, each with as many targets; documents share rows where a model can."""
    shape = (num_rows, request.row_length)
    names = ["input_ids", "attention_mask", "labels"]
    first = next(iter(list_parts(model)))
    if isinstance(first, DebertaEncoding):
        config = first.config
        is_packed = not config.position_biased_input and not getattr(config, "conv_kernel_size", 0)
    else:
        is_packed = not isinstance(first, CanineForMaskedLM) and general.find_packing_obstacle(first) is None
    names += ["document_ids"] if is_packed else []
    batch = {name: torch.ones(shape, dtype=torch.long, device=device) for name in names}
    if device != "meta":
        num_used = request.row_length
        if isinstance(first, CanineForMaskedLM):
            num_used -= _CANINE_PADDING
        batch["attention_mask"][:, num_used:] = 0
        batch["labels"][:, : num_used - request.num_targets] = -100
        batch["labels"][:, num_used:] = -100
    return batch


def trace_step(
    model: Any,
    request: Request,
    num_rows: int,
    *,
    autocast: torch.dtype | None = None,
    checkpointing: bool = False,
    num_chunks: int = 1,
) -> Step:
    """One micro-batch, forward and backward, of a model on the meta device.

    The model keeps its checkpointing once that was asked for. The targets are to be a multiple of
    `num_chunks`, chunks of the loss.
    """
    num_targets, num_slots = num_rows * request.num_targets, num_rows * request.row_length
    answers = Answers(num_targets, request.num_targets, num_slots)
    tracker = StorageTracker(model, num_targets // num_chunks * count_classes(model), answers)
    rules = DeviceRules(
        autocast, device=request.device, report_cast=lambda copy: tracker.classify(copy, "casts")
    )
    if checkpointing:
        # Its context for the second forward: autocast again, with copies of weights of its own.
        options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), rules.again())}
        for part in list_parts(model):
            part.activation_checkpointing_enable(options)
    if isinstance(model, CanineForMaskedLM):
        # It reads the lengths of rows off the batch.
        vars(model)["_inspect"] = lambda *_: (request.row_length, False)
    model.loss_chunk = num_targets // num_chunks if num_chunks > 1 else None
    batch = make_batch(request, model, num_rows)
    hooks = mark_layers(model, tracker)
    with stand_in(request, rules), rules, tracker:
        tracker.note(batch.values())
        tracker.mark("start")
        with rules.autocast(), saved_tensors_hooks(tracker.keep, lambda tensor: tensor):
            output = model(**batch)
        loss = output.loss_sum
        if request.discriminator is not None:
            loss = loss + output.discriminator_loss_sum
        del output
        tracker.mark("loss")
        num_kept = tracker.count_kept()
        loss.backward()
    for hook in hooks:
        hook.remove()
    tracker.close()
    return Step(tracker.draw(), tuple(tracker.marks), num_kept)


@contextmanager
def stand_in(request: Request, rules: DeviceRules) -> Iterator[None]:
    """While it lasts, our models take the meta device for that of the request."""

    def ask_rules(kind: str | None = None) -> bool:
        return rules.is_autocast if kind == "meta" else is_enabled(*([kind] if kind else []))

    def ask_dtype(kind: str) -> torch.dtype | None:
        return rules.dtype if kind == "meta" else get_dtype(kind)

    is_enabled, get_dtype = torch.is_autocast_enabled, torch.get_autocast_dtype
    again = partial(checkpoint, context_fn=lambda: (nullcontext(), rules.again()))
    replaced = [
        (attention, "OPERATOR_DEVICES", ("cpu", "meta") if request.device == "cpu" else ()),
        (heads, "checkpoint", again),
        (torch, "is_autocast_enabled", ask_rules),
        (torch, "get_autocast_dtype", ask_dtype),
    ]
    before = [getattr(module, name) for module, name, _ in replaced]
    for module, name, value in replaced:
        setattr(module, name, value)
    try:
        yield
    finally:
        for (module, name, _), value in zip(replaced, before, strict=True):
            setattr(module, name, value)


def count_classes(model: Any) -> int:
    """Classes of the head."""
    first = next(iter(list_parts(model)))
    if isinstance(first, CanineForMaskedLM):
        return first.head.decoder.out_features
    return first.config.vocab_size


def mark_layers(model: nn.Module, tracker: StorageTracker) -> list[Any]:
    """Marks where each layer begins and the last one ends, in the forward and in the backward; the hooks."""
    return [
        handle
        for stack, layers in enumerate(list_stacks(model))
        for number, layer in enumerate(layers)
        for handle in _mark_layer(layer, f"{stack} {number}", number == len(layers) - 1, tracker)
    ]


def _mark_layer(layer: nn.Module, name: str, is_last: bool, tracker: StorageTracker) -> list[Any]:
    stack, number = name.split()

    def begin(module: nn.Module, args: tuple[Any, ...]) -> None:
        tracker.mark(f"forward {name}")
        if number == "0" and args and args[0].requires_grad:
            args[0].register_hook(lambda _: tracker.mark(f"below {stack}"))

    def end(module: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if is_last:
            tracker.mark(f"after {stack}")
        hidden = output[0] if isinstance(output, tuple) else output
        hidden.register_hook(lambda _: tracker.mark(f"backward {name}"))

    return [layer.register_forward_pre_hook(begin), layer.register_forward_hook(end)]
