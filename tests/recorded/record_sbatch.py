"""The batch file of 1, 8 and 4 x 8 GPUs: `python -m tests.recorded.record_sbatch`."""

from pathlib import Path

from launch.slurm import Job, render_sbatch

FOLDER = Path(__file__).parent
WORLDS = {"1x1": (1, 1), "1x8": (1, 8), "4x8": (4, 8)}
OVERRIDES = ["data.sources=[{kind: text, path: 'my corpus/*.txt'}]", 'name=a "b" $HOME `c`']


def describe(world):
    """The batch file of a world, with words that a shell would take apart."""
    nodes, devices = WORLDS[world]
    command = ["/opt/venv/bin/python", "-m", "launch", "run", "my recipe.yaml", "--nodes", str(nodes)]
    job = Job(
        "canine-c-domains-char",
        Path("/runs/a run"),
        nodes,
        devices,
        has_gpus=True,
        time="8:00:00",
        arguments=("--partition=gpu", "-A my lab"),
        setup=("module load cuda",),
    )
    words = [*command, "--devices", str(devices), *OVERRIDES]
    return render_sbatch(words, {"HF_HOME": "/data/hf home"}, job, Path("/my work"))


if __name__ == "__main__":
    for name in WORLDS:
        (FOLDER / f"{name}.sbatch").write_text(describe(name), encoding="utf-8")
