import errno
import os
import signal
import subprocess
import sys
import threading
import time
from types import SimpleNamespace

import pytest

from launch import lock, run
from launch.command import build_command, build_environment, command_text
from launch.hardware import find_profile, load_profiles
from launch.liveness import Beat, write_beat
from launch.lock import hold
from launch.options import Options
from launch.plan import make_plan
from launch.process import Process, find_marked
from launch.recipe_file import read_recipe
from launch.run import execute
from launch.steps import Corpus
from launch.verdict import UNDER_RUN, Verdict, clear_verdict, read_verdict, write_verdict
from tests.commands import ROOT

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


def test_a_machine_without_the_launcher_is_told_so_and_its_folder_is_as_before(tmp_path):
    verdict = execute(plan_with(["no-such-launcher", "launch"]), {"a.yaml": "a: 1\n"}, tmp_path)
    assert verdict.exit_code == 3
    assert "no-such-launcher" in verdict.message
    assert "pip install accelerate" in verdict.message
    assert list(tmp_path.iterdir()) == []


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


BEAT = """
import os, signal, subprocess, sys, time
from pathlib import Path
from launch.liveness import Beat, write_beat
from launch.process import Process
from launch.verdict import UNDER_RUN, Verdict, write_verdict
folder = Path({folder!r})
def beat(rank, pid, phase="step"):
    write_beat(folder, Beat(rank, Process.of(pid), os.environ[UNDER_RUN], phase, 41))
"""


def ranks(folder, code):
    return plan_with(python(BEAT.format(folder=str(folder)) + code), devices=1)


def test_a_folder_that_is_held_is_not_touched(tmp_path):
    write_verdict(tmp_path, Verdict(5, "of the run that is there"))
    with hold(tmp_path, "another"):
        before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
        verdict = execute(plan_with(python("pass")), {"accelerate.yaml": "x"}, tmp_path)
        assert {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()} == before
    assert verdict.exit_code == 7
    assert f"run {os.getpid()} on" in verdict.message
    assert execute(plan_with(python("pass")), {}, tmp_path).exit_code == 0


