import subprocess
import sys
from dataclasses import replace

import pytest

from launch.checkpoints.contents import read_tensors
from launch.checkpoints.snapshot import count_bytes
from launch.checkpoints.weights import collect_weights
from launch.costing import trace_cache
from launch.costing.memory import (
    CONTEXT_BYTES,
    GIB,
    MARGIN_SHARE,
    NCCL_BYTES,
    PROCESS_BYTES,
    Setting,
    Shape,
    Trace,
    TraceError,
    find_trace,
    predict_memory,
    trace_model,
)
from launch.costing.sizes import HUB_MODELS
from launch.costing.states import BUCKET_ELEMENTS, Layout, count_states
from tests.saved_job import make_job

SMALL = {
    "model_type": "deberta-v2",
    "vocab_size": 1000,
    "hidden_size": 64,
    "num_attention_heads": 4,
    "intermediate_size": 256,
    "num_hidden_layers": 3,
    "max_position_embeddings": 64,
    "position_buckets": 16,
    "relative_attention": True,
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "legacy": False,
}
SHAPE = Shape(SMALL, 48, 7)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="module")
def trace(root):
    return trace_model(SHAPE, "fp16", "fast", cache_root=root)


def predict(trace, **values):
    return predict_memory(
        trace, Setting(**{"micro_batch": 8, "precision": "fp16", "kernel": "fast", **values})
    )


# the cache


def test_a_second_call_starts_no_child(trace, root, monkeypatch):
    def refuse(request):
        raise AssertionError("a child was started")

    monkeypatch.setattr(trace_cache, "run_child", refuse)
    again = trace_model(SHAPE, "fp16", "fast", cache_root=root)
    assert trace.origin == "traced"
    assert again.origin == "cached trace"
    assert replace(again, origin="traced") == trace
    # What `flash` keeps is not known; it is traced as `fast`.
    assert trace_model(SHAPE, "fp16", "flash", cache_root=root) == again


def test_finding_never_starts_anything(root, monkeypatch):
    monkeypatch.setattr(trace_cache, "subprocess", None)
    assert find_trace(replace(SHAPE, row_length=40), "fp16", "fast", cache_root=root) is None


@pytest.mark.parametrize(
    "change",
    [
        {"row_length": 40},
        {"num_targets": 8},
        {"sizes": {**SMALL, "hidden_size": 32}},
        {"discriminator": SMALL},
        {"device": "cpu"},
    ],
)
def test_another_shape_is_another_trace(trace, root, change):
    assert find_trace(SHAPE, "fp16", "fast", cache_root=root) is not None
    assert find_trace(replace(SHAPE, **change), "fp16", "fast", cache_root=root) is None


def test_another_precision_or_kernel_is_another_trace_but_tf32_is_fp32(trace, root, monkeypatch):
    assert find_trace(SHAPE, "bf16", "fast", cache_root=root) is None
    assert find_trace(SHAPE, "fp16", "eager", cache_root=root) is None
    monkeypatch.setattr(trace_cache, "run_child", lambda request: vars(replace(trace, origin="traced")))
    trace_model(SHAPE, "tf32", "fast", cache_root=root)
    assert find_trace(SHAPE, "fp32", "fast", cache_root=root) is not None


@pytest.mark.parametrize("package", ["torch", "transformers"])
def test_another_version_is_another_trace(trace, root, package, monkeypatch):
    original = trace_cache.version
    monkeypatch.setattr(trace_cache, "version", lambda name: "9.9.9" if name == package else original(name))
    assert find_trace(SHAPE, "fp16", "fast", cache_root=root) is None


def test_another_version_of_the_trace_is_another_trace(trace, root, monkeypatch):
    monkeypatch.setattr(trace_cache, "TRACE_VERSION", trace_cache.TRACE_VERSION + 1)
    assert find_trace(SHAPE, "fp16", "fast", cache_root=root) is None


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"num_parameters": 1}'])
def test_a_damaged_file_of_the_cache_is_traced_anew(trace, tmp_path, content, monkeypatch):
    monkeypatch.setattr(trace_cache, "run_child", lambda request: vars(replace(trace, origin="traced")))
    trace_model(SHAPE, "fp16", "fast", cache_root=tmp_path)
    (path,) = (tmp_path / "traces").iterdir()
    path.write_bytes(content)
    assert trace_model(SHAPE, "fp16", "fast", cache_root=tmp_path).origin == "traced"
    assert trace_model(SHAPE, "fp16", "fast", cache_root=tmp_path).origin == "cached trace"


