"""What a stranger's recipe, corpus or folder can do here: nothing but be read or refused."""

import ast
import json
import os
import re
import shutil
import time
from collections import Counter
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from packaging.version import Version

from data_pipes.clean import apply_rules, parse_rules
from data_pipes.documents import Batch
from data_pipes.normalize import parse_normalizers
from data_pipes.normalizing.changes import NormalizerError
from data_pipes.prepare import prepare_store
from data_pipes.rows import Rows
from launch import floors
from launch.checkpoints import manifest
from launch.checkpoints.manifest import commit_checkpoint, commit_model, find_damage, name_draft, seal_draft
from launch.checkpoints.removal import may_remove, remove_draft
from launch.checkpoints.rotation import rotate_checkpoints
from launch.export import export
from launch.floors import FLOORS, check_versions
from launch.preview import render_row
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe
from launch.report import write_report
from launch.verdict import RunError

ROOT = Path(__file__).parent.parent.parent
CANINE = "canine-tiny-domains-char"


def make_checkpoint(folder, step):
    place = folder / f"checkpoint-{step}"
    draft = name_draft(place)
    (draft / "training").mkdir(parents=True)
    (draft / "training" / "progress.json").write_text(json.dumps({"step": step}))
    seal_draft(draft)
    commit_checkpoint(draft, place)
    return place


@pytest.fixture
def elsewhere(tmp_path):
    """A folder outside of the run, with something in it that must stay."""
    folder = tmp_path / "elsewhere"
    folder.mkdir()
    (folder / "precious").write_text("kept")
    return folder


@pytest.fixture
def run_folder(tmp_path):
    folder = tmp_path / "run"
    folder.mkdir()
    return folder


# Removing


def test_rotation_follows_no_link_and_removes_nothing_that_it_did_not_make(run_folder, elsewhere):
    for step in (30, 40, 50):
        make_checkpoint(run_folder, step)
    (run_folder / "checkpoint-10").symlink_to(elsewhere)
    (run_folder / "checkpoint-20").mkdir()
    (run_folder / "checkpoint-20" / "mine").write_text("by hand")
    make_checkpoint(elsewhere, 5).rename(elsewhere / "whole")
    (run_folder / "checkpoint-15").symlink_to(elsewhere / "whole")
    rotate_checkpoints(run_folder, keep=2, protected_steps=set())
    assert sorted(path.name for path in run_folder.iterdir()) == [
        "checkpoint-10", "checkpoint-15", "checkpoint-20", "checkpoint-40", "checkpoint-50",
    ]  # fmt: skip
    assert (elsewhere / "precious").read_text() == "kept"
    assert find_damage(elsewhere / "whole") is None


def test_a_link_in_the_place_of_a_draft_goes_and_what_it_leads_to_stays(run_folder, elsewhere):
    for name in ("link", "file", "folder", "nothing"):
        place = run_folder / name
        if name == "link":
            place.symlink_to(elsewhere)
        elif name == "file":
            place.write_text("x")
        elif name == "folder":
            place.mkdir()
            (place / "inner").symlink_to(elsewhere)
        remove_draft(place)
        assert not os.path.lexists(place)
    assert (elsewhere / "precious").read_text() == "kept"


def test_committing_over_links_writes_into_the_run_only(run_folder, elsewhere):
    (run_folder / "checkpoint-7").symlink_to(elsewhere)
    place = make_checkpoint(run_folder, 7)
    assert not place.is_symlink()
    assert find_damage(place) is None
    (run_folder / ".best.old").symlink_to(elsewhere)
    (run_folder / "best").symlink_to(elsewhere)
    draft = run_folder / ".draft"
    shutil.copytree(place, draft)
    commit_model(draft, run_folder / "best")
    assert find_damage(run_folder / "best") is None
    assert not (run_folder / "best").is_symlink()
    assert sorted(path.name for path in elsewhere.iterdir()) == ["precious"]
    assert not os.path.lexists(run_folder / ".best.old")


def test_a_link_to_a_whole_checkpoint_is_not_kept_in_the_place_of_one(run_folder, elsewhere):
    (run_folder / "checkpoint-7").symlink_to(make_checkpoint(elsewhere, 7))
    assert not make_checkpoint(run_folder, 7).is_symlink()
    assert find_damage(elsewhere / "checkpoint-7") is None


def test_an_export_clears_no_folder_through_a_link(tmp_path, elsewhere):
    (tmp_path / ".out.partial").symlink_to(elsewhere)
    source = tmp_path / "run" / "final"
    source.mkdir(parents=True)
    (source / "config.json").write_text("{}")
    (source / "model.safetensors").write_bytes(b"no model")
    with pytest.raises(Exception, match="."):  # what it copies is no model
        export(tmp_path / "run", tmp_path / "out")
    assert sorted(path.name for path in elsewhere.iterdir()) == ["precious"]
    assert not (tmp_path / "out").exists()


