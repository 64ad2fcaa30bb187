"""A changed recipe on resume: what is free, what is written down, what wants a flag, and what is refused."""

import json
import re
import types
from pathlib import Path
from typing import Annotated, Union, get_args, get_origin

import pytest
import yaml

from launch import recipe_policy
from launch.recipe import Recipe
from launch.recipe_change import (
    check_resume,
    describe_recipe,
    find_changes,
    parse_accepted,
    record_changes,
)
from launch.recipe_check import _models_in, check_recipe
from launch.recipe_file import read_recipe, shipped_recipes
from launch.recipe_policy import POLICIES, find_policy, take_stricter
from launch.verdict import RunError

NAME = "deberta-tiny-encyclopedia-wwm"
PLACE = Path("runs/x/checkpoint-5")


def state(recipe, step=5, data_key="text"):
    return {"recipe": describe_recipe(recipe), "data_key": data_key, "step": step}


def resume(overrides, *, base=(), name=NAME, accepted=(), step=5, data_key="text"):
    then = state(read_recipe(name, base), step)
    now = read_recipe(name, [*base, *overrides])
    changes = check_resume(then, now, data_key=data_key, place=PLACE, accepted=accepted)
    return [change.key for change in changes]


def refuse(overrides, **settings):
    with pytest.raises(RunError) as caught:
        resume(overrides, **settings)
    assert caught.value.verdict.exit_code == 4
    return str(caught.value)


def is_list(annotation):
    if get_origin(annotation) in (Annotated, Union, types.UnionType):
        return any(map(is_list, get_args(annotation)))
    return get_origin(annotation) is list


def walk_fields(models, prefix=()):
    for model in models:
        for name, field in model.model_fields.items():
            path = (*prefix, name)
            inner = _models_in(field.annotation)
            if inner:
                yield from walk_fields(inner, (*path, "*") if is_list(field.annotation) else path)
            else:
                yield ".".join(path)


def test_every_field_of_the_schema_has_exactly_one_policy_and_no_policy_is_of_a_field_that_is_gone():
    fields = set(walk_fields([Recipe]))
    assert len(fields) > 80
    heads = {field: {field[: end.start()] for end in re.finditer(r"\.|$", field)} for field in fields}
    unclassified = {field for field in fields if not heads[field] & set(POLICIES)}
    assert unclassified == set(), "decide for each what a change of it means for a run"
    assert set(POLICIES) - set().union(*heads.values()) == set()
    # Sections that have one policy for all that is or will be in them.
    sections = {"model.config", "evaluation.metrics", "tokenizer.extend.first_phase"}
    assert set(POLICIES) - fields <= sections | {"stopping", "training.spikes"}
    listed = [key for keys in recipe_policy._POLICIES.values() for key in keys.split()]
    assert len(listed) == len(set(listed))


def test_an_unknown_key_has_the_strictest_policy():
    assert find_policy(("training", "new_knob")) == "fixed"
    assert find_policy(("data", "sources", "3", "path")) == "content"
    assert take_stricter("free", "flagged") == take_stricter("flagged", "recorded") == "flagged"


def reorder(value):
    if isinstance(value, dict):
        return {key: reorder(value[key]) for key in reversed(value)}
    return [reorder(item) for item in value] if isinstance(value, list) else value


@pytest.mark.parametrize("path", shipped_recipes(), ids=lambda path: path.stem)
def test_a_recipe_survives_the_checkpoint_whatever_the_order_of_its_keys(path):
    recipe = read_recipe(path)
    kept = json.loads(json.dumps(reorder(describe_recipe(recipe))))
    again, problems = check_recipe(kept)
    assert problems == []
    assert find_changes(again, recipe) == []


@pytest.mark.parametrize(
    "override",
    [
        "evaluation.rate=0.15",  # the training rate, which it is without
        "training.betas=[0.9, 0.98]",
        "training.eps=0.000001",
        "data.bad_input={policy: raise}",
        "logging={}",
    ],
)
def test_a_default_that_is_written_out_is_no_change(override):
    recipe = read_recipe(NAME)
    assert find_changes(recipe, read_recipe(NAME, [override])) == []


def test_defaults_of_spans_and_generators_are_no_change_when_written_out():
    spans = ["objective.masking={kind: span, rate: 0.15}"]
    written = ["objective.masking={kind: span, rate: 0.15, mean_span: 3, max_span: 10}"]
    assert find_changes(read_recipe(NAME, spans), read_recipe(NAME, written)) == []
    rtd = "deberta-tiny-encyclopedia-rtd"
    default, half = (
        read_recipe(rtd, ["objective.generator={}"]),
        read_recipe(rtd, ["objective.generator={share: 0.5}"]),
    )
    assert find_changes(default, half) == []


