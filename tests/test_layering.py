"""Who may import whom, and what two packages that do not know each other must agree on."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
ALLOWED = {
    "data_pipes": {"data_pipes"},
    "modeling": {"modeling"},
    "launch": {"launch", "modeling", "data_pipes"},
}


def imports_of(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module.split(".")[0]


@pytest.mark.parametrize("package", list(ALLOWED))
def test_packages_import_in_one_direction_only(package):
    files = sorted((ROOT / package).rglob("*.py"))
    assert len(files) > 3
    for path in files:
        ours = {name for name in imports_of(path) if name in ALLOWED}
        assert ours <= ALLOWED[package], f"{path.name} imports {sorted(ours - ALLOWED[package])}"


def test_torch_is_used_where_tensors_are_made_and_moved_only():
    users = {path.name for path in (ROOT / "data_pipes").rglob("*.py") if "torch" in set(imports_of(path))}
    assert users == {"collate.py", "feed.py"}


def test_processes_are_started_in_few_places_only():
    users = {
        str(path.relative_to(ROOT))
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if "subprocess" in set(imports_of(path))
    }
    assert users == {
        "launch/run.py",
        "launch/hardware.py",
        "launch/costing/trace_cache.py",
        "launch/doctor/gpu.py",
        "launch/doctor/ops.py",
        "launch/slurm.py",
        "data_pipes/reading/packages.py",
    }


def test_the_packages_are_those_of_this_checkout():
    import data_pipes
    import launch
    import modeling

    for package in (launch, data_pipes, modeling):
        assert Path(package.__path__[0]) == ROOT / package.__name__


@pytest.mark.parametrize(
    "module",
    [
        "launch.plan",
        "launch.request",
        "launch.run",
        "launch.cli",
        "launch.corpus",
        "launch.sweeping.supply",
        "data_pipes.prepare",
    ],
)
def test_the_planning_half_imports_without_torch(module):
    code = f"import sys; sys.modules.update(torch=None, transformers=None, accelerate=None); import {module}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


def test_collate_and_canine_agree_on_the_length_of_a_row():
    from data_pipes.collate import Layout
    from modeling.canine import row_slots

    layout = Layout(kind="characters", row_length=2_000)
    for num_characters in range(1_500):
        assert layout.count_slots(num_characters) == row_slots(num_characters + 2)


def test_collate_and_modeling_agree_on_special_characters_and_labels():
    from data_pipes import collate
    from modeling import canine, heads

    assert (collate.CLS_CHARACTER, collate.SEP_CHARACTER, collate.MASK_CHARACTER) == (
        canine.CLS_CODE_POINT,
        canine.SEP_CODE_POINT,
        canine.MASK_CODE_POINT,
    )
    assert collate.NOT_A_TARGET == heads.IGNORED_LABEL


def test_no_file_is_longer_than_320_lines():
    long = {
        str(path.relative_to(ROOT)): length
        for package in ALLOWED
        for path in (ROOT / package).rglob("*.py")
        if (length := len(path.read_text().splitlines())) > 320
    }
    assert not long
