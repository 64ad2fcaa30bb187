"""Faults on order: what they do, where they may strike, and that they are off by default."""

import errno
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from launch import fault, train
from launch.checkpoints.manifest import find_damage
from launch.fault import ACTIONS, POINTS, FaultError, parse_faults
from launch.run import execute
from launch.verdict import RunError, Verdict
from tests.commands import ENVIRONMENT, QUICK

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(autouse=True)
def disarmed():
    yield
    fault.arm("")


def run_python(code):
    return subprocess.Popen([sys.executable, "-c", code], cwd=ROOT)


def test_nothing_is_armed_and_a_point_does_nothing():
    assert fault._faults is None
    loss = torch.tensor(2.0)
    assert fault.at("before_rename") is False
    assert fault.poison("before_backward", loss) is loss


def test_a_fault_strikes_at_its_point_step_and_rank_once():
    fault.arm("rank=1,step=7,point=before_save,action=raise")
    for point, step, rank in [("before_step", 7, 1), ("before_save", 6, 1), ("before_save", 7, 0)]:
        fault.at(point, step=step, rank=rank)
    with pytest.raises(FaultError, match="before_save of step 7, rank 1"):
        fault.at("before_save", step=7, rank=1)
    fault.at("before_save", step=7, rank=1)


def test_a_point_without_a_step_takes_that_of_the_last_one_and_the_rank_of_the_environment(monkeypatch):
    monkeypatch.setenv("RANK", "3")
    fault.arm("rank=3,step=2,point=before_rename,action=raise")
    fault.at("before_step", step=1)
    fault.at("before_rename")
    fault.at("before_step", step=2)
    with pytest.raises(FaultError):
        fault.at("before_rename")


def test_passes_are_counted_and_a_count_strikes_again():
    fault.arm("point=before_backward,action=nan,pass=2,count=2")
    assert [fault.at("before_backward", step=1) for _ in range(5)] == [False, True, True, False, False]


def test_several_faults_are_parted_by_semicolons():
    first, second = parse_faults("point=before_step,action=delay:0.5;step=3,point=during_rotate,action=kill;")
    assert (first.point, first.action, first.amount, first.step) == ("before_step", "delay", 0.5, None)
    assert (second.point, second.action, second.step, second.rank) == ("during_rotate", "kill", 3, None)


def test_nan_poisons_a_tensor_and_its_gradient():
    fault.arm("point=before_backward,action=nan")
    weight = torch.ones(2, requires_grad=True)
    fault.poison("before_backward", (weight * 3).sum()).backward()
    assert torch.isnan(weight.grad).all()
    assert fault.poison("before_backward", 1.0) == 1.0  # it struck once


def test_a_spike_multiplies_a_number_and_faults_that_strike_together_do_it_both():
    spikes = "point=before_sum,action=spike:4,count=2;point=before_sum,action=spike:0.5"
    fault.arm(f"{spikes};point=before_sum,action=raise,pass=3")
    assert [fault.poison("before_sum", 3.0) for _ in range(2)] == [6.0, 12.0]
    with pytest.raises(FaultError):
        fault.poison("before_sum", 3.0)


def test_enospc_is_the_error_of_a_full_disk():
    fault.arm("point=after_shard_write,action=enospc")
    with pytest.raises(OSError, match="No space left") as caught:
        fault.at("after_shard_write")
    assert caught.value.errno == errno.ENOSPC


def test_a_delay_sleeps():
    fault.arm("point=before_step,action=delay:0.05")
    start = time.monotonic()
    fault.at("before_step", step=1)
    assert time.monotonic() - start >= 0.05


def test_kill_ends_the_process_itself_at_once():
    process = run_python(
        "from launch import fault; fault.arm('point=before_step,action=kill'); fault.at('before_step')"
    )
    assert process.wait(60) == -signal.SIGKILL