@pytest.mark.parametrize(
    "override",
    [
        "name=other",
        "description=anew",
        "logging.every=7",
        "checkpoint.every=7",
        "checkpoint.keep=9",
        "report_to=[tensorboard]",
        "evaluation.samples=[]",
    ],
)
def test_what_does_not_touch_the_weights_is_free_and_not_even_told(override):
    assert resume([override]) == []


@pytest.mark.parametrize(
    ("override", "key"),
    [
        ("training.max_steps=999999", "training.max_steps"),
        ("evaluation.every=7", "evaluation.every"),
        ("stopping.patience=9", "stopping"),
        ("evaluation.metrics=[loss]", "evaluation.metrics"),
        ("data.expected_rows=9", "data.expected_rows"),
    ],
)
def test_a_longer_run_and_another_rhythm_are_allowed_and_told(override, key):
    assert resume([override]) == [key]


def test_the_metric_of_a_stopping_rule_is_compared_with_the_one_that_stands_for_none():
    assert resume(["stopping.metric=loss"], base=["stopping={patience: 3}"]) == []
    assert resume(["stopping=[{patience: 3, direction: lower}]"], base=["stopping={patience: 3}"]) == []


def test_a_stopping_rule_may_come_and_go_and_be_joined_by_others():
    one, two = "stopping={patience: 3}", "stopping=[{patience: 3}, {metric: accuracy}]"
    assert resume([one], base=["stopping=null"]) == ["stopping"]
    assert resume(["stopping=null"], base=[one]) == ["stopping"]
    found = resume([two], base=[one])
    assert found
    assert all(key.startswith("stopping") for key in found)


def test_what_the_best_model_is_chosen_by_stays_whether_a_condition_says_it_or_the_evaluation():
    accuracy = ["stopping={metric: accuracy}"]
    assert 'evaluation.best: was "accuracy", is "loss"' in refuse(["stopping=null"], base=accuracy)
    assert resume(["stopping=null", "evaluation.best=accuracy"], base=accuracy) == ["stopping"]


def test_what_numbers_that_go_wrong_do_is_free_or_told():
    assert resume(["training.max_skipped_in_a_row=3"]) == []
    assert resume(["training.spikes={}"]) == ["training.spikes"]
    assert resume(["training.deterministic=true"]) == ["training.deterministic"]


@pytest.mark.parametrize(
    "override",
    [
        "training.seed=7",
        "training.global_batch=8",
        "training.betas=[0.9, 0.99]",
        "training.weight_decay=0.5",
        "training.max_grad_norm=null",
        "data.limit=77",
        "data.row_length=32",
        "data.packing=false",
        "data.sources.extra=1",
        "objective.masking.rate=0.3",
        "model.dropout=0.25",
        "model.config.hidden_size=64",
        "model.config.new=1",
        "tokenizer.vocab_size=999",
        "evaluation.rate=0.5",
        "evaluation.seed=7",
        "evaluation.best=accuracy",
    ],
)
def test_what_makes_another_run_is_refused_with_key_then_and_now(override):
    if override.startswith("data.sources"):
        raw = describe_recipe(read_recipe(NAME))["data"]["sources"]
        override = f"data.sources={json.dumps([*raw, raw[0]])}"
    text = refuse([override])
    key = "data.sources.1" if override.startswith("data.sources") else override.partition("=")[0]
    assert f"  {key}: was " in text
    assert "train in another --output" in text


def test_a_flag_accepts_another_rate_and_nothing_else():
    change = ["training.learning_rate=1e-5"]
    wanted = "was 0.004, is 1e-05; to go on with it add --accept-changes training.learning_rate"
    assert wanted in refuse(change)
    assert resume(change, accepted=("training.learning_rate",)) == ["training.learning_rate"]
    assert resume([], accepted=("training.learning_rate",)) == []
    refuse(change, accepted=("training.schedule",))
    refuse(["training.seed=7"], accepted=("training.seed",))


def test_a_shorter_run_wants_the_flag_and_never_less_steps_than_are_done():
    base = ["training.max_steps=100"]
    assert "--accept-changes training.max_steps" in refuse(["training.max_steps=50"], base=base)
    shorter = {"base": base, "accepted": ("training.max_steps",)}
    assert resume(["training.max_steps=50"], **shorter) == ["training.max_steps"]
    assert "more steps already" in refuse(["training.max_steps=50"], **shorter, step=60)


def test_epochs_that_bound_a_run_make_it_shorter():
    text = refuse(["training.epochs=3"], base=["training.max_steps=100"])
    assert "training.epochs: was null, is 3.0" in text


