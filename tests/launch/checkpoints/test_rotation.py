"""Whatever happens to a run folder, rotation takes no checkpoint that is wanted and nothing of others."""

import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from launch import fault
from launch.checkpoints import removal, rotation
from launch.checkpoints.choice import choose_start, tidy_folder
from launch.checkpoints.manifest import (
    commit_checkpoint,
    find_checkpoints,
    find_damage,
    find_step,
    name_draft,
    seal_draft,
)
from launch.checkpoints.rotation import rotate_checkpoints, sweep_leftovers

KEEP = 3


class CrashError(Exception):
    """The process is gone at this point."""


def write_checkpoint(folder, step):
    place = folder / f"checkpoint-{step}"
    draft = name_draft(place)
    (draft / "training").mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(os.urandom(64))
    (draft / "training" / "progress.json").write_text(json.dumps({"step": step}))
    seal_draft(draft, {"step": step})
    commit_checkpoint(draft, place)
    return place


@dataclass
class Run:
    """A run as the loop sees it, beside its folder."""

    folder: Path
    step: int = 0
    best: int | None = None
    resumed: int | None = None
    foreign: dict[str, str] = field(default_factory=dict)

    def save(self, *, crashes=False):
        self.step += 1
        write_checkpoint(self.folder, self.step)
        if crashes:
            fault.arm("point=during_rotate,action=raise")
        try:
            rotate_checkpoints(self.folder, KEEP, {self.step, self.best, self.resumed})
        except fault.FaultError:
            self.resume()
        finally:
            fault.arm("")
        ours = [place for place in find_checkpoints(self.folder) if place.name not in self.foreign]
        extra = {step for step in (self.best, self.resumed) if step is not None}
        assert len(ours) <= KEEP + len(extra)

    def fail(self):
        """A save that failed: its draft is there, nothing is rotated."""
        self.step += 1
        draft = name_draft(self.folder / f"checkpoint-{self.step}")
        draft.mkdir()
        (draft / "model.safetensors").write_bytes(b"half")

    def judge(self):
        """The newest checkpoint is that of the best evaluation."""
        place = self.folder / f"checkpoint-{self.step}"
        self.best = self.step if place.exists() and find_damage(place) is None else self.best

    def resume(self):
        start = choose_start(self.folder, "auto")
        self.step = find_step(start.place) if start.place else 0
        self.resumed = self.step if start.place else None
        if self.best is not None and self.best > self.step:
            self.best = None
        tidy_folder(self.folder, start, self.step)
        assert not [path for path in self.folder.iterdir() if path.name.startswith(".")]

    def put_stranger(self, has_manifest):
        """A folder of somebody else, named like a checkpoint older than the newest whole one of ours."""
        whole = [find_step(place) for place in find_checkpoints(self.folder) if find_damage(place) is None]
        number = len(self.foreign) + 1
        name = f"checkpoint-{number}"
        if number >= max(whole, default=0) or (self.folder / name).exists():
            name = f"checkpoint-00{number}"
        (self.folder / name).mkdir()
        (self.folder / name / "weights").write_text("mine")
        if has_manifest:
            (self.folder / name / "manifest.json").write_text('{"files": ["weights"], "by": "another"}')
        self.foreign[name] = "mine"

    def check(self, before):
        for name, text in self.foreign.items():
            assert (self.folder / name / "weights").read_text() == text
        whole = {place.name: find_damage(place) is None for place in find_checkpoints(self.folder)}
        for step in (self.best, self.resumed):
            assert step is None or whole[f"checkpoint-{step}"]
        if before is not None:
            assert any(whole.values()), "the last whole checkpoint is gone"


ACTIONS = st.sampled_from(
    ["save", "save", "save", "best", "resume", "fail", "foreign", "foreign manifest", "crash in rotation"]
)


@settings(max_examples=60, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=14))
@example(actions=["save", "foreign", *["save"] * 4])
@example(actions=["save", "foreign manifest", *["save"] * 4])
@example(actions=["save", "best", *["save"] * 4])
def test_rotation_never_takes_what_is_wanted_whatever_came_before(actions):
    with tempfile.TemporaryDirectory() as name:
        run = Run(Path(name))
        for action in actions:
            before = run.resumed if run.step == 0 else run.step
            before = before if choose_newest(run) else None
            {
                "save": run.save,
                "best": run.judge,
                "resume": run.resume,
                "fail": run.fail,
                "foreign": lambda: run.put_stranger(False),
                "foreign manifest": lambda: run.put_stranger(True),
                "crash in rotation": lambda: run.save(crashes=True),
            }[action]()
            run.check(before)