def test_the_second_of_several_machines_takes_no_lock(tmp_path, monkeypatch):
    for name, value in (("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)
    with hold(tmp_path, "the first machine"):
        assert execute(plan_with(python("pass"), nodes=2), {}, tmp_path).exit_code == 0
        monkeypatch.setenv("NODE_RANK", "0")
        assert execute(plan_with(python("pass"), nodes=2), {}, tmp_path).exit_code == 7


@pytest.fixture
def second_machine(monkeypatch):
    for name, value in (("NODE_RANK", "1"), ("MASTER_ADDR", "a"), ("MASTER_PORT", "1")):
        monkeypatch.setenv(name, value)


def test_the_second_machine_changes_nothing_of_a_run_that_the_first_has_in_the_folder(
    tmp_path, second_machine
):
    """It is late, or was started by mistake, with another plan perhaps."""
    texts = {"accelerate.yaml": "the first's", "ds_config.json": "the first's"}
    with hold(tmp_path, "the first machine"):
        write_verdict(tmp_path, Verdict(5, "of the first"))
        (tmp_path / "launcher.log").write_text("of the first\n")
        for name, text in texts.items():
            (tmp_path / name).write_text(text)
        configs = {"accelerate.yaml": "another", "more.yaml": "missing"}
        noisy = python("import sys; print('of the second', file=sys.stderr)")
        verdict = execute(plan_with(noisy, nodes=2), configs, tmp_path)
        assert verdict == read_verdict(tmp_path) == Verdict(5, "of the first")
        assert {name: (tmp_path / name).read_text() for name in texts} == texts
        assert (tmp_path / "more.yaml").read_text() == "missing"
        assert (tmp_path / "launcher.log").read_text() == "of the first\nof the second\n"


def test_the_second_machine_forgets_its_own_last_run_on_a_disk_of_its_own(tmp_path, second_machine):
    write_verdict(tmp_path, Verdict(143, "stopped yesterday"))
    (tmp_path / "accelerate.yaml").write_text("of yesterday")
    (tmp_path / "launcher.log").write_text("of yesterday")
    assert execute(plan_with(python("pass"), nodes=2), {"accelerate.yaml": "new"}, tmp_path).exit_code == 0
    assert (tmp_path / "accelerate.yaml").read_text() == "new"
    assert (tmp_path / "launcher.log").read_text() == ""


def fail_with(number):
    def fail(*_, **__):
        raise OSError(number, os.strerror(number))

    return fail


def test_a_disk_without_room_for_the_lock_is_exit_3(tmp_path, monkeypatch):
    monkeypatch.setattr(lock.os, "pwrite", fail_with(errno.ENOSPC))
    verdict = execute(plan_with(python("pass")), {}, tmp_path)
    assert verdict.exit_code == 3
    assert verdict.message.startswith("launch.lock.hold failed: No space left on device; the last checkpoint")


def test_another_error_before_the_start_is_a_defect_still(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "write_configs", fail_with(errno.EACCES))
    with pytest.raises(PermissionError):
        execute(plan_with(python("pass")), {}, tmp_path)


def test_a_launcher_whose_words_find_no_room_is_not_kept_waiting(tmp_path, capfdbinary):
    """Its pipe holds 64 KiB, then it would stand until its alarm."""
    code = "import signal, sys; signal.alarm(10); sys.stderr.write('x' * 500_000)"
    (tmp_path / "launcher.log").symlink_to("/dev/full")
    assert execute(plan_with(python(code)), {}, tmp_path).exit_code == 0
    assert len(capfdbinary.readouterr().err) == 500_000


def test_a_launcher_without_a_log_is_not_kept_waiting(tmp_path, monkeypatch, capfdbinary):
    """The folder is read-only by now."""
    code = "import signal, sys; signal.alarm(10); sys.stderr.write('x' * 500_000)"
    clear = run._clear

    def clear_and_spoil(configs, output):
        clear(configs, output)
        (output / "launcher.log").unlink()
        (output / "launcher.log").mkdir()

    monkeypatch.setattr(run, "_clear", clear_and_spoil)
    assert execute(plan_with(python(code)), {}, tmp_path).exit_code == 0
    assert len(capfdbinary.readouterr().err) == 500_000


def test_a_launcher_whose_words_find_no_terminal_any_more_is_not_kept_waiting(tmp_path, monkeypatch):
    closed = SimpleNamespace(buffer=SimpleNamespace(write=fail_with(errno.EIO)))
    monkeypatch.setattr(run, "sys", SimpleNamespace(stderr=closed, executable=sys.executable))
    code = "import signal, sys; signal.alarm(10); sys.stderr.write(('x' * 99 + '\\n') * 5_000)"
    assert execute(plan_with(python(code)), {}, tmp_path).exit_code == 0
    assert (tmp_path / "launcher.log").stat().st_size == 500_000


def test_a_folder_that_cannot_be_read_for_a_moment_ends_no_run(tmp_path, monkeypatch):
    look, failures = run.Watch.look, iter(range(3))

    def look_later(watch):
        if next(failures, None) is not None:
            raise OSError(errno.ESTALE, os.strerror(errno.ESTALE))
        return look(watch)

    monkeypatch.setattr(run.Watch, "look", look_later)
    code = "beat(0, os.getpid()); time.sleep(1.5); write_verdict(folder, Verdict(143, 'saved'))"
    assert execute(ranks(tmp_path, code), {}, tmp_path) == Verdict(143, "saved")


def test_ranks_whose_files_cannot_be_read_any_more_are_remembered(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_WORD_SECONDS", 0.5)
    execution = run._Execution(python("pass"), dict(os.environ), tmp_path, "run", 1)
    execution.process.communicate()
    own = Process.of(os.getpid())
    write_beat(tmp_path, Beat(0, own, "run", "step", 41))
    assert execution._find_ranks() == [own]
    monkeypatch.setattr(run, "read_beats", fail_with(errno.ESTALE))
    assert execution._find_ranks() == [own]


def test_files_of_ranks_that_cannot_be_taken_away_change_no_verdict(tmp_path, monkeypatch):
    cleared, clear = [], run.clear_beats

    def clear_once(folder):
        cleared.append(folder)
        return clear(folder) if len(cleared) == 1 else fail_with(errno.EROFS)()

    monkeypatch.setattr(run, "clear_beats", clear_once)
    assert execute(plan_with(python("pass")), {}, tmp_path).exit_code == 0
    assert len(cleared) == 2


def test_a_lost_rank_is_named_without_the_launchers_log_too(tmp_path):
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "(folder / 'launcher.log').unlink()\n"
        "beat(1, child.pid); time.sleep(0.5); child.kill(); child.wait(); sys.exit(1)"
    )
    verdict = execute(ranks(tmp_path, code), {}, tmp_path)
    assert verdict.exit_code == 6
    assert "ended without a word in step 41" in verdict.message


def test_a_silent_rank_is_ended_on_a_full_disk_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_RANK_TIMEOUT", "1")
    monkeypatch.setattr(run, "_WORD_SECONDS", 0.5)
    monkeypatch.setattr(run, "write_verdict", fail_with(errno.ENOSPC))
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(20)'],"
        " start_new_session=True)\n"
        "beat(0, child.pid); (folder / f'ended by {-child.wait()}').touch()"
    )
    verdict = execute(ranks(tmp_path, code), {}, tmp_path)
    assert (tmp_path / "ended by 9").exists()
    assert verdict.exit_code == 6
    assert "rank 0 has not been heard of" in verdict.message


def test_a_rank_that_is_killed_is_named_with_the_signal_that_its_launcher_tells(tmp_path, capfd):
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        "beat(1, child.pid); time.sleep(0.5); child.kill(); child.wait()\n"
        "print(f'  exitcode  : -9 (pid: {child.pid})', file=sys.stderr); sys.exit(1)"
    )
    verdict = execute(ranks(tmp_path, code), {}, tmp_path)
    assert verdict.exit_code == 6
    assert verdict.message.startswith("rank 1 was killed (SIGKILL) in step 41; ")
    assert read_verdict(tmp_path) == verdict