def test_files_may_move_while_their_text_stays_the_same(tmp_path):
    base = ["data.sources=[{kind: text, path: /a}]"]
    moved = ["data.sources=[{kind: text, path: /b}]"]
    assert resume(moved, base=base) == ["data.sources.0.path"]
    text = refuse(moved, base=base, data_key="other")
    assert 'data.sources.0.path: was "/a", is "/b"; what lies there is not the same text' in text


def test_text_that_changed_in_its_place_is_refused():
    text = refuse([], data_key="other")
    assert 'data (its text): was "text", is "other"' in text


def test_a_setting_that_changes_the_text_is_told_by_its_own_name_only():
    text = refuse(["data.limit=77"], data_key="other")
    assert "data.limit" in text
    assert "its text" not in text


def test_a_section_that_came_or_went_is_one_line():
    text = refuse(["data.near_duplicates={}"])
    assert text.count("data.near_duplicates") == 1
    assert "data.near_duplicates: was null, is {" in text


def test_a_bool_is_not_a_number():
    one, true = (read_recipe(NAME, [f"model.config.some_switch={value}"]) for value in ("1", "true"))
    assert [change.key for change in find_changes(one, true)] == ["model.config.some_switch"]


def test_all_that_changed_is_said_at_once_and_long_values_are_cut():
    text = refuse(
        ["training.seed=7", f"evaluation.every={3}", "model.source=" + "x" * 500, "model.config={}"]
    )
    assert "training.seed" in text
    assert "model.source" in text
    assert max(map(len, text.splitlines())) < 300
    assert "allowed, and not in the way: evaluation.every" in text


@pytest.mark.parametrize("kept", [None, [], {"name": "x"}])
def test_a_checkpoint_without_a_recipe_that_can_be_read_is_refused_and_not_guessed(kept):
    broken = {**state(read_recipe(NAME)), "recipe": kept}
    with pytest.raises(RunError, match="not one that this version reads") as caught:
        check_resume(broken, read_recipe(NAME), data_key="text", place=PLACE)
    assert caught.value.verdict.exit_code == 4


def test_a_recipe_of_an_older_version_gets_the_defaults_of_this_one():
    older = state(read_recipe(NAME))
    for section, key in (("data", "shard_rows"), ("training", "eps")):
        del older["recipe"][section][key]
    assert check_resume(older, read_recipe(NAME), data_key="text", place=PLACE) == []


def test_a_run_of_before_there_was_a_seed_of_the_evaluation_drew_its_masks_with_that_of_the_training():
    older = state(read_recipe(NAME, ["training.seed=7"]))
    del older["recipe"]["evaluation"]["seed"]
    settings = {"data_key": "text", "place": PLACE}
    same = read_recipe(NAME, ["training.seed=7", "evaluation.seed=7"])
    assert check_resume(older, same, **settings) == []
    with pytest.raises(RunError, match=r"evaluation.seed: was 7, is 42; restore it"):
        check_resume(older, read_recipe(NAME, ["training.seed=7"]), **settings)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("training.learning_rte", "did you mean training.learning_rate"),
        ("nonsense", "known: training.max_steps"),
        ("training.seed", "wants another --output"),
        ("logging.every", "wants no flag"),
    ],
)
def test_a_key_that_cannot_be_accepted_is_exit_2(text, words):
    with pytest.raises(RunError) as caught:
        parse_accepted(text)
    assert caught.value.verdict.exit_code == 2
    assert words in str(caught.value)


def test_accepted_keys_are_parted_by_commas():
    assert parse_accepted("training.learning_rate, precision") == ("training.learning_rate", "precision")
    assert parse_accepted("") == ()


def test_changes_are_appended_to_the_run_folder(tmp_path):
    then, now = (read_recipe(NAME, [f"training.learning_rate={rate}"]) for rate in ("1e-3", "1e-4"))
    for step in (5, 9):
        accepted = ("training.learning_rate",)
        changes = check_resume(state(then, step), now, data_key="text", place=PLACE, accepted=accepted)
        record_changes(tmp_path, step, changes)
    lines = [json.loads(line) for line in (tmp_path / "changes.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [5, 9]
    assert lines[0] == {
        "step": 5, "key": "training.learning_rate", "then": 1e-3, "now": 1e-4, "accepted": True,
    }  # fmt: skip


def test_key_order_of_the_file_does_not_matter(tmp_path):
    raw = yaml.safe_load(yaml.safe_dump(describe_recipe(read_recipe(NAME))))
    path = tmp_path / "again.yaml"
    path.write_text(yaml.safe_dump(reorder(raw), sort_keys=False))
    assert find_changes(read_recipe(NAME), read_recipe(path)) == []
