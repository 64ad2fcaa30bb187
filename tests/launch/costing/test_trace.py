import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.profiler import ProfilerActivity, profile

from launch.costing import memory, trace_autocast
from launch.costing.sizes import HUB_MODELS
from launch.costing.trace import MismatchError, answer, draw_lines, list_depths
from launch.costing.trace_autocast import DeviceRules
from launch.costing.trace_steps import Request, build_model, list_stacks, make_batch, trace_step
from launch.costing.trace_storages import KINDS, Answers, StorageTracker
from modeling import hf
from modeling.pair import list_parts

DEBERTA = {
    **hf.DEBERTA_V3_STYLE,
    "model_type": "deberta-v2",
    "vocab_size": 600,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "max_position_embeddings": 64,
    "position_buckets": 16,
}
CANINE = {
    "model_type": "canine",
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "num_hash_buckets": 50,
    "max_position_embeddings": 256,
    "num_classes": 40,
}
BERT = {
    "model_type": "bert",
    "vocab_size": 600,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_hidden_layers": 6,
    "max_position_embeddings": 64,
}
MODELS = {"deberta": (DEBERTA, 48, 7), "canine": (CANINE, 40, 5), "bert": (BERT, 48, 7)}
DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def request_of(name, *, precision="fp32", kernel="fast", device="cpu", discriminator=None, dropout=0.1):
    sizes, row_length, num_targets = MODELS[name]
    rates = {"hidden_dropout_prob": dropout, "attention_probs_dropout_prob": dropout}
    judge = None if discriminator is None else {**sizes, **rates, "num_hidden_layers": discriminator}
    return Request({**sizes, **rates}, row_length, num_targets, judge, device, precision, kernel)


def build_real(request):
    model = build_model(request, list_depths(request), device="cpu")
    return model.to(DTYPES[request.precision])


def trace_lines(request, *, dtype=torch.float32, num_rows=(2, 4), **options):
    depths = list_depths(request)
    few = tuple(min(depth, 3) for depth in depths)
    chosen = [few] + [
        tuple(size + (stack == number) for stack, size in enumerate(few))
        for number, depth in enumerate(depths)
        if depth > 3
    ]
    models = [build_model(request, sizes).to(dtype) for sizes in chosen]
    steps = [[trace_step(model, request, rows, **options) for rows in num_rows] for model in models]
    return draw_lines(steps, depths, num_rows), steps


def measure_saved(model, batch, checkpointing):
    """Bytes of all storages that torch keeps for the backward, but weights; no part of the tracer."""
    if checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def pack(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage
        return tensor.detach()

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = model(**batch)
    assert torch.isfinite(output.loss_sum)
    return sum(storage.nbytes() for address, storage in kept.items() if address not in weights)


def measure_peak(model, batch, tmp_path, *, is_pair=False):
    """The most that torch's allocator had given out within a step, as its own profiler tells."""

    def run():
        output = model(**batch)
        loss = output.loss_sum + (output.discriminator_loss_sum if is_pair else 0)
        del output
        loss.backward()
        model.zero_grad()

    run()
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    path = tmp_path / "profile.json"
    profiler.export_chrome_trace(str(path))
    events = [e for e in json.loads(path.read_text())["traceEvents"] if e.get("name") == "[memory]"]
    sizes = [event["args"]["Bytes"] for event in sorted(events, key=lambda event: event["ts"])]
    return int(np.cumsum(sizes).max())


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize(("name", "kernel"), [("deberta", "eager"), ("deberta", "fast"), ("canine", "fast")])
def test_what_six_real_layers_keep_for_the_backward_is_what_three_and_four_traced_ones_say(
    name, kernel, precision, checkpointing
):
    request = request_of(name, precision=precision, kernel=kernel)
    model = build_real(request)
    measured = measure_saved(model, make_batch(request, model, 5, "cpu"), checkpointing)
    dtype = DTYPES[precision]
    _, steps = trace_lines(request, checkpointing=checkpointing, dtype=dtype)
    three, four = (few.num_kept + (more.num_kept - few.num_kept) / 2 * 3 for few, more in steps)
    assert three + 3 * (four - three) == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "kernel", "discriminator"),
    [
        ("deberta", "eager", None),
        ("deberta", "fast", None),
        ("canine", "fast", None),
        ("bert", "fast", None),
        pytest.param("deberta", "fast", 5, marks=pytest.mark.slow),
    ],
)
def test_the_peak_of_a_real_step_is_what_few_traced_layers_say(
    name, kernel, discriminator, checkpointing, tmp_path
):
    request = request_of(name, kernel=kernel, discriminator=discriminator)
    model = build_real(request)
    if checkpointing:
        for part in list_parts(model):
            part.activation_checkpointing_enable({"use_reentrant": False})
    num_rows = 16
    batch = make_batch(request, model, num_rows, "cpu")
    measured = measure_peak(model, batch, tmp_path, is_pair=discriminator is not None)
    lines, _ = trace_lines(request, checkpointing=checkpointing)
    given = sum(tensor.nbytes for tensor in batch.values())
    predicted = evaluate(lines, num_rows).sum(1).max() - given
    # Within a CPU's kernels there is some memory that no operation shows, the more of the peak the less is
    # kept.
    assert predicted == pytest.approx(measured, rel=0.01 if checkpointing else 0.001)


