import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path

import pytest

from launch.doctor import examination, gpu, machine, ops, packages
from launch.doctor.finding import Finding
from launch.doctor.gpu import FoundGpu, FoundTorch, judge_gpus, judge_torch, read_gpus
from launch.hardware import find_profile
from launch.verdict import RunError
from tests.commands import ROOT

CPU, CPU_ZERO, TURING, A100 = map(find_profile, ("cpu", "cpu-2proc-zero2", "rtx2080ti-11gb", "a100-40gb"))
TWO_A100 = A100.model_copy(update={"devices": 2})
LINUX, MAC = ("Linux", "x86_64"), ("Darwin", "arm64")
CARD_2080 = FoundGpu("NVIDIA GeForce RTX 2080 Ti", 11.0, 7.5, "550.54.15")
CARD_A100 = FoundGpu("NVIDIA A100-SXM4-40GB", 40.0, 8.0, "580.95.05")
TORCH = FoundTorch("2.13.0+cu130", "13.0", 1, ("sm_75", "sm_80", "sm_90", "compute_90"))
MIB, GIB = 2**20, 2**30


def states(findings):
    return {finding.name: finding.state for finding in findings}


def lacking(findings):
    return {finding.name for finding in findings if finding.state == "lacks"}


def test_lines_of_nvidia_smi_are_read_and_cards_without_figures_left_out():
    text = "NVIDIA GeForce RTX 2080 Ti, 11264, 7.5, 550.54.15\nNVIDIA GB10, unified, [N/A], 12.1, 580.95\n"
    assert read_gpus(text) == [CARD_2080]


def test_a_turing_card_is_enough_for_its_profile_and_noted_to_have_no_bf16():
    findings = judge_gpus([CARD_2080], TURING, LINUX)
    assert states(findings) == {"GPU": "ok", "precision": "note"}
    assert "tensor cores below 8.0" in findings[1].found
    assert states(judge_gpus([CARD_A100], A100, LINUX)) == {"GPU": "ok", "precision": "ok"}


def test_a_card_too_small_too_old_or_alone_is_lacking():
    small = FoundGpu("x", 24.0, 8.0, "580.1")
    old = FoundGpu("x", 48.0, 7.5, "580.1")
    for found, profile in (([small], A100), ([old], A100), ([CARD_A100], TWO_A100), ([], A100)):
        assert lacking(judge_gpus(found, profile, LINUX)) == {"GPU"}


def test_an_apple_gpu_is_left_out_in_words():
    (finding,) = judge_gpus([], CPU, MAC)
    assert (finding.state, "MPS" in finding.found) == ("note", True)
    assert "MPS" in judge_gpus([], A100, MAC)[0].found
    assert judge_gpus([], CPU, LINUX)[0].state == "ok"


def test_a_cpu_build_of_torch_is_lacking_for_a_card_only():
    build = FoundTorch("2.13.0+cpu")
    assert lacking(judge_torch(build, [CARD_A100], A100)) == {"torch"}
    assert lacking(judge_torch(build, [], CPU)) == set()


def test_a_driver_older_than_the_cuda_of_torch_is_lacking():
    assert lacking(judge_torch(TORCH, [CARD_2080], TURING)) == {"driver"}
    assert lacking(judge_torch(TORCH, [CARD_A100], A100)) == set()
    older = FoundTorch("2.7.0+cu126", "12.6", 1, TORCH.architectures)
    assert lacking(judge_torch(older, [CARD_2080], TURING)) == set()


def test_torch_must_see_as_many_cards_as_are_planned():
    assert lacking(judge_torch(TORCH, [CARD_A100, CARD_A100], TWO_A100)) == {"GPUs in torch"}


@pytest.mark.parametrize(
    ("capability", "is_known"),
    [(7.0, False), (7.5, True), (8.6, True), (8.9, True), (9.0, True), (12.0, True)],
)
def test_torch_must_have_kernels_for_the_card(capability, is_known):
    card = FoundGpu("x", 80.0, capability, "580.95")
    assert ("kernels" in lacking(judge_torch(TORCH, [card], TURING))) != is_known