def test_only_a_committed_folder_that_is_no_link_may_be_removed(run_folder, elsewhere):
    place = make_checkpoint(run_folder, 3)
    assert may_remove(place)
    (run_folder / "link").symlink_to(place)
    assert not may_remove(run_folder / "link")
    assert not may_remove(elsewhere)
    (elsewhere / "manifest.json").write_text('{"files": ["of another program"]}')
    assert not may_remove(elsewhere)
    assert not may_remove(elsewhere / "precious")
    assert not may_remove(run_folder / "nothing")


def test_folders_are_removed_and_moved_in_a_few_places_only():
    """Every other place has to be looked at: does it follow links, whose files are they?"""
    users = {
        str(path.relative_to(ROOT))
        for package in ("launch", "modeling", "data_pipes")
        for path in (ROOT / package).rglob("*.py")
        if "rmtree" in path.read_text()
    }
    # prepare.py: folders of the cache, named by their key; rmtree itself refuses a link.
    assert users <= {"launch/checkpoints/removal.py", "data_pipes/prepare.py"}


# Packages


def test_versions_below_the_floor_are_named_with_the_hole_and_what_to_do():
    old = {"torch": "2.9.1+cu128", "transformers": "5.3.0rc1", "deepspeed": "0.15.0"}
    problems = check_versions(lambda name: old.get(name, "999"))
    assert [problem.split()[0] for problem in problems] == list(old)
    assert "CVE-2025-32434" in problems[0]
    assert "pip install -U torch" in problems[0]


@pytest.mark.parametrize("text", ["2.10", "2.10.0", "2.10.0+cu126", "2.10.1.post1", "2.13.0", "3.0"])
def test_versions_from_the_floor_on_are_fine(text):
    assert check_versions(lambda name: text if name == "torch" else "999") == []


@pytest.mark.parametrize("text", ["2.10.0rc1", "2.10.0.dev20260101", "2.9.99", "1.99", "nonsense"])
def test_early_versions_of_the_floor_are_below_it(text):
    assert len(check_versions(lambda name: text if name == "torch" else "999")) == 1


def test_what_is_not_installed_is_no_problem_and_what_is_here_is_fine():
    def fail(name):
        raise PackageNotFoundError(name)

    assert check_versions(fail) == []
    assert check_versions() == []
    assert version("torch")


def test_the_package_asks_for_the_floors_itself():
    asked = dict(re.findall(r'"([A-Za-z0-9]+)>=([0-9.]+)"', (ROOT / "pyproject.toml").read_text()))
    for package, (floor, _) in FLOORS.items():
        assert Version(asked[package]) >= Version(floor), package


def test_an_old_package_stops_a_run_with_exit_3(monkeypatch):
    monkeypatch.setitem(floors.FLOORS, "torch", ("99.0", "a hole"))
    with pytest.raises(RunError, match="older than 99.0") as caught:
        floors.require_versions()
    assert caught.value.verdict.exit_code == 3


# Recipes


def test_no_text_ever_goes_through_a_shell():
    for package in ("launch", "modeling", "data_pipes"):
        for path in (ROOT / package).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Call):
                    name = ast.unparse(node.func)
                    assert name not in ("os.system", "os.popen", "eval", "exec", "subprocess.getoutput"), path
                    assert all(word.arg != "shell" for word in node.keywords), path


@pytest.mark.parametrize(
    "key",
    [
        "trust_remote_code",
        "model.trust_remote_code",
        "model.auto_map",
        "model.revision",
        "token",
        "hub.token",
    ],
)
def test_no_key_of_a_recipe_turns_on_code_or_carries_a_login(key):
    with pytest.raises(RecipeError, match="unknown key"):
        read_recipe(CANINE, [f"{key}=true"])


@pytest.mark.parametrize("characters", ["a](x+x+)+y[b", "^a", "a-z]|(x|x)*[b", "(a+)+", "\\w", "[:alpha:]"])
def test_an_alphabet_cannot_hang_a_run(characters):
    """The inside of a character class may break out of it; the engine takes linear time whatever it finds."""
    rules = parse_rules([{"kind": "alphabet", "characters": characters}])
    start = time.monotonic()
    apply_rules(Batch.from_strings(["x" * 50_000]), rules, Counter())
    assert time.monotonic() - start < 2


ALIASES = "terms:\n  a: &a [x, x, x]\n  b: [*a, *a]\n"


@pytest.mark.parametrize(
    "text", [ALIASES, "terms: " + "[" * 3000, "a: !!python/object/apply:os.system [id]", "\x00"]
)
def test_a_rule_file_is_plain_yaml(text, tmp_path):
    path = tmp_path / "rules.yaml"
    path.write_text(text)
    with pytest.raises(NormalizerError, match=r"rules\.yaml"):
        parse_normalizers([{"kind": "terms", "file": str(path)}])