@pytest.mark.parametrize(("name", "chunk"), [("deberta", 10), ("canine", 16)])
def test_the_peak_with_a_loss_in_chunks_is_what_three_traced_chunks_say(name, chunk, tmp_path):
    # Many classes, so that logits and sums of the gradients of their weights are what counts.
    request = request_of(name)
    request = replace(request, sizes={**request.sizes, "vocab_size": 4000, "num_classes": 4000})
    model = build_real(request)
    num_rows = 12
    batch = make_batch(request, model, num_rows, "cpu")
    whole = measure_peak(model, batch, tmp_path)
    model.loss_chunk = chunk
    measured = measure_peak(model, batch, tmp_path)
    lines, _ = trace_lines(request, num_rows=(3, 6), num_chunks=3)
    moments = evaluate(lines, num_rows)
    moments[:, KINDS.index("logits")] *= chunk * 3 / (request.num_targets * num_rows)
    predicted = moments.sum(1).max() - sum(tensor.nbytes for tensor in batch.values())
    assert predicted == pytest.approx(measured, rel=0.01)
    assert abs(measured - whole) > 0.01 * whole  # CANINE, at these sizes, needs more for its chunks


def evaluate(lines, num_rows):
    return lines[:, :, 0] + lines[:, :, 1] * num_rows


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("name", "kernel", "autocast", "discriminator"),
    [
        ("deberta", "fast", torch.float16, None),
        ("deberta", "eager", torch.bfloat16, None),
        ("canine", "fast", torch.bfloat16, None),
        ("bert", "fast", torch.float16, None),
        pytest.param("deberta", "fast", torch.float16, 5, marks=pytest.mark.slow),
        ("canine", "fast", None, None),
    ],
)
def test_on_a_card_depth_and_rows_beyond_the_traced_ones_are_met(
    name, kernel, autocast, discriminator, checkpointing
):
    request = request_of(name, kernel=kernel, device="cuda", discriminator=discriminator)
    whole = trace_step(
        build_model(request, list_depths(request)),
        request,
        7,
        autocast=autocast,
        checkpointing=checkpointing,
    )
    lines, _ = trace_lines(request, checkpointing=checkpointing, autocast=autocast)
    for kinds in (slice(0, 4), slice(0, 5)):  # without gradients, and with those that came so far
        predicted = evaluate(lines, 7)[:, kinds].sum(1).max()
        found = whole.sizes[kinds].sum(0).max()
        # A pair draws in chunks, whose number is no line.
        assert predicted == pytest.approx(found, rel=0.02 if discriminator else 1e-6)