def test_without_ptx_a_later_generation_is_not_served():
    build = FoundTorch("x", "13.0", 1, ("sm_75", "sm_80", "sm_90a"))
    blackwell, hopper = (FoundGpu("x", 80.0, capability, "580.95") for capability in (12.0, 9.0))
    assert "kernels" in lacking(judge_torch(build, [blackwell], A100))
    assert lacking(judge_torch(build, [hopper], A100)) == set()


def test_a_torch_that_cannot_be_imported_is_a_finding(monkeypatch, tmp_path):
    (tmp_path / "torch.py").write_text("raise ImportError('libcudart.so.13: no such file')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    found = gpu.find_torch()
    assert "libcudart.so.13" in found.problem
    assert lacking(judge_torch(found, [], CPU)) == {"torch"}


def test_the_torch_of_this_environment_is_found():
    import torch

    assert gpu.find_torch().version == torch.__version__


def test_docker_gives_too_little_shared_memory_to_several_processes():
    docker = 64 * MIB
    assert machine.judge_shm(docker, CPU_ZERO).state == "lacks"
    assert machine.judge_shm(docker, CPU).state == "note"
    assert machine.judge_shm(132 * MIB, CPU_ZERO).state == "ok"
    assert machine.judge_shm(132 * MIB - 1, CPU_ZERO).state == "lacks"
    assert "--shm-size" in machine.judge_shm(docker, CPU_ZERO).remedy


def test_a_full_disk_is_lacking_and_a_small_one_noted():
    judged = [machine.judge_disk("runs", Path("/r"), free).state for free in (10 * GIB, 9 * GIB, GIB // 2)]
    assert judged == ["ok", "note", "lacks"]


def test_memory_is_counted_for_each_process():
    assert machine.judge_memory(8 * GIB, CPU_ZERO).state == "ok"
    assert machine.judge_memory(7 * GIB, CPU_ZERO).state == "note"
    assert machine.judge_memory(7 * GIB, CPU).state == "ok"


def test_a_container_limits_the_memory_that_is_free(tmp_path):
    proc = tmp_path / "meminfo"
    proc.write_text("MemTotal:       99999999 kB\nMemAvailable:   8388608 kB\n")
    assert machine.find_memory(proc, tmp_path) == 8 * GIB
    (tmp_path / "memory.current").write_text(f"{GIB}\n")
    (tmp_path / "memory.max").write_text("max\n")
    assert machine.find_memory(proc, tmp_path) == 8 * GIB
    (tmp_path / "memory.max").write_text(f"{3 * GIB}\n")
    assert machine.find_memory(proc, tmp_path) == 2 * GIB


MOUNTS = """/dev/vda / ext4 rw 0 0
old /data ext4 rw 0 0
server:/export /data nfs4 rw 0 0
server:/deep /data/my\\040runs lustre rw 0 0
tmpfs /datasets tmpfs rw 0 0
"""


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("/home/x", "ext4"),
        ("/database/x", "ext4"),
        ("/data/x", "nfs4"),
        ("/data/my runs/x", "lustre"),
        ("/datasets/x", "tmpfs"),
    ],
)
def test_the_file_system_is_that_of_the_nearest_mount(place, kind):
    assert machine.read_file_system(Path(place), MOUNTS) == kind


def test_a_network_file_system_is_noted_and_a_local_cache_advised():
    assert machine.judge_file_system("cache", Path("/c"), "ext4").state == "ok"
    cache = machine.judge_file_system("cache", Path("/c"), "nfs4")
    assert (cache.state, "MASKWRIGHT_CACHE" in cache.remedy) == ("note", True)
    assert machine.judge_file_system("runs", Path("/r"), "lustre").state == "note"


def test_fewer_cores_than_processes_are_noted():
    assert [machine.judge_cores(n, CPU_ZERO).state for n in (1, 2)] == ["note", "ok"]


def test_a_compiler_and_ninja_are_lacking_only_where_something_is_compiled(monkeypatch):
    monkeypatch.delenv("CXX", raising=False)
    builders = ops.list_ops(CPU_ZERO)
    assert lacking(machine.judge_compiler({"g++": "/g++"}.get, builders, CPU_ZERO)) == {"ninja"}
    assert lacking(machine.judge_compiler({"ninja": "/n"}.get, builders, CPU_ZERO)) == {"C++ compiler"}
    none = ops.list_ops(find_profile("rtx2080ti-11gb-offload")) + ops.list_ops(CPU)
    assert none == []
    assert lacking(machine.judge_compiler({}.get, none, CPU)) == set()
    assert "C compiler" in states(machine.judge_compiler({}.get, none, A100))


def test_the_hub_is_not_asked_offline():
    def ask(_):
        raise AssertionError("it was asked")

    assert machine.judge_hub({"HF_HUB_OFFLINE": "1"}, ask, is_offline=False)[0].state == "note"
    assert machine.judge_hub({}, ask, is_offline=True)[0].state == "note"


def test_a_silent_hub_is_noted_and_no_secret_is_shown():
    environment = {"HF_TOKEN": "hf_secret", "HF_ENDPOINT": "https://user:hf_secret@hub.example"}
    silent = machine.judge_hub(environment, lambda _: "timed out", is_offline=False)
    assert (silent[0].state, "timed out" in silent[0].found) == ("note", True)
    answering = machine.judge_hub(environment, lambda _: None, is_offline=False)
    assert states(answering)["hub"] == "ok"
    assert "hf_secret" not in repr([*silent, *answering])
    token = {finding.name: finding.found for finding in answering}["hub token"]
    assert token == "set"


def test_an_address_that_does_not_answer_gives_a_reason():
    assert machine.ask_hub("http://127.0.0.1:9")


REQUIREMENTS = ["torch>=2.7", 'deepspeed>=0.18; extra == "deepspeed"', 'ruff>=0.12; extra == "dev"']


def judge(found, needed):
    return packages.judge_packages(REQUIREMENTS, found.get, needed)


def test_packages_below_our_floor_or_missing_are_lacking():
    new = {"torch": "2.13.0+cpu", "deepspeed": "0.19.8", "ruff": "0.1"}
    assert lacking(judge(new, {})) == set()
    assert lacking(judge({**new, "torch": "2.6.1"}, {})) == {"package torch", "safety of torch"}
    assert lacking(judge({}, {})) == {"package torch"}
    assert lacking(judge({**new, "deepspeed": "0.17.9"}, {})) == {"package deepspeed"}


def test_an_extra_is_lacking_only_where_the_profile_wants_it():
    alone = {"torch": "2.13.0"}
    assert lacking(judge(alone, {})) == set()
    (finding,) = [f for f in judge(alone, {"deepspeed": "deepspeed"}) if f.state == "lacks"]
    assert finding.remedy == "pip install 'maskwright[deepspeed]'"


@pytest.mark.parametrize(
    ("version", "is_unsafe"), [("2.5.1", True), ("2.9.1+cu128", True), ("2.10.0", False)]
)
def test_a_known_hole_is_told_by_its_number_and_how_to_close_it(version, is_unsafe):
    found = [one for one in judge({"torch": version}, {}) if one.name == "safety of torch"]
    assert [("CVE-2026-24747" in one.found, one.remedy) for one in found] == [
        (True, "pip install 'torch>=2.10'")
    ] * is_unsafe


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_an_op_that_was_built_is_not_compiled_again(cache):
    built, calls = cache / "op.so", []

    def compile_op(name):
        calls.append(name)
        built.touch()
        return 0, f"chatter\n{built}\n", ""

    for _ in range(2):
        (finding,) = ops.build_ops(["XBuilder"], compile_op, may_build=True)
        assert (finding.state, finding.found) == ("ok", f"built: {built}")
    assert calls == ["XBuilder"]
    built.unlink()
    ops.build_ops(["XBuilder"], compile_op, may_build=True)
    assert calls == ["XBuilder"] * 2


def test_an_op_that_does_not_compile_is_a_finding_with_the_last_lines(cache):
    failed = (
        1,
        "",
        "a\nshm.cpp:7: error: immintrin.h: No such file\nninja: build stopped\nRuntimeError: no\n",
    )
    for _ in range(2):  # a failure is not remembered
        (finding,) = ops.build_ops(["XBuilder"], lambda _: failed, may_build=True)
        assert finding.state == "lacks"
        assert "immintrin.h" in finding.found


def test_nothing_is_compiled_with_no_build(cache):
    def compile_op(_):
        raise AssertionError("it was compiled")

    assert ops.build_ops(["XBuilder"], compile_op, may_build=False)[0].state == "note"


def test_a_builder_that_fails_in_the_child_is_told(cache):
    code, _, stderr = ops.compile_in_child("NoSuchBuilder")
    assert code
    assert "not been implemented" in stderr.splitlines()[-1]


@pytest.mark.parametrize("folder", ["deepspeed_shm_comm", "py311_cpu/deepspeed_shm_comm"])
def test_a_lock_that_a_killed_compile_left_is_found_and_one_in_use_is_not(folder, tmp_path, monkeypatch):
    """It hangs every later run without a word."""
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    assert ops.find_left_lock() is None
    lock = tmp_path / folder / "lock"
    lock.parent.mkdir(parents=True)
    lock.touch()
    assert ops.find_left_lock() is None, "it may have been made a moment ago"
    os.utime(lock, (0, 0))
    with lock.open("rb"):
        assert ops.find_left_lock() is None, "somebody compiles"
    assert ops.find_left_lock() == lock
    (finding,) = ops.judge_lock(lock)
    assert finding.state == "lacks"
    assert f"rm {lock}" in finding.remedy
    ops.require_no_left_lock(find_profile("cpu-2proc"))
    with pytest.raises(RunError, match="left behind") as caught:
        ops.require_no_left_lock(find_profile("cpu-2proc-zero2"))
    assert caught.value.verdict.exit_code == 3


def test_the_exit_code_is_3_with_a_line_for_each_thing_that_is_lacking():
    fine, lack = Finding("a", "note", "x"), Finding("ninja", "lacks", "none", remedy="pip install ninja")
    assert examination.conclude([fine]) == (0, [])
    assert examination.conclude([fine, lack]) == (3, ["ninja: pip install ninja"])


def test_the_doctor_looks_at_this_machine(monkeypatch, capsys):
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setattr(gpu, "find_torch", lambda: FoundTorch("2.13.0+cpu"))
    findings = examination.examine(CPU, may_build=False, is_offline=True, waiting=lambda _: nullcontext())
    assert {"GPU", "torch", "cores", "disk, runs", "file system, cache", "package torch", "hub"} <= set(
        states(findings)
    )
    examination.show_json(findings)
    printed = capsys.readouterr().out
    assert {one["name"] for one in json.loads(printed)} == {finding.name for finding in findings}
    examination.show([*findings, Finding("ninja", "lacks", "none", remedy="pip install ninja")], CPU)
    shown = capsys.readouterr().out
    assert "ninja: pip install ninja" in shown
    assert "hf_secret" not in printed + shown


def test_where_ninja_is_lacking_nothing_is_compiled(monkeypatch):
    monkeypatch.setattr(examination, "find_program", lambda name: None if name == "ninja" else "/x")
    monkeypatch.setattr(gpu, "find_torch", lambda: FoundTorch("2.13.0+cpu"))
    monkeypatch.setattr(ops, "compile_in_child", lambda _: pytest.fail("it was compiled"))
    findings = examination.examine(CPU_ZERO, may_build=True, is_offline=True, waiting=lambda _: nullcontext())
    assert "ninja" in lacking(findings)


def test_the_verb_parses_without_torch():
    code = "import sys; sys.modules['torch'] = None; import launch.cli_doctor, launch.doctor.examination"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=dict(os.environ), check=False)
    assert done.returncode == 0
