import os
import signal
import sys
import threading
import time

import pytest

from launch.command import build_command, build_environment, command_text
from launch.hardware import find_profile, load_profiles
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_file import read_recipe
from launch.run import execute
from launch.steps import Corpus
from launch.verdict import Verdict, clear_verdict, read_verdict, write_verdict

CORPUS = Corpus(97_657, 50_000_000, "declared")


def plan_with(command, **changes):
    plan = make_plan(read_recipe("deberta-tiny-encyclopedia-wwm"), load_profiles()["cpu"], Options(), CORPUS)
    return plan.model_copy(update={"command": command, **changes})


def python(code):
    return [sys.executable, "-c", code]


def test_the_trainers_own_verdict_is_the_runs(tmp_path):
    code = (
        "from pathlib import Path; from launch.verdict import Verdict, write_verdict; import sys\n"
        f"write_verdict(Path({str(tmp_path)!r}), Verdict(5, 'diverged')); sys.exit(1)"
    )
    assert execute(plan_with(python(code)), {}, tmp_path) == Verdict(5, "diverged")


def test_a_launcher_that_ends_without_a_verdict_is_a_defect(tmp_path):
    assert execute(plan_with(python("raise SystemExit(9)")), {}, tmp_path).exit_code == 1
    assert execute(plan_with(python("pass")), {}, tmp_path).exit_code == 0


def test_an_old_verdict_is_not_taken_for_a_new_one(tmp_path):
    write_verdict(tmp_path, Verdict(5, "old"))
    assert execute(plan_with(python("pass")), {}, tmp_path).exit_code == 0


def test_what_a_launcher_says_after_the_verdict_goes_into_its_log_only(tmp_path, capfdbinary):
    code = (
        "from pathlib import Path; from launch.verdict import Verdict, write_verdict; import sys, time\n"
        "print('the reason', file=sys.stderr, flush=True); time.sleep(0.5)\n"
        f"write_verdict(Path({str(tmp_path)!r}), Verdict(5, 'diverged'))\n"
        "print('a traceback of the launcher', file=sys.stderr)"
    )
    execute(plan_with(python(code)), {}, tmp_path)
    shown = capfdbinary.readouterr().err
    assert b"the reason" in shown
    assert b"traceback" not in shown
    assert b"a traceback of the launcher" in (tmp_path / "launcher.log").read_bytes()


def test_a_signal_reaches_the_process_and_its_children(tmp_path):
    marks = [tmp_path / "parent", tmp_path / "child"]
    child = f"import signal, pathlib, time; signal.signal(15, lambda *_: (pathlib.Path({str(marks[1])!r}).touch(), exit(0))); pathlib.Path({str(tmp_path / 'ready')!r}).touch(); time.sleep(30)"  # noqa: E501
    code = (
        "import subprocess, signal, pathlib, sys\n"
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}])\n"
        f"signal.signal(15, lambda *_: pathlib.Path({str(marks[0])!r}).touch())\n"
        "child.wait(); sys.exit(9)"
    )
    (tmp_path / "checkpoint-40").mkdir()

    def interrupt():
        while not (tmp_path / "ready").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=interrupt, daemon=True).start()
    verdict = execute(plan_with(python(code)), {}, tmp_path)
    assert verdict == Verdict(143, "stopped by SIGTERM; the same command goes on from checkpoint-40")
    assert all(mark.exists() for mark in marks)
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL


def test_several_machines_want_their_rank_in_the_environment(tmp_path, monkeypatch):
    monkeypatch.delenv("NODE_RANK", raising=False)
    verdict = execute(plan_with(["accelerate", "$NODE_RANK"], nodes=2), {}, tmp_path)
    assert verdict.exit_code == 2
    assert "NODE_RANK" in verdict.message


def test_the_first_verdict_stands_until_it_is_cleared(tmp_path):
    write_verdict(tmp_path, Verdict(4, "first"))
    write_verdict(tmp_path, Verdict(1, "second"))
    assert read_verdict(tmp_path) == Verdict(4, "first")
    clear_verdict(tmp_path)
    assert read_verdict(tmp_path) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("devices", [1, 2])
def test_the_command_names_everything_the_trainer_needs_to_plan_the_same(devices, tmp_path):
    recipe, profile = read_recipe("deberta-tiny-encyclopedia-wwm"), find_profile("cpu")
    options = Options(devices=devices, micro_batch=8)
    plan = make_plan(recipe, profile, options, CORPUS)
    output = tmp_path / "a run; echo $HOME"
    command = build_command(plan, profile, "name", output=output, extra=["training.max_steps=5"])
    launcher = "accelerate launch --config_file"
    more = "--mixed_precision no --dynamo_backend no -m launch.train name --output"
    rest = f"--devices {devices} --nodes 1 --profile cpu --sharding none --micro-batch 8 --checkpointing off"
    rest += " --loss-chunk off --attention fast training.max_steps=5"
    assert command == [
        *launcher.split(), f"{output}/accelerate.yaml", *more.split(), str(output), *rest.split(),
    ]  # fmt: skip
    environment = build_environment(plan, profile, num_cores=4)
    assert environment == {"OMP_NUM_THREADS": str(4 // devices), "DS_ACCELERATOR": "cpu"}
    text = command_text(plan.model_copy(update={"command": command, "environment": environment}))
    assert f"'{output}'" in text


def test_an_own_gpu_is_passed_on_by_its_figures(tmp_path):
    recipe, profile = read_recipe("deberta-v3-base-paleo-wwm"), find_profile("", 24, 8.9)
    plan = make_plan(recipe, profile, Options(), CORPUS)
    assert plan.precision == "bf16"
    command = build_command(plan, profile, "name", output=tmp_path)
    assert "--gpu-memory-gb 24 --compute-capability 8.9" in " ".join(command)


def test_machines_meet_as_the_options_say(tmp_path):
    recipe, profile = read_recipe("deberta-v3-base-paleo-wwm"), find_profile("a100-40gb")
    for rendezvous in ("static", "c10d"):
        plan = make_plan(recipe, profile, Options(nodes=2, rendezvous=rendezvous), CORPUS)
        command = " ".join(build_command(plan, profile, "name", output=tmp_path))
        assert "--machine_rank $NODE_RANK --main_process_ip $MASTER_ADDR" in command
        assert ("--rdzv_backend c10d" in command) == (rendezvous == "c10d")