def test_a_cache_that_cannot_be_written_is_no_error(trace, tmp_path, monkeypatch):
    monkeypatch.setattr(trace_cache, "run_child", lambda request: vars(replace(trace, origin="traced")))
    (tmp_path / "file").write_text("in the way")
    assert trace_model(SHAPE, "fp16", "fast", cache_root=tmp_path / "file") == trace


def test_a_child_that_fails_gives_its_reason():
    with pytest.raises(TraceError, match="63"):
        trace_cache.run_child(
            vars(replace(SHAPE, sizes={**SMALL, "hidden_size": 63})) | {"precision": "fp16", "kernel": "fast"}
        )


def test_a_child_that_cannot_be_started_or_talks_nonsense_gives_an_error(monkeypatch):
    monkeypatch.setattr(trace_cache.sys, "executable", "/nowhere/python")
    with pytest.raises(TraceError, match="nowhere"):
        trace_cache.run_child({})
    monkeypatch.setattr(trace_cache.sys, "executable", "/bin/true")
    with pytest.raises(TraceError, match="failed"):
        trace_cache.run_child({})
    monkeypatch.setattr(trace_cache.sys, "executable", "/bin/false")
    with pytest.raises(TraceError, match="no message"):
        trace_cache.run_child({})


def test_predicting_imports_no_torch():
    code = "import sys; sys.modules.update(torch=None, transformers=None); import launch.costing.memory"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# model states


def layout_of(**values):
    plain = {
        "num_parameters": 1_000_000,
        "num_trained": 1_000_000,
        "num_largest": 400_000,
        "weight_bytes": 2,
        "zero_stage": 2,
        "offload": None,
        "world_size": 1,
        "is_accumulating": False,
        "num_buckets": 2,
        "bucket_elements": 0,
        "on_cpu": False,
    }
    return Layout(**{**plain, **values})


def sum_states(states):
    return states.parameters + states.optimizer + states.all_gradients


@pytest.mark.parametrize("world_size", [1, 2, 8])
@pytest.mark.parametrize("stage", [2, 3])
def test_states_on_cards_are_those_of_the_estimators_of_deepspeed(stage, world_size):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    states = count_states(layout_of(zero_stage=stage, world_size=world_size))
    ours = sum_states(states) + states.update
    # AdamW of torch takes the roots of a whole partition at once; DeepSpeed reckons with a kernel.
    roots = 4 * 1_000_000 // world_size
    if stage == 2:
        _, theirs = estimate_zero2_model_states_mem_needs(1_000_000, world_size, 1, cpu_offload=False)
        assert ours - roots == theirs
    else:
        _, theirs, largest = estimate_zero3_model_states_mem_needs(
            1_000_000, 400_000, world_size, 1, cpu_offload=False, cpu_offload_params=False
        )
        # It counts the largest layer, as if no other weight were there; below 1e9 all are. And of its 18
        # bytes, 20 are: weights and gradients in half, gradients, weights and two moments in fp32.
        gathered = 0 if world_size == 1 else 2 * 1_000_000
        assert ours - roots - gathered == theirs - largest + 2 * 1_000_000 // world_size


@pytest.mark.parametrize("world_size", [1, 4])
def test_offloaded_states_are_those_of_the_estimators_of_deepspeed(world_size):
    from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
    from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs

    states = count_states(layout_of(offload="optimizer", world_size=world_size))
    cpu, gpu = estimate_zero2_model_states_mem_needs(1_000_000, world_size, 1, cpu_offload=True)
    # Ours has the buffer through which gradients go.
    assert sum_states(states) == gpu
    assert states.communication == 2 * 400_000
    # Their 16 bytes times 1.5 are for all ranks; ours are in blocks of powers of two, with buffers.
    assert 0.5 * cpu < world_size * sum(states.cpu.values()) < 1.5 * cpu
    states = count_states(layout_of(zero_stage=3, offload="parameters", world_size=world_size))
    cpu, gpu, _ = estimate_zero3_model_states_mem_needs(1_000_000, 400_000, world_size, 1)
    assert 0.5 * cpu < world_size * sum(states.cpu.values()) < 1.5 * cpu
    assert sum_states(states) == 2 * 1_000_000