def test_a_layer_on_a_card_keeps_what_counting_by_hand_gives():
    sizes = {**HUB_MODELS["microsoft/deberta-v3-base"], "vocab_size": 100}
    request = Request(sizes, 512, 77, None, "cuda", "fp16", "fast")
    three, four = (
        [
            trace_step(build_model(request, (depth,)), request, rows, autocast=torch.float16).num_kept
            for rows in (2, 4)
        ]
        for depth in (3, 4)
    )
    per_row = ((four[1] - four[0]) - (three[1] - three[0])) / 2
    slots, hidden, inner, heads = 512, 768, 3072, 12
    states = slots * hidden
    expected = (
        3 * 2 * states  # hidden, cast once for each of query, key and value
        + 3 * 2 * states  # query, key, value
        + heads * slots * slots * 2  # the bias
        + slots * slots  # who may see whom
        + heads * slots * 4  # logarithms of sums
        + 2 * states  # contexts
        + 2 * (1 + 4) * states  # mask of a dropout and what goes into a norm, in fp32, twice
        + 2 * 2 * slots * 4  # means and deviations of the norms
        + 2 * states  # what the feed-forward reads, cast
        + 2 * 2 * slots * inner  # before and after the activation
    )
    assert per_row == pytest.approx(expected, rel=1e-3)


def make_rules(dtype=torch.float16, device="cuda"):
    casts = []
    return DeviceRules(dtype, device=device, report_cast=casts.append), casts


def test_autocast_casts_a_weight_once_and_an_activation_each_time():
    rules, casts = make_rules()
    layer = torch.nn.Linear(4, 4, device="meta")
    hidden = torch.empty(2, 4, device="meta", requires_grad=True) * 1
    with rules:
        with rules.autocast():
            first, second = layer(hidden), layer(hidden)
        with rules.autocast():
            layer(hidden)
        outside = layer(hidden)
    assert first.dtype == second.dtype == torch.float16
    assert outside.dtype == torch.float32
    assert [tuple(cast.shape) for cast in casts] == [(4, 4), (4,)] * 2


def test_norms_and_softmax_are_in_fp32_under_autocast_and_their_output_is():
    rules, _ = make_rules()
    hidden = torch.empty(2, 4, device="meta", dtype=torch.float16)
    weight = torch.empty(4, device="meta")
    with rules, rules.autocast():
        assert functional.layer_norm(hidden, (4,), weight, weight).dtype == torch.float32
        assert functional.softmax(hidden, -1).dtype == torch.float32
        assert hidden.softmax(-1).dtype == torch.float32
        assert functional.gelu(hidden).dtype == torch.float16
        assert (hidden @ torch.empty(4, 3, device="meta")).dtype == torch.float16


def test_a_card_keeps_a_byte_of_a_dropout_and_no_probabilities():
    rules, _ = make_rules(None)
    states = [torch.empty(2, 3, 32, 8, device="meta", requires_grad=True) for _ in range(3)]
    bias = torch.empty(2, 3, 32, 32, device="meta", requires_grad=True)
    kept = []

    def pack(tensor):
        kept.append((tuple(tensor.shape), tensor.dtype))
        return tensor

    with rules, torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        functional.dropout(states[0], 0.1, True)
        functional.scaled_dot_product_attention(*states, attn_mask=bias, dropout_p=0.1)
    assert ((2, 3, 32, 8), torch.bool) in kept
    assert sum(shape == (2, 3, 32, 32) for shape, _ in kept) == 1  # the bias itself


LISTED = {
    "lower": trace_autocast.LOWER_PRECISION,
    "single": trace_autocast.SINGLE_PRECISION,
}
NO_OPERATION_OF_THEIR_OWN = {"rmatmul", "rpow", "cross_entropy", "multi_dot", "vecdot"}