def test_a_rank_without_a_sign_of_life_is_ended_with_all_others(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_RANK_TIMEOUT", "1")
    monkeypatch.setattr(run, "_WORD_SECONDS", 0.5)
    code = (
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'],"
        " start_new_session=True)\n"
        "beat(0, child.pid); child.wait(); (folder / 'ended').touch()"
    )
    began = time.monotonic()
    verdict = execute(ranks(tmp_path, code), {}, tmp_path)
    assert time.monotonic() - began < 20
    assert (tmp_path / "ended").exists(), "the launcher is left to end by itself"
    assert verdict.exit_code == 6
    assert "rank 0 has not been heard of for 1 s (it last stood in step 41)" in verdict.message


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_every_signal_reaches_the_ranks_as_sigterm_and_not_their_launcher(number, tmp_path):
    child = (
        "import signal, sys, time; from pathlib import Path; from launch.verdict import *\n"
        "def stop(number, frame):\n"
        f"    write_verdict(Path({str(tmp_path)!r}), Verdict(143, f'saved after {{number}}'))\n"
        "    sys.exit(143)\n"
        "signal.signal(15, stop); print('ready', flush=True); time.sleep(60)"
    )
    code = (
        f"child = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); signal.signal(15, lambda *_: (folder / 'told').touch())\n"
        "beat(0, child.pid); sys.exit(child.wait())"
    )

    def interrupt():
        while not (tmp_path / "ranks" / "0.json").exists():
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    # Whoever runs this under nohup or in the background of a shell has it ignored.
    before = signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=interrupt, daemon=True).start()
    try:
        assert execute(ranks(tmp_path, code), {}, tmp_path) == Verdict(143, "saved after 15")
    finally:
        signal.signal(number, before)
    assert not (tmp_path / "told").exists()


def test_what_is_ignored_from_outside_stays_ignored(tmp_path):
    """nohup: the terminal may go."""
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        code = f"import os, signal; os.kill({os.getpid()}, signal.SIGHUP)"
        assert execute(plan_with(python(code)), {}, tmp_path).exit_code == 0
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, previous)


def test_a_rank_that_outlives_its_launcher_is_waited_for_and_nothing_else_is_left(tmp_path, monkeypatch):
    monkeypatch.setattr(run, "_WORD_SECONDS", 0.5)
    rank = (
        BEAT.format(folder=str(tmp_path))
        + "beat(0, os.getpid()); print('ready', flush=True); time.sleep(1)\n"
        + "write_verdict(folder, Verdict(143, 'saved')); (folder / 'ranks' / '0.json').unlink()"
    )
    deaf = (
        "import signal, time; signal.signal(15, signal.SIG_IGN); print('ready', flush=True); time.sleep(60)"
    )
    code = (
        f"for words in ({rank!r}, {deaf!r}):\n"
        "    child = subprocess.Popen([sys.executable, '-c', words], stdout=subprocess.PIPE,"
        " start_new_session=True)\n"
        "    child.stdout.readline()\n"
        "os.kill(os.getpid(), 9)"
    )
    began = time.monotonic()
    assert execute(ranks(tmp_path, code), {}, tmp_path) == Verdict(143, "saved")
    assert time.monotonic() - began < 30
    assert list(find_marked(UNDER_RUN, str(Process.of(os.getpid())))) == []


def test_files_that_are_as_they_should_be_are_not_written_again(tmp_path):
    configs = {"accelerate.yaml": "one", "ds_config.json": "two"}
    execute(plan_with(python("pass")), configs, tmp_path)
    before = (tmp_path / "accelerate.yaml").stat().st_mtime_ns
    execute(plan_with(python("pass")), {**configs, "ds_config.json": "three"}, tmp_path)
    assert (tmp_path / "accelerate.yaml").stat().st_mtime_ns == before
    assert (tmp_path / "ds_config.json").read_text() == "three"


def test_what_a_killed_run_left_is_told_in_the_log(tmp_path):
    code = f"import os; from pathlib import Path; from launch.lock import hold\nwith hold(Path({str(tmp_path)!r}), 'x'): os._exit(9)"  # noqa: E501
    subprocess.run(python(code), cwd=ROOT, check=False)
    execute(plan_with(python("pass")), {}, tmp_path)
    assert b"was left behind by run" in (tmp_path / "launcher.log").read_bytes()
