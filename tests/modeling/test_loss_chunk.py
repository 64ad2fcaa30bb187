"""The loss in chunks of targets: what it takes at once gives what it takes chunk by chunk."""

import math
import weakref
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd.graph import saved_tensors_hooks
from torch.utils._python_dispatch import TorchDispatchMode

from modeling.compiled import compile_model
from modeling.heads import IGNORED_LABEL, score_hidden
from tests.modeling import small_canines, small_models
from tests.modeling.test_general import build as build_general
from tests.modeling.test_general import make_batch as make_general_batch

WIDTH, NUM_CLASSES, NUM_TARGETS = 6, 50, 37
score: Any = score_hidden


def make_hidden(num_targets=NUM_TARGETS, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(num_targets, WIDTH, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(NUM_CLASSES, (num_targets,), generator=generator)
    torch.manual_seed(0)
    head = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.GELU(), nn.Linear(WIDTH, NUM_CLASSES)).to(dtype)
    return hidden, labels, head


def run(chunk, num_targets=NUM_TARGETS):
    """Sums and gradients."""
    hidden, labels, head = make_hidden(num_targets)
    output = score(hidden, labels, head, keep_logits=False, chunk=chunk)
    (output.loss_sum * 0.7 + output.loss).backward()
    sums = (output.loss_sum.detach(), output.num_targets, output.num_correct)
    return sums, [hidden.grad, *(parameter.grad for parameter in head.parameters())]


@pytest.mark.parametrize("num_targets", [NUM_TARGETS, 36, 1, 0])
@pytest.mark.parametrize("chunk", [1, 6, 36, NUM_TARGETS, 1000])
def test_sums_and_gradients_do_not_depend_on_the_chunk(chunk, num_targets):
    (loss_sum, count, hits), gradients = run(chunk, num_targets)
    hidden, labels, head = make_hidden(num_targets)
    losses = [-head(one).log_softmax(-1)[label] for one, label in zip(hidden, labels, strict=True)]
    wanted = sum(losses, start=hidden.sum() * 0 + sum(p.sum() for p in head.parameters()) * 0)
    (wanted * 0.7 + wanted / max(num_targets, 1)).backward()
    torch.testing.assert_close(loss_sum, wanted.detach(), rtol=1e-12, atol=0)
    assert count.item() == num_targets
    assert hits.item() == sum(
        int(head(one).argmax()) == int(label) for one, label in zip(hidden, labels, strict=True)
    )
    for own, other in zip(gradients, [hidden.grad, *(p.grad for p in head.parameters())], strict=True):
        torch.testing.assert_close(own, other, rtol=1e-10, atol=1e-13)


class LogitsWatch(TorchDispatchMode):
    """Counts the rows [NUM_CLASSES] that are alive, each storage once."""

    def __init__(self, row_counts):
        super().__init__()
        self.row_counts, self.alive, self.peak = row_counts, {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        for tensor in found if isinstance(found, tuple | list) else [found]:
            is_logits = isinstance(tensor, torch.Tensor) and tensor.is_floating_point() and tensor.dim() == 2
            if is_logits and tensor.shape[1] == NUM_CLASSES and tensor.shape[0] in self.row_counts:
                storage = tensor.untyped_storage()
                key = storage._cdata
                if key not in self.alive:
                    self.alive[key] = tensor.shape[0]
                    weakref.finalize(storage, self.alive.pop, key, None)
        self.peak = max(self.peak, sum(self.alive.values()))
        return found


def find_peak(chunk):
    hidden, labels, head = make_hidden()
    with LogitsWatch({8, NUM_TARGETS % 8, NUM_TARGETS}) as watch:
        score(hidden, labels, head, keep_logits=False, chunk=chunk).loss_sum.backward()
    return watch.peak


def test_no_more_logits_than_those_of_a_chunk_exist_forwards_or_backwards():
    """A chunk is there as logits, as their log softmax, and as the gradients of both."""
    assert find_peak(None) >= 2 * NUM_TARGETS
    assert find_peak(8) <= 4 * 8 < NUM_TARGETS


def count_saved_bytes(chunk):
    saved = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    hidden, labels, head = make_hidden()
    with saved_tensors_hooks(pack, lambda tensor: tensor):
        score(hidden, labels, head, keep_logits=False, chunk=chunk)
    return sum(saved.values())


def test_no_logits_are_saved_for_the_backward_pass():
    one_logits = NUM_TARGETS * NUM_CLASSES * 8
    assert count_saved_bytes(None) > one_logits
    assert count_saved_bytes(8) < one_logits / 5


def test_logits_of_all_targets_cannot_be_kept_in_chunks():
    hidden, labels, head = make_hidden()
    with pytest.raises(ValueError, match="the logits of 8 targets are to exist at a time"):
        score(hidden, labels, head, keep_logits=True, chunk=8)


def build_deberta(shape, sparse):
    make = small_models.make_packed_batch if shape == "v3" else small_models.make_batch
    return small_models.make_model(shape, kernel="fast", sparse=sparse), make()


def build_canine(sparse):
    return small_canines.make_model(sparse=sparse), small_canines.make_batch([19, 9, 30])


MODELS = {
    "deberta v3": lambda: build_deberta("v3", False),
    "deberta v3, sparse": lambda: build_deberta("v3", True),
    "deberta legacy": lambda: build_deberta("v3-legacy", False),
    "deberta legacy, sparse": lambda: build_deberta("v3-legacy", True),
    "canine": lambda: build_canine(False),
    "canine, sparse": lambda: build_canine(True),
    "bert": lambda: (build_general("bert"), make_general_batch()),
    "roberta": lambda: (build_general("roberta"), make_general_batch()),
    "modernbert": lambda: (build_general("modernbert"), make_general_batch()),
}


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("has_targets", [True, False])
def test_every_model_trains_the_same_in_chunks(name, has_targets):
    model, batch = MODELS[name]()
    model.train()
    if not has_targets:
        batch["labels"] = torch.full_like(batch["labels"], IGNORED_LABEL)
    num_targets = int((batch["labels"] != IGNORED_LABEL).sum())
    found = {}
    for chunk in (None, 7):
        model.loss_chunk = chunk
        model.zero_grad()
        output = model(**batch)
        output.loss_sum.backward()
        gradients = {n: p.grad for n, p in model.named_parameters() if p.requires_grad}
        found[chunk] = (output.loss_sum.detach(), output.num_correct, output.num_targets), gradients
        assert output.logits is None
    assert num_targets % 7 != 0 or not has_targets
    assert found[7][0][2].item() == num_targets
    assert found[7][0][1].item() == found[None][0][1].item()
    torch.testing.assert_close(found[7][0][0], found[None][0][0], rtol=1e-12, atol=0)
    for key, whole in found[None][1].items():
        assert whole is not None, key
        torch.testing.assert_close(found[7][1][key], whole, rtol=1e-8, atol=1e-11, msg=key)


@pytest.mark.parametrize("name", MODELS)
def test_in_eval_mode_the_sums_are_the_same_and_no_logits_are_kept(name):
    model, batch = MODELS[name]()
    with torch.no_grad():
        whole = model(**batch)
        model.loss_chunk = 7
        parts = model(**batch)
    assert whole.logits is not None
    assert parts.logits is None
    torch.testing.assert_close(parts.loss_sum, whole.loss_sum, rtol=1e-12, atol=0)
    assert parts.num_correct.item() == whole.num_correct.item()


@pytest.mark.parametrize("name", ["deberta v3, sparse", "deberta legacy", "canine", "modernbert"])
def test_under_bf16_autocast_the_head_is_computed_again_in_bf16(name):
    """In fp32 the second time, gradients would be those of other logits; bf16 gives 8 bits."""
    model, batch = MODELS[name]()
    model.float().train()
    losses, gradients, dtypes = [], [], []
    output_layer = next(m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear))
    for chunk in (None, 7):
        model.loss_chunk = chunk
        model.zero_grad()
        with ExitStack() as stack:
            hook = output_layer.register_forward_hook(lambda _, __, out: dtypes.append(out.dtype))
            stack.callback(hook.remove)
            with torch.autocast("cpu", torch.bfloat16):
                output = model(**batch)
            output.loss_sum.backward()
        assert output.loss_sum.dtype == torch.float32
        losses.append(output.loss_sum.item())
        grads = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
        gradients.append(torch.cat(grads).double())
    assert set(dtypes) == {torch.bfloat16}
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    # The gradient of the output matrix is summed over chunks in bf16 as it is over micro-batches.
    difference = (gradients[1] - gradients[0]).norm() / gradients[0].norm()
    assert difference < 0.02
    assert math.isfinite(difference)


@pytest.mark.parametrize("name", ["deberta v3, sparse", "canine, sparse"])
def test_one_graph_has_no_chunks(name):
    model, _ = MODELS[name]()
    model.loss_chunk = 7
    with pytest.raises(ValueError, match="loss_chunk is 7: a model in one graph"):
        compile_model(model)