def test_stop_leaves_the_process_standing():
    process = run_python(
        "from launch import fault; fault.arm('point=before_step,action=stop'); fault.at('before_step')"
    )
    try:
        _, status = os.waitpid(process.pid, os.WUNTRACED)
        assert os.WIFSTOPPED(status)
    finally:
        process.kill()
        process.wait(60)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("point=before_renam,action=kill", "did you mean before_rename"),
        ("point=nowhere,action=kill", "after_shard_write"),
        ("point=before_step,action=explode", "kill, stop, raise, enospc, nan, spike, delay"),
        ("point=before_step", "names no action"),
        ("action=kill", "names no point; known: before_load"),
        ("stepp=1,point=before_step,action=kill", "did you mean step"),
        ("step=x,point=before_step,action=kill", "step is a whole number"),
        ("step=-1,point=before_step,action=kill", "step is a whole number"),
        ("step=\u0665,point=before_step,action=kill", "step is a whole number"),
        ("pass=0,point=before_step,action=kill", "at least 1"),
        ("point=before_step,point=before_save,action=kill", "not one key=value"),
        ("point=before_step,action=delay", "delay:SECONDS"),
        ("point=before_step,action=kill:3", "delay:SECONDS"),
        ("point=before_step,action=delay:-1", "from 0 to 86400"),
        ("point=before_step,action=delay:nan", "from 0 to 86400"),
        ("point=before_save,action=nan", "nan is for point=before_backward or point=before_sum"),
        ("point=before_step,action=spike:2", "spike is for point=before_backward or point=before_sum"),
        ("point=before_sum,action=spike", "delay:SECONDS and spike:FACTOR take a number"),
        ("point=before_sum,action=spike:much", "spike takes a factor from 0 to 1e+30"),
        ("kill", "not one key=value"),
    ],
)
def test_a_misspelt_specification_is_exit_2_and_says_what_there_is(text, words):
    with pytest.raises(RunError) as caught:
        parse_faults(text)
    assert caught.value.verdict.exit_code == 2
    assert words in str(caught.value)


def test_the_trainer_refuses_a_misspelt_specification_before_anything_is_written(
    tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv(fault.VARIABLE, "point=nowhere,action=kill")
    monkeypatch.setattr(train, "run", lambda *_: Verdict(0, "it trained"))
    output = tmp_path / "run"
    assert train.main(["canine-tiny-domains-char", "--output", str(output)]) == 2
    assert "unknown point 'nowhere'" in capsys.readouterr().err
    assert not output.exists()


def test_a_run_refuses_a_misspelt_specification_before_it_starts_anything(tmp_path, monkeypatch):
    monkeypatch.setenv(fault.VARIABLE, "point=nowhere,action=kill")
    plan = SimpleNamespace(environment={}, command=["false"], nodes=1, devices=1)
    verdict = execute(plan, {}, tmp_path / "run")
    assert (verdict.exit_code, "unknown point" in verdict.message) == (2, True)
    assert not (tmp_path / "run").exists()


def test_every_point_of_the_code_is_known_and_every_known_point_is_in_the_code():
    texts = [path.read_text() for path in (ROOT / "launch").rglob("*.py") if path.name != "fault.py"]
    placed = {name for text in texts for name in re.findall(r'fault\.(?:at|poison)\(\s*"(\w+)"', text)}
    assert placed == set(POINTS)
    assert set(ACTIONS) == {"kill", "stop", "raise", "enospc", "nan", "spike", "delay"}


@pytest.mark.ranks
def test_a_run_survives_a_nan_and_a_full_disk_and_the_same_command_ends_it(tmp_path):
    recipe, folder = "canine-tiny-domains-char", tmp_path / "run"
    steps = ("training.max_steps=10", "evaluation.every=5", "checkpoint.every=5")
    command = [sys.executable, "-m", "launch", "run", recipe, "--profile", "cpu", "--output", str(folder)]

    def run(text):
        environment = {**ENVIRONMENT, fault.VARIABLE: text}
        done = subprocess.run(
            [*command, *QUICK[recipe], *steps],
            cwd=ROOT,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        return done.returncode, done.stdout + done.stderr

    nan = "step=7,point=before_backward,action=nan,count=9"
    code, printed = run(f"{nan};step=10,point=after_shard_write,action=enospc")
    assert "step 7 is skipped on all ranks" in printed
    assert (code, "No space left" in printed) == (3, True), printed
    assert find_damage(folder / "checkpoint-5") is None
    assert not (folder / "checkpoint-10").exists()
    code, printed = run("")
    assert code == 0, printed
    assert find_damage(folder / "checkpoint-10") is None