def choose_newest(run):
    return any(find_damage(place) is None for place in find_checkpoints(run.folder))


def test_at_least_two_are_kept_and_those_that_are_protected(tmp_path):
    for step in range(1, 7):
        write_checkpoint(tmp_path, step)
    assert rotate_checkpoints(tmp_path, 1, {2, None}) == []
    assert [find_step(place) for place in find_checkpoints(tmp_path)] == [6, 5, 2]


def test_folders_of_others_take_no_places_of_ours(tmp_path):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)
    for step in (7, 8):
        (tmp_path / f"checkpoint-{step}").mkdir()
    rotate_checkpoints(tmp_path, 2, set())
    assert [find_step(place) for place in find_checkpoints(tmp_path)] == [8, 7, 3, 2]


def test_an_error_in_removing_is_told_and_swept_at_the_next_start(tmp_path, monkeypatch):
    for step in (1, 2, 3):
        write_checkpoint(tmp_path, step)

    def fail(place):
        raise PermissionError(f"{place} is busy")

    monkeypatch.setattr("launch.checkpoints.removal.remove_draft", fail)
    (note,) = rotate_checkpoints(tmp_path, 2, set())
    assert "checkpoint-1 could not be removed" in note
    assert [find_step(place) for place in find_checkpoints(tmp_path)] == [3, 2]
    monkeypatch.undo()
    assert len(list(tmp_path.glob(".trash-checkpoint-1-*"))) == 1
    assert sweep_leftovers(tmp_path) == []
    assert not list(tmp_path.glob(".*"))


def test_a_sweep_takes_drafts_and_trash_and_nothing_else(tmp_path):
    gone = (
        ".checkpoint-8.partial", ".checkpoint-8.0a1b2c3d.partial", ".best.partial", ".final.01234567.partial",
        ".trash-checkpoint-3-00ff00ff", ".trash-best.old-01234567", ".trash-final.old-01234567",
        ".trash-checkpoint-3.0a1b2c3d.partial-00ff00ff", ".trash-best.0a1b2c3d.partial-00ff00ff",
    )  # fmt: skip
    kept = (
        ".git", ".checkpoint-8.old", ".mine.partial", ".lock", "checkpoint-8", ".best.old", ".trash-mine",
        ".trash-2024", ".trash-mine-00ff00ff", ".trash-checkpoint-3", ".trash-checkpoint-3-00ff00ff.tar",
        ".trash-best-00ff00ff",
    )  # fmt: skip
    for name in (*gone, *kept):
        (tmp_path / name).mkdir()
    outside = tmp_path.parent / "outside"
    outside.mkdir()
    (outside / "precious").write_text("kept")
    (tmp_path / ".trash-checkpoint-4-00ff00ff").symlink_to(outside)
    assert sweep_leftovers(tmp_path) == []
    assert {path.name for path in tmp_path.iterdir()} == set(kept)
    assert (outside / "precious").read_text() == "kept"


@pytest.mark.parametrize(
    "name",
    [
        "checkpoint-3",
        ".best.old",
        ".final.old",
        *(f".{kind}.partial" for kind in ("checkpoint-3", "best", "final")),
    ],
)
def test_what_is_removed_and_was_in_use_is_swept_under_the_name_that_it_got(name, tmp_path, monkeypatch):
    place = tmp_path / name
    if name.endswith(".partial"):
        place = name_draft(tmp_path / name.removesuffix(".partial").lstrip("."))
    place.mkdir()

    def fail(place):
        raise PermissionError(f"{place} is busy")

    monkeypatch.setattr(removal, "remove_draft", fail)
    assert "is busy" in (removal.discard(place) or "")
    monkeypatch.undo()
    assert [path.name.startswith(".trash-") for path in tmp_path.iterdir()] == [True]
    assert sweep_leftovers(tmp_path) == []
    assert list(tmp_path.iterdir()) == []


def test_a_draft_that_cannot_be_swept_stops_nothing(tmp_path, monkeypatch):
    (tmp_path / ".best.partial").mkdir()

    def fail(place):
        raise PermissionError(f"{place} is busy")

    monkeypatch.setattr(rotation, "remove_draft", fail)
    (note,) = sweep_leftovers(tmp_path)
    assert "busy" in note