def test_stage_1_keeps_whole_gradients_and_stage_2_a_share():
    one, two = (count_states(layout_of(zero_stage=stage, world_size=4)) for stage in (1, 2))
    assert one.gradients == 2 * 1_000_000
    assert two.gradients == 2 * 250_000
    assert one.optimizer == two.optimizer == 12 * 250_000


def test_stage_2_holds_two_sums_while_it_accumulates():
    plain, accumulating = (count_states(layout_of(is_accumulating=flag)) for flag in (False, True))
    assert (plain.gradients, accumulating.gradients) == (2_000_000, 4_000_000)


def test_plain_states_are_sixteen_bytes_a_parameter_and_ddp_has_buckets():
    plain = count_states(layout_of(zero_stage=None, weight_bytes=4, is_accumulating=True))
    assert sum_states(plain) == 16 * 1_000_000
    assert plain.gradients == 4_000_000
    assert plain.communication == 0
    assert count_states(layout_of(zero_stage=None, weight_bytes=4)).gradients is None
    ranks = count_states(layout_of(zero_stage=None, weight_bytes=4, world_size=2))
    assert ranks.communication == 4_000_000


@pytest.mark.parametrize(
    ("stage", "overlap", "expected"), [(1, True, 2), (2, True, 2), (2, False, 1), (3, True, 1)]
)
def test_buckets_are_as_large_as_deepspeed_allocates_them(trace, stage, overlap, expected):
    found = predict(trace, zero_stage=stage, overlap=overlap).gpu_terms["communication"]
    assert found == expected * BUCKET_ELEMENTS * 2
    small = predict(trace, zero_stage=stage, overlap=overlap, bucket_elements=1000)
    assert small.gpu_terms["communication"] == expected * 1000 * 2


# predictions


def test_terms_add_up_and_the_largest_is_named(trace):
    found = predict(trace, accumulation=4)
    assert sum(found.gpu_terms.values()) == found.gpu_bytes
    assert sum(found.cpu_terms.values()) == found.cpu_bytes
    assert found.dominant == "CUDA itself"
    assert predict(trace, micro_batch=4096).dominant == "activations kept for the backward"
    assert predict(trace, zero_stage=2).dominant == "buckets of gradients"
    passing = sum(found.gpu_terms[kind] for kind in ("activations", "casts", "logits", "temporaries"))
    assert found.gpu_terms["margin"] == round(MARGIN_SHARE * passing)
    assert found.gpu_terms["context"] == CONTEXT_BYTES
    assert predict(trace, world_size=2).gpu_terms["context"] == CONTEXT_BYTES + NCCL_BYTES
    assert found.assumed == ("margin", "context", "process")
    assert predict(trace, kernel="flash").assumed == ("activations", "margin", "context", "process")


@pytest.mark.parametrize("precision", ["fp16"])
@pytest.mark.parametrize("stage", [None, 0, 1, 2, 3])
@pytest.mark.parametrize("checkpointing", [False, True])
def test_more_rows_never_need_less(trace, precision, stage, checkpointing):
    sizes = [
        predict(trace, micro_batch=rows, zero_stage=stage, checkpointing=checkpointing).gpu_bytes
        for rows in (1, 2, 3, 4, 8, 16, 64, 256, 1024)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] > sizes[0]


@pytest.mark.parametrize("rows", [1, 8, 64, 512])
@pytest.mark.parametrize("stage", [None, 2])
def test_no_checkpointing_no_chunk_and_no_offload_never_need_less(trace, rows, stage):
    plain = predict(trace, micro_batch=rows, zero_stage=stage)
    assert predict(trace, micro_batch=rows, zero_stage=stage, checkpointing=True).gpu_bytes <= plain.gpu_bytes
    if rows > 8:  # of fewer, the sums of the embedding's gradients outweigh what chunks save
        assert predict(trace, micro_batch=rows, zero_stage=stage, loss_chunk=16).gpu_bytes <= plain.gpu_bytes
    assert predict(trace, micro_batch=rows, zero_stage=stage, accumulation=4).gpu_bytes >= plain.gpu_bytes
    if stage == 2:
        offloaded = predict(trace, micro_batch=rows, zero_stage=2, offload="optimizer")
        assert offloaded.gpu_bytes < plain.gpu_bytes
        assert offloaded.cpu_bytes > plain.cpu_bytes