def test_a_rule_file_that_is_too_long_is_not_held(tmp_path, monkeypatch):
    from data_pipes.normalizing import term_rules

    monkeypatch.setattr(term_rules, "MAX_CHARACTERS", 100)
    path = tmp_path / "rules.yaml"
    path.write_text("terms:\n  a: [" + "x, " * 60 + "x]\n")
    with pytest.raises(NormalizerError, match="longer than 100 characters"):
        parse_normalizers([{"kind": "terms", "file": str(path)}])


# Corpora


HOSTILE = [
    "[MASK] [CLS] [SEP] [PAD] [UNK] </s> <s> <mask>",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "\u202eevil\u202c \u2066x\u2069",
    "{{7*7}} {% raw %} ${HOME} $(id) `id`",
    "<script>alert(1)</script><img src=x onerror=alert(1)>",
    "../../etc/passwd; rm -rf / | cat",
    "\ue000\ue001\ue002\ue003\ue004",
]


WORDS = ("plain", "quick", "brown", "jumping", "lazy")


def prepare(tmp_path, kind, cache="cache"):
    path = tmp_path / "corpus.txt"
    filler = [f"{name} line {number} of the corpus [MASK] x" for number in range(60) for name in WORDS]
    path.write_text("\n".join(HOSTILE + filler) + "\n", encoding="utf-8")
    trained = {"train_tokenizer": {"kind": "unigram", "vocab_size": 80}} if kind == "words" else {}
    settings = {"sources": [{"kind": "text", "path": str(path)}], "kind": kind, "row_length": 64, **trained}
    return prepare_store(**settings, evaluation_share=0.1, cache_root=tmp_path / cache, num_workers=1)


def take_all(rows) -> Rows:
    return rows.take(np.arange(rows.num_rows))


def test_special_names_of_a_corpus_are_text_in_the_rows_of_a_trained_tokenizer(tmp_path):
    from data_pipes.tokens.words import load_tokenizer

    store = prepare(tmp_path, "words")
    tokenizer: Any = load_tokenizer(store.tokenizer_folder)
    special = set(tokenizer.all_special_ids) - {tokenizer.unk_token_id}
    for rows in (store.train, store.evaluation):
        taken = take_all(rows)
        # Only the collator adds [CLS], [SEP] and [MASK]; [SEP]s between packed documents are the store's.
        found = set(taken.pieces.tolist()) & special
        assert found <= {tokenizer.sep_token_id, tokenizer.cls_token_id}
        assert tokenizer.mask_token_id not in found


def test_special_characters_of_a_corpus_never_reach_a_character_model(tmp_path):
    store = prepare(tmp_path, "characters")
    for rows in (store.train, store.evaluation):
        pieces = take_all(rows).pieces
        assert not np.isin(pieces, [0, *range(0xE000, 0xE005)]).any()
    assert store.manifest["dropped"]["reserved_character"] == 1


def test_a_row_on_the_terminal_cannot_steer_it():
    import io

    from launch.terminal import Console

    row = {
        "pieces": ["\x1b[31m", "a", "\u202e"], "input": ["[MASK]", "\x9b2J", "\u202e"],
        "target": [True, True, False], "word": [0, 1, 2],
    }  # fmt: skip
    for joint in ("+", ""):
        out = io.StringIO()
        Console(file=out, width=80).print(render_row(row, "[MASK]", joint))
        assert not any(letter in out.getvalue() for letter in "\x1b\x9b\u202e")
        assert "\\x1b[31m" in out.getvalue()


def test_the_report_holds_a_corpus_as_text_and_never_as_markup(tmp_path):
    evil = HOSTILE[4]
    run = tmp_path / "run"
    run.mkdir()
    fill = {
        "kind": "fill", "step": 0, "text": evil, "completed": evil,
        "places": [{"position": 0, "candidates": [{"piece": evil, "probability": 0.5}]}],
    }  # fmt: skip
    events = [
        fill,
        {"kind": "eval", "step": 0, "loss": 1.0, "perplexity": 2.7, "accuracy": 0.1, "num_targets": 5},
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (run / "recipe.resolved.yaml").write_text(json.dumps({"name": evil, "description": evil}))
    (run / "command.txt").write_text(evil)
    html = write_report([run]).read_text()
    assert "<script>alert" not in html
    assert "<img src=x" not in html
    assert "&lt;script&gt;alert" in html


# Checkpoints


def test_names_in_a_manifest_lead_nowhere(run_folder, elsewhere):
    """Somebody else may have written the manifest: it must not make us touch other files."""
    place = make_checkpoint(run_folder, 3)
    raw = json.loads((place / manifest.MANIFEST).read_text())
    raw["files"]["../../elsewhere/precious"] = {"bytes": 4, "sha256": "0" * 64}
    (place / manifest.MANIFEST).write_text(json.dumps(raw))
    assert find_damage(place) is not None
    assert (elsewhere / "precious").read_text() == "kept"
