import json
from types import SimpleNamespace
from typing import Any

import pytest

from launch.checkpoints import choice, manifest
from launch.checkpoints.choice import Damage, Start, choose_start, find_start, take_up, tidy_folder
from launch.checkpoints.manifest import (
    commit_checkpoint,
    commit_model,
    find_checkpoints,
    find_damage,
    name_draft,
    read_manifest,
    seal_draft,
)
from launch.recipe_file import read_recipe, resolved_yaml
from launch.verdict import RunError
from tests.saved_job import at, make_job, open_saver


def write_draft(place, step):
    draft = name_draft(place)
    (draft / "training").mkdir(parents=True)
    (draft / "model.safetensors").write_bytes(bytes(range(256)) * 64)
    (draft / "training" / "progress.json").write_text(json.dumps({"step": step}))
    seal_draft(draft, {"step": step, "world_size": 1})
    return draft


def make_checkpoint(folder, step):
    place = folder / f"checkpoint-{step}"
    assert commit_checkpoint(write_draft(place, step), place)
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


def change_hash(place):
    raw = json.loads((place / "manifest.json").read_text())
    raw["files"]["model.safetensors"]["sha256"] = "0" * 64
    (place / "manifest.json").write_text(json.dumps(raw))


def strip_entry(place):
    raw = json.loads((place / "manifest.json").read_text())
    raw["files"]["model.safetensors"] = {}
    (place / "manifest.json").write_text(json.dumps(raw))


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
    "wrong hash": (lambda place: change_hash(place), "changed after it was written"),
    "strange entry": (lambda place: strip_entry(place), "cannot be read"),
    "no file for the manifest": (
        lambda place: (place / "manifest.json").write_text(""),
        "manifest cannot be read",
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
    assert choose_start(tmp_path, "auto") == Start(newer)
    break_it, words = DAMAGES[damage]
    break_it(newer)
    assert words in (find_damage(newer) or "")
    start = choose_start(tmp_path, "auto")
    assert start == Start(older, (Damage(newer, find_damage(newer) or ""),))
    assert newer.is_dir(), "nothing is renamed before the older one is loaded"
    (event,) = tidy_folder(tmp_path, start, 10)
    (moved,) = tmp_path.glob("damaged-20-*")
    assert (event["kind"], event["step"], event["moved_to"]) == ("damage", 10, moved.name)
    assert event["reason"] == start.damages[0].reason
    for word in ("checkpoint-20", event["reason"], moved.name, "going on from checkpoint-10"):
        assert word in event["message"]
    assert [find_damage(place) for place in find_checkpoints(tmp_path)] == [None]


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_where_no_checkpoint_is_whole_it_is_exit_4_again_and_again_and_nothing_is_touched(damage, tmp_path):
    for step in (10, 20):
        DAMAGES[damage][0](make_checkpoint(tmp_path, step))
    (tmp_path / ".checkpoint-30.partial").mkdir()
    before = sorted(tmp_path.rglob("*"))
    for _ in range(2):
        with pytest.raises(RunError, match="no whole checkpoint") as caught:
            choose_start(tmp_path, "auto")
        assert caught.value.verdict.exit_code == 4
        assert "checkpoint-10" in str(caught.value)
        assert "checkpoint-20" in str(caught.value)
        assert sorted(tmp_path.rglob("*")) == before


def test_a_checkpoint_named_by_hand_is_used_or_refused_and_no_other_is(tmp_path):
    make_checkpoint(tmp_path, 10)
    newer = make_checkpoint(tmp_path, 20)
    flip(newer / "model.safetensors")
    with pytest.raises(RunError, match="no whole checkpoint") as caught:
        choose_start(tmp_path, str(newer))
    assert caught.value.verdict.exit_code == 4
    assert newer.is_dir()


def test_a_manifest_without_a_format_is_read_and_one_of_a_later_format_is_not_damage(tmp_path):
    older, newer = make_checkpoint(tmp_path, 10), make_checkpoint(tmp_path, 20)
    raw = read_manifest(older)
    assert {key: raw[key] for key in ("format", "step", "world_size")} == {
        "format": 2, "step": 10, "world_size": 1,
    }  # fmt: skip
    (older / "manifest.json").write_text(json.dumps({"files": raw["files"]}))
    assert find_damage(older) is None
    later = {**read_manifest(newer), "format": 3}
    (newer / "manifest.json").write_text(json.dumps(later))
    with pytest.raises(RunError, match="format 3, this version reads up to 2") as caught:
        choose_start(tmp_path, "auto")
    assert caught.value.verdict.exit_code == 4
    assert newer.is_dir()


def test_a_new_folder_starts_fresh_and_never_refuses_an_old_one(tmp_path):
    assert choose_start(tmp_path, "auto") == Start()
    assert choose_start(tmp_path, "never") == Start()
    place = make_checkpoint(tmp_path, 5)
    assert choose_start(tmp_path, str(place)) == Start(place)
    with pytest.raises(RunError, match="holds a run already"):
        choose_start(tmp_path, "never")
    with pytest.raises(RunError, match="no whole checkpoint"):
        choose_start(tmp_path, str(tmp_path / "checkpoint-6"))


def finish(folder, step, reason="steps"):
    """What a run that is over leaves, its checkpoints apart."""
    commit_model(write_draft(folder / "final", step), folder / "final")
    lines = [{"kind": "train", "step": step, "loss": 1.0}, {"kind": "end", "step": step, "reason": reason}]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


def ask(folder, num_steps, *overrides, resume="auto", rank=0):
    recipe = read_recipe("canine-tiny-domains-char", [f"training.max_steps={num_steps}", *overrides])
    request: Any = SimpleNamespace(output=folder, resume=resume, recipe=recipe, accepted=())
    rest: Any = SimpleNamespace(rank=rank, num_steps=num_steps, manifest={"key": "0"})
    return request, rest, rest, rest


@pytest.mark.parametrize("rank", [0, 1])
@pytest.mark.parametrize("has_recipe", [True, False])
def test_a_run_that_is_over_is_done_without_its_checkpoints_too(has_recipe, rank, tmp_path):
    finish(tmp_path, 20)
    if has_recipe:
        (tmp_path / "recipe.resolved.yaml").write_text(resolved_yaml(ask(tmp_path, 20)[0].recipe))
    assert find_start(*ask(tmp_path, 20, rank=rank)) == (Start(), True)


def test_a_run_that_is_over_is_not_done_under_another_recipe(tmp_path):
    finish(tmp_path, 20)
    (tmp_path / "recipe.resolved.yaml").write_text(resolved_yaml(ask(tmp_path, 20)[0].recipe))
    with pytest.raises(RunError, match=r"training.seed: was .*, is 77") as caught:
        find_start(*ask(tmp_path, 20, "training.seed=77"))
    assert caught.value.verdict.exit_code == 4


def test_a_run_that_is_over_and_has_no_checkpoint_goes_no_further_and_loses_nothing(tmp_path):
    finish(tmp_path, 20)
    before = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    for _ in range(2):
        with pytest.raises(RunError, match=r"over and no checkpoint of it .* name another --out") as caught:
            find_start(*ask(tmp_path, 30))
        assert caught.value.verdict.exit_code == 4
    assert {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()} == before
    # Rank 0 alone looks, and ends the others.
    assert find_start(*ask(tmp_path, 30, rank=1)) == (Start(), False)
    place = make_checkpoint(tmp_path, 20)
    assert find_start(*ask(tmp_path, 30)) == (Start(place), False)


def test_a_later_best_model_of_a_course_that_was_left_is_set_aside_and_no_other_is(tmp_path):
    make_checkpoint(tmp_path, 10)
    for step, is_other, is_left in ((15, False, False), (10, True, False), (15, True, True)):
        commit_model(write_draft(tmp_path / "best", step), tmp_path / "best")
        events = tidy_folder(tmp_path, Start(tmp_path / "checkpoint-10"), 10, is_other_course=is_other)
        assert (tmp_path / "best").exists() is not is_left
        assert len(events) == is_left
    (left,) = tmp_path.glob("left-best-*")
    assert read_manifest(left)["step"] == 15
    assert f"best is of step 15 of a course that the run has left: set aside as {left.name}" in str(events)


@pytest.mark.parametrize(
    ("is_named", "override", "is_left"),
    [
        (False, "logging.every=7", False),
        (False, "evaluation.every=7", True),
        (True, "logging.every=7", True),
    ],
)
def test_a_start_by_hand_or_under_a_changed_recipe_is_another_course(
    is_named, override, is_left, tmp_path, monkeypatch
):
    monkeypatch.setattr(choice, "write_run_files", lambda *_: None)
    with open_saver(tmp_path) as saver:
        saver.save_last(at(1))
        saver.keep_best(at(2))
    place = tmp_path / "checkpoint-1"
    request: Any = SimpleNamespace(output=tmp_path, resume=str(place) if is_named else "auto", accepted=())
    progress, events = take_up(make_job(override), Start(place), request)
    assert progress.step == 1
    assert (tmp_path / "best").exists() is not is_left
    assert len(events) == is_left


def test_drafts_and_strangers_are_no_checkpoints(tmp_path):
    (tmp_path / ".checkpoint-30.partial").mkdir()
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-40").write_text("a file")
    assert find_checkpoints(tmp_path) == []
    assert find_checkpoints(tmp_path / "nowhere") == []


def test_checkpoints_of_a_course_that_was_left_are_set_aside_and_kept(tmp_path):
    for step in (2, 4, 6):
        make_checkpoint(tmp_path, step)
    assert tidy_folder(tmp_path, Start(tmp_path / "checkpoint-2"), 2) == []
    assert [place.name for place in find_checkpoints(tmp_path)] == ["checkpoint-2"]
    left = sorted(path.name.rsplit("-", 1)[0] for path in tmp_path.glob("left-*"))
    assert left == ["left-4", "left-6"]


def test_a_name_that_is_taken_is_not_written_over_when_something_is_set_aside(tmp_path):
    for _ in range(3):
        manifest.set_aside(make_checkpoint(tmp_path, 7), "damaged")
    assert len(list(tmp_path.glob("damaged-7-*"))) == 3


def test_drafts_have_names_of_their_own_at_each_attempt(tmp_path):
    assert name_draft(tmp_path / "checkpoint-5") != name_draft(tmp_path / "checkpoint-5")


@pytest.mark.parametrize("commit", [commit_checkpoint, commit_model])
def test_every_file_and_folder_is_flushed_before_the_folder_has_its_name(commit, tmp_path, monkeypatch):
    place = tmp_path / "checkpoint-5"
    flushed, flush = [], manifest.flush

    def note(path):
        flushed.append((path.relative_to(tmp_path), place.exists()))
        flush(path)

    monkeypatch.setattr(manifest, "flush", note)
    draft = write_draft(place, 5)
    inside = {path.relative_to(tmp_path) for path in [*draft.rglob("*"), draft]}
    assert inside == {path for path, is_there in flushed if not is_there}
    commit(draft, place)
    assert flushed[-1] == (tmp_path.relative_to(tmp_path), True)


def test_a_commit_that_fails_leaves_the_old_model_as_it_was(tmp_path, monkeypatch):
    place = tmp_path / "best"
    commit_model(write_draft(place, 5), place)
    draft = write_draft(place, 6)

    def fail(point):
        if point == "before_rename":
            raise OSError("no space left")

    monkeypatch.setattr(manifest.fault, "at", fail)
    with pytest.raises(OSError, match="no space"):
        commit_model(draft, place)
    assert read_manifest(place)["step"] == 5
    assert find_damage(place) is None


def test_a_part_that_another_rank_wrote_and_that_is_not_there_is_an_error(tmp_path):
    draft = tmp_path / ".draft"
    draft.mkdir()
    (draft / "shard-0").write_bytes(b"1234")
    entry = {"bytes": 4, "sha256": "0" * 64}
    assert seal_draft(draft, {}, {"shard-0": entry})["shard-0"] == entry, "it is not hashed twice"
    with pytest.raises(OSError, match="shard-1"):
        seal_draft(draft, {}, {"shard-1": entry})
    with pytest.raises(OSError, match="not the 5 bytes"):
        seal_draft(draft, {}, {"shard-0": {**entry, "bytes": 5}})


def test_a_folder_of_somebody_else_in_the_place_of_a_model_is_kept(tmp_path):
    (tmp_path / "best").mkdir()
    (tmp_path / "best" / "mine").write_text("by hand")
    commit_model(write_draft(tmp_path / "best", 5), tmp_path / "best")
    (left,) = tmp_path.glob("left-best-*")
    assert (left / "mine").read_text() == "by hand"
    assert read_manifest(tmp_path / "best")["step"] == 5