def test_more_ranks_need_less_of_each_under_zero(trace):
    for stage in (1, 2, 3):
        alone, many = (predict(trace, zero_stage=stage, world_size=ranks) for ranks in (2, 8))
        assert many.gpu_bytes < alone.gpu_bytes


def test_a_chunk_bounds_the_logits(trace):
    rows = 256
    all_at_once = predict(trace, micro_batch=rows).gpu_terms
    few = predict(trace, micro_batch=rows, loss_chunk=32).gpu_terms
    # The logarithms of softmax and two gradients of it.
    assert all_at_once["logits"] == 3 * 4 * 1000 * 7 * rows
    assert few["logits"] <= 3 * 4 * 1000 * 32
    assert sum(few.values()) < sum(all_at_once.values())
    # Chunks that hold all targets are none.
    assert predict(trace, micro_batch=rows, loss_chunk=7 * rows).gpu_terms == all_at_once
    assert predict(trace, micro_batch=rows, loss_chunk=7 * rows - 1).gpu_terms != all_at_once


def made_up_trace():
    """Two moments: one with much that was kept and few gradients, one with logits; 10 targets a row."""
    early = [[1000, 100_000], [0, 0], [0, 0], [0, 0], [6_000_000, 0]]
    late = [[2000, 1000], [500, 0], [0, 300_000], [7000, 0], [0, 0]]
    lines = {"autocast": [early, late], "autocast chunked": [early, late]}
    return Trace(1_000_000, 1_000_000, 300_000, 0, 100, 10, "cuda", lines)


def test_the_logits_of_a_chunk_are_its_share_of_three_traced_ones():
    whole = predict(made_up_trace(), micro_batch=100, accumulation=2).gpu_terms
    assert whole["logits"] == 100 * 300_000
    # 1,000 targets, traced as 3 chunks of a third each: one of 200 has 0.6 of the logits of those.
    few = predict(made_up_trace(), micro_batch=100, accumulation=2, loss_chunk=200).gpu_terms
    assert few["logits"] == 0.6 * 100 * 300_000
    assert few["activations"] == 2000 + 100 * 1000
    # One of 20 makes the other moment the worst.
    least = predict(made_up_trace(), micro_batch=100, accumulation=2, loss_chunk=20).gpu_terms
    assert (least["logits"], least["activations"]) == (0, 1000 + 100 * 100_000)


def test_gradients_grow_within_a_lone_micro_batch_and_are_all_there_in_others():
    alone = predict(made_up_trace(), micro_batch=40).gpu_terms
    assert (alone["logits"], alone["gradients"]) == (40 * 300_000, 0)
    # With fewer rows it is the moment with more gradients that is the worst.
    assert predict(made_up_trace(), micro_batch=24).gpu_terms["gradients"] == 6_000_000
    assert predict(made_up_trace(), micro_batch=40, accumulation=2).gpu_terms["gradients"] == 4_000_000
    # DeepSpeed takes gradients away, into a part of its own.
    half = replace(made_up_trace(), lines={"half": made_up_trace().lines["autocast"]})
    assert predict(half, micro_batch=100, zero_stage=2, world_size=4).gpu_terms["gradients"] == 500_000


def test_a_pair_has_no_chunks(trace):
    lines = {way: lines for way, lines in trace.lines.items() if "chunked" not in way}
    pair = replace(trace, lines=lines)
    assert predict(pair, micro_batch=256, loss_chunk=32) == predict(pair, micro_batch=256)


