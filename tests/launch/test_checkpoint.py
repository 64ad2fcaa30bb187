import json
import shutil

import pytest

from launch import checkpoint, manifest
from launch.evaluate import Score
from launch.manifest import commit_folder, find_checkpoints, find_damage
from launch.progress import Progress
from launch.resume import choose_checkpoint, set_aside_newer
from launch.verdict import RunError


def make_checkpoint(folder, step):
    draft = folder / f".checkpoint-{step}.partial"
    (draft / "training").mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (draft / "training" / "progress.json").write_text(json.dumps({"step": step}))
    place = folder / f"checkpoint-{step}"
    commit_folder(draft, place)
    return place


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def flip(path):
    data = bytearray(path.read_bytes())
    data[1000] ^= 1
    path.write_bytes(data)


def punch(path):
    data = path.read_bytes()
    path.write_bytes(data[:4096] + bytes(4096) + data[8192:])


DAMAGES = {
    "truncated": (lambda place: truncate(place / "model.safetensors"), "bytes"),
    "flipped": (lambda place: flip(place / "model.safetensors"), "changed after it was written"),
    "hole": (lambda place: punch(place / "model.safetensors"), "changed after it was written"),
    "missing": (lambda place: (place / "training" / "progress.json").unlink(), "is missing"),
    "no manifest": (lambda place: (place / "manifest.json").unlink(), "manifest cannot be read"),
    "empty manifest": (
        lambda place: (place / "manifest.json").write_text('{"files": {}}'),
        "manifest is empty",
    ),
    "cut manifest": (
        lambda place: truncate(place / "manifest.json") or truncate(place / "manifest.json"),
        "manifest",
    ),
    "list for manifest": (
        lambda place: (place / "manifest.json").write_text("[]"),
        "manifest cannot be read",
    ),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_damage_is_found_named_and_the_previous_checkpoint_is_used(damage, tmp_path):
    older, newer = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    assert find_damage(newer) is None
    assert choose_checkpoint(tmp_path, "auto") == newer
    break_it, words = DAMAGES[damage]
    break_it(newer)
    assert words in (find_damage(newer) or "")
    assert choose_checkpoint(tmp_path, "auto") == older
    break_it(older)
    with pytest.raises(RunError, match="no whole checkpoint") as caught:
        choose_checkpoint(tmp_path, "auto")
    assert caught.value.verdict.exit_code == 4
    assert "checkpoint-10" in str(caught.value)
    assert "checkpoint-20" in str(caught.value)


def test_a_new_folder_starts_fresh_and_never_refuses_an_old_one(tmp_path):
    assert choose_checkpoint(tmp_path, "auto") is None
    assert choose_checkpoint(tmp_path, "never") is None
    place = make_checkpoint(tmp_path, 5)
    assert choose_checkpoint(tmp_path, str(place)) == place
    with pytest.raises(RunError, match="holds a run already"):
        choose_checkpoint(tmp_path, "never")
    with pytest.raises(RunError, match="no whole checkpoint"):
        choose_checkpoint(tmp_path, str(tmp_path / "checkpoint-6"))


def test_drafts_and_strangers_are_no_checkpoints(tmp_path):
    (tmp_path / ".checkpoint-30.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-40").write_text("a file")
    assert find_checkpoints(tmp_path) == []
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_checkpoints_are_ordered_by_step_and_rotated_without_the_protected(tmp_path):
    for step in (5, 100, 20, 9):
        make_checkpoint(tmp_path, step)
    assert [place.name for place in find_checkpoints(tmp_path)] == [
        "checkpoint-100", "checkpoint-20", "checkpoint-9", "checkpoint-5",
    ]  # fmt: skip
    checkpoint._rotate(tmp_path, keep=2, protected_steps={5})
    assert {place.name for place in find_checkpoints(tmp_path)} == {
        "checkpoint-100",
        "checkpoint-20",
        "checkpoint-5",
    }


def test_checkpoints_of_a_course_that_was_left_are_set_aside_and_kept(tmp_path):
    for step in (2, 4, 6):
        make_checkpoint(tmp_path, step)
    set_aside_newer(tmp_path, 2)
    assert [place.name for place in find_checkpoints(tmp_path)] == ["checkpoint-2"]
    left = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.glob("left-*"))
    assert left == ["left-4", "left-6"]


@pytest.mark.parametrize("error", [OSError("no space"), RuntimeError("enforce fail at inline_container.cc")])
def test_a_disk_that_fails_is_exit_3_whatever_it_looks_like(error, tmp_path):
    with pytest.raises(RunError, match="could not be written") as caught, checkpoint._writing(tmp_path / "x"):
        raise error
    assert caught.value.verdict.exit_code == 3


def test_a_save_that_fails_leaves_the_old_folder_as_it_was(tmp_path, monkeypatch):
    place = make_checkpoint(tmp_path, 5)
    draft = tmp_path / ".draft"
    shutil.copytree(place, draft)
    (draft / "manifest.json").unlink()

    def fail(_):
        raise OSError("no space left")

    monkeypatch.setattr(manifest, "_flush", fail)
    with pytest.raises(OSError, match="no space"):
        commit_folder(draft, place)
    assert find_damage(place) is None


def score(loss, accuracy=0.5):
    return Score(loss, 2.0, accuracy, 10)


def test_the_best_is_kept_and_patience_counts_evaluations_without_enough_progress():
    progress, stale = Progress(), []
    for step, loss in enumerate([3.0, 2.0, 1.995, 1.99, 1.985, 1.5, 1.6]):
        progress = progress.at(step).judged(score(loss), "loss", threshold=0.01)
        stale.append(progress.num_stale)
    # 1.99 is within 0.01 of 2.0, 1.985 is not
    assert stale == [0, 0, 1, 2, 0, 0, 1]
    assert (progress.best_step, progress.best_value) == (5, 1.5)


def test_accuracy_gets_better_upwards():
    progress = (
        Progress().judged(score(1.0, 0.2), "accuracy", 0.0).at(1).judged(score(1.0, 0.3), "accuracy", 0.0)
    )
    assert (progress.best_step, progress.best_value, progress.num_stale) == (1, 0.3, 0)
    assert progress.at(2).judged(score(0.1, 0.3), "accuracy", 0.0).num_stale == 1
