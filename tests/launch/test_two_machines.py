import subprocess
import sys

import pytest

from tests.commands import ENVIRONMENT, QUICK, ROOT, Ran, run_recipe

SCRIPT = ROOT / "tests/two_machines.sh"
RECIPE = "canine-tiny-domains-char"
STEPS = 6

pytestmark = pytest.mark.ranks


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    probe = subprocess.run([SCRIPT, "--probe"], capture_output=True, text=True, check=False)
    if probe.returncode == 77:
        pytest.skip(probe.stderr.strip().splitlines()[-1])
    assert probe.returncode == 0, probe.stderr
    return run_recipe(tmp_path_factory.mktemp("alone") / "run", RECIPE, "--profile", "cpu", num_steps=STEPS)


def run_on_two_machines(folder, *arguments):
    """`maskwright run` on both, with one run folder, as on the file system of a cluster."""
    halves = (f"evaluation.every={STEPS // 2}", f"checkpoint.every={STEPS // 2}")
    # SIGTERM lets the script take its namespaces away; a timeout of subprocess would kill it outright.
    command = [
        "timeout",
        "240",
        SCRIPT,
        folder,
        sys.executable,
        "-m",
        "launch",
        "run",
        RECIPE,
        "--output",
        folder / "run",
    ]
    command += [*QUICK[RECIPE], f"training.max_steps={STEPS}", *halves, "--profile", "cpu", "--nodes", "2"]
    # Which rendezvous it was, only the log of the launcher says.
    environment = {**ENVIRONMENT, "LOGLEVEL": "INFO"}
    done = subprocess.run([*command, *arguments], cwd=ROOT, env=environment, check=False)
    texts = [(folder / f"{number}.{kind}").read_text() for number in (0, 1) for kind in ("out", "err")]
    assert done.returncode == 0, "\n".join(texts)
    return Ran(0, "", texts[1] + texts[3], folder / "run")


@pytest.mark.parametrize(
    "rendezvous",
    [pytest.param("static", marks=pytest.mark.slow), pytest.param("c10d", marks=pytest.mark.long)],
)
def test_two_machines_train_as_one_process_does(alone, tmp_path, rendezvous):
    ran = run_on_two_machines(tmp_path, "--rendezvous", rendezvous)
    assert ran.losses() == pytest.approx(alone.losses(), rel=1e-5)
    scores = [[event["loss"] for event in run.events("eval")] for run in (ran, alone)]
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)
    assert len(ran.losses()) == STEPS
    spoken = {line.split(":")[-1].strip() for line in ran.stderr.splitlines() if "rdzv_backend  " in line}
    assert spoken == {rendezvous}
    machines = {line.split("=")[-1] for line in ran.stderr.splitlines() if "group_rank=" in line}
    assert machines == {"0", "1"}