def test_the_update_is_the_worst_moment_of_a_small_batch(trace):
    found = predict(trace, micro_batch=1, checkpointing=True).gpu_terms
    trained = trace.num_trained
    assert found["gradients"] == 4 * trained
    assert found["temporaries"] == max(8 * trace.num_largest, 4 * trained)
    assert found["activations"] == found["logits"] == found["casts"] == 0
    assert found["parameters"] == 4 * trace.num_parameters + trace.buffer_bytes
    assert found["optimizer"] == 8 * trained


def test_deepspeed_runs_the_model_in_half_precision(trace):
    plain, half = (predict(trace, micro_batch=512, zero_stage=stage) for stage in (None, 2))
    assert plain.gpu_terms["casts"] > 0
    assert half.gpu_terms["casts"] == 0
    assert half.gpu_terms["activations"] < plain.gpu_terms["activations"]
    assert half.gpu_terms["parameters"] < 0.51 * plain.gpu_terms["parameters"]


def test_a_larger_vocabulary_never_needs_less():
    from launch.costing.trace import answer
    from launch.costing.trace_steps import Request

    request = {"row_length": 48, "num_targets": 7, "discriminator": None, "device": "cuda"}
    traces = [
        Trace(
            **answer(Request(sizes={**SMALL, "vocab_size": size}, precision="fp32", kernel="fast", **request))
        )
        for size in (500, 2000)
    ]
    for rows in (1, 8, 64, 512):
        for checkpointing in (False, True):
            sizes = [
                predict(one, precision="fp32", micro_batch=rows, checkpointing=checkpointing).gpu_bytes
                for one in traces
            ]
            assert sizes == sorted(set(sizes))


def test_without_a_card_all_is_in_cpu_memory(tmp_path):
    from launch.costing.trace import answer
    from launch.costing.trace_steps import Request

    found = Trace(**answer(Request(SMALL, 48, 7, None, "cpu", "fp32", "fast")))
    memory = predict(found, precision="fp32")
    assert memory.gpu_bytes == 0
    assert memory.gpu_terms == {}
    assert memory.cpu_terms["process"] == PROCESS_BYTES["cpu"]
    assert memory.cpu_terms["parameters"] >= 4 * found.num_parameters
    assert memory.cpu_terms["activations"] > 0
    assert sum(memory.cpu_terms.values()) == memory.cpu_bytes
    assert memory.dominant == "the process itself"
    sharded = predict(found, precision="fp32", zero_stage=2, world_size=2, offload="optimizer")
    assert sharded.cpu_terms["optimizer"] > 0


@pytest.mark.slow
def test_the_base_model_fits_a_card_of_11_gb(tmp_path):
    base = Shape(HUB_MODELS["microsoft/deberta-v3-base"], 512, 77)
    found = trace_model(base, "fp16", "fast", cache_root=tmp_path)
    assert found.num_parameters == 184_551_780
    usable = 10.5 * GIB
    assert 6.5 * GIB < predict(found, accumulation=16).gpu_bytes < 8.6 * GIB < usable
    assert predict(found, micro_batch=24, accumulation=16).gpu_bytes > usable
    small = {"checkpointing": True, "zero_stage": 2, "offload": "optimizer", "bucket_elements": 20_000_000}
    assert predict(found, accumulation=16, **small).gpu_bytes < 4 * GIB
    # Most moments are never the worst, so the file is small.
    (path,) = (tmp_path / "traces").iterdir()
    assert path.stat().st_size < 100_000


# the copy for saves in the background


def test_the_copy_for_saves_is_as_large_as_what_is_copied(trace):
    job = make_job()
    kinds = (read_tensors(job), collect_weights(job))
    num = sum(p.numel() for p in job.model.parameters())
    alike = replace(trace, num_parameters=num, num_trained=num)
    found = predict(alike, saves_in_background=True).cpu_terms["snapshot"]
    # Adam's step numbers come on top: one of 4 bytes for each tensor.
    assert 0 <= sum(map(count_bytes, kinds)) - found <= 4 * len(list(job.model.parameters()))
    plain = predict(alike).cpu_bytes
    assert predict(alike, saves_in_background=True).cpu_bytes == plain + found
    assert "snapshot" not in predict(alike).cpu_terms


def test_under_zero_nothing_is_saved_in_the_background(trace):
    found = predict(trace, saves_in_background=True, zero_stage=2, world_size=2)
    assert "snapshot" not in found.cpu_terms