def has_cuda_autocast(name):
    """Whether torch itself registers the operation with CUDA's autocast, which a CPU build does too."""
    known = set(torch._C._dispatch_get_all_op_names())
    overloads = {f"aten::{name}"} | {
        f"aten::{name}.{one}" for one in getattr(torch.ops.aten, name).overloads()
    }
    return any(
        torch._C._dispatch_has_kernel_for_dispatch_key(one, "AutocastCUDA") for one in overloads & known
    )


@pytest.mark.parametrize("name", sorted(set().union(*LISTED.values()) - NO_OPERATION_OF_THEIR_OWN))
def test_what_is_cast_here_is_in_the_list_of_torch(name):
    assert has_cuda_autocast(name)


@pytest.mark.parametrize(
    ("name", "kernel"), [("deberta", "eager"), ("deberta", "fast"), ("canine", "fast"), ("bert", "fast")]
)
def test_no_operation_of_our_models_that_torch_casts_is_missing_here(name, kernel, monkeypatch):
    called = set()
    original = DeviceRules.__torch_function__

    def record(self, func, types, args=(), kwargs=None):
        if self.is_autocast:
            called.add(getattr(func, "__name__", "").strip("_"))
        return original(self, func, types, args, kwargs)

    monkeypatch.setattr(DeviceRules, "__torch_function__", record)
    request = request_of(name, kernel=kernel, device="cuda")
    trace_step(build_model(request, (2,)), request, 2, autocast=torch.float16)
    assert {"linear", "layer_norm"} <= called
    # These take the widest type of what they are given, with autocast or without.
    promoted = {"cat", "stack", "index_put", "scatter_add"}
    missing = {
        name
        for name in called - LISTED["lower"] - LISTED["single"] - promoted
        if hasattr(torch.ops.aten, name) and has_cuda_autocast(name)
    }
    assert not missing


def test_a_gradient_is_counted_once():
    layer = torch.nn.Linear(4, 3, bias=False, device="meta")
    given = torch.empty(2, 4, device="meta")
    tracker = StorageTracker(layer, 0, Answers(0, 0, 0))
    with tracker:
        layer(given).sum().backward()
        torch.empty(1, device="meta")
    tracker.close()
    temporaries, gradients = (tracker.draw()[KINDS.index(kind)] for kind in ("temporaries", "gradients"))
    assert gradients.tolist()[0] == 0
    assert gradients.tolist()[-1] == 4 * 4 * 3
    # The gradient, the loss and the gradient of the loss.
    assert (temporaries + gradients).max() == 4 * (4 * 3 + 1 + 1)


def test_steps_that_do_not_line_up_are_refused():
    request = request_of("deberta", device="cuda")
    other = request_of("deberta", device="cuda", kernel="eager")
    steps = [
        [trace_step(build_model(one, (depth,)), one, rows) for rows in (2, 4)]
        for one, depth in ((request, 3), (other, 4))
    ]
    with pytest.raises(MismatchError, match="operations"):
        draw_lines(steps, (6,))


def test_a_shallow_model_is_traced_as_it_is():
    request = request_of("deberta", device="cuda")
    shallow = replace(request, sizes={**request.sizes, "num_hidden_layers": 1})
    found = answer(shallow)
    assert found["num_parameters"] == sum(p.numel() for p in build_model(shallow, (1,)).parameters())
    whole = trace_step(build_model(shallow, (1,)), shallow, 7)
    predicted = evaluate(np.array(found["lines"]["full"]), 7).sum(1).max()
    assert predicted == pytest.approx(whole.sizes.sum(0).max(), rel=1e-9)


def test_every_stack_of_layers_is_found():
    request = request_of("deberta", discriminator=5)
    assert [len(layers) for layers in list_stacks(build_model(request, (6, 5)))] == [6, 5]


def test_planner_and_tracer_agree_on_the_kinds():
    assert memory.KINDS == KINDS
