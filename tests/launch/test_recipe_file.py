import copy
import json
from pathlib import Path

import jsonschema
import pytest
import yaml

from launch.recipe_check import RecipeError
from launch.recipe_file import RECIPES, find_recipe, json_schema, read_recipe, resolved_yaml, shipped_recipes
from launch.strict_yaml import load_yaml

FIXTURES = Path(__file__).parent.parent / "recipes"
SMALL = {
    "name": "small",
    "model": {"family": "deberta", "source": "scratch", "config": {"hidden_size": 32}},
    "tokenizer": {"source": "train", "kind": "unigram", "vocab_size": 200},
    "data": {"sources": [{"kind": "text", "path": "corpus.txt"}], "row_length": 32},
    "objective": {"masking": {"kind": "whole_word"}},
    "training": {"global_batch": 8, "max_steps": 10, "learning_rate": 1e-3},
    "evaluation": {"every": 5},
    "checkpoint": {"every": 5},
}


def write(tmp_path, raw, name="small.yaml"):
    path = tmp_path / name
    path.write_text(raw if isinstance(raw, str) else yaml.safe_dump(raw))
    return path


def problems(path, overrides=()):
    with pytest.raises(RecipeError) as caught:
        read_recipe(path, overrides)
    return {problem.key: problem for problem in caught.value.problems}


def changed(**sections):
    raw = copy.deepcopy(SMALL)
    for section, values in sections.items():
        raw[section] = {**raw[section], **values} if isinstance(values, dict) and section in raw else values
    return raw


def test_ten_mistakes_in_one_file_are_reported_at_once_with_place_and_remedy():
    found = problems(FIXTURES / "ten-mistakes.yaml")
    expected = {
        "name": "that matches",
        "model.config": "vocab_size has its home in tokenizer.vocab_size",
        "model.dropout": "wanted a number at least 0 and below 1, or null, given 1.5",
        "tokenizer": "wants both kind and vocab_size",
        "data.sources.0": "unknown kind 'txt'; known kinds: 'text'",
        "data.row_length": "at least 8 and at most 16,384, given 4",
        "objective.masking.rate": "above 0 and below 1, given 15",
        "objective.masking.replace": "sum to 1",
        "training.global_batch": "at least 1, given 0",
        "training.learning_rat": "did you mean learning_rate?",
        "training.learning_rate": "is missing",
        "training.max_steps": 'a whole number at least 1 and at most 1,000,000,000, or null, given "10"',
        "evaluation.every": "at least 1, or epoch, given 0",
        "checkpoint.keep": "at least 2, given 1",
        "precission": "did you mean precision?",
    }
    assert set(found) == set(expected)
    for key, text in expected.items():
        assert text in found[key].message, key
    assert found["data.row_length"].line == 7
    assert found["precission"].line == 15


def test_every_mistake_of_a_source_has_its_own_place(tmp_path):
    """`package` is a kind of source and a key of it: the one must not be taken for the other."""
    source = "{kind: package, package: a, version: 1.0, sha256: zz, membr: x, format: nope}"
    found = problems(write(tmp_path, SMALL), [f"data.sources=[{source}]"])
    assert set(found) == {
        f"data.sources.0.{key}" for key in ("version", "sha256", "membr", "member", "format")
    }
    assert all(problem.line is None for problem in found.values())


@pytest.mark.parametrize(
    ("rule", "text"),
    [
        ('{kind: alphabet, characters: "z-a"}', "no character class"),
        ("{kind: length, min: 9, max: 3}", "max 3 is below min 9"),
    ],
)
def test_a_cleaning_rule_that_cannot_work_is_refused(rule, text, tmp_path):
    found = problems(write(tmp_path, SMALL), [f"data.clean=[{rule}]"])
    assert any(text in problem.message for problem in found.values())


def test_a_parent_that_is_not_there_is_a_problem_of_extends(tmp_path):
    child = write(tmp_path, "name: child\nextends: nowhere\n", "child.yaml")
    assert "nowhere" in problems(child)["extends"].message


def test_a_name_that_no_file_can_have_is_a_missing_recipe():
    with pytest.raises(RecipeError, match="no such file"):
        find_recipe("x" * 5000)


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("training.learning_rate=0", ("training", "learning_rate"), 0.0),
        ("training.learning_rate=1e-5", ("training", "learning_rate"), 1e-5),
        ("training.max_grad_norm=null", ("training", "max_grad_norm"), None),
        ("training.betas=[0.8, 0.9]", ("training", "betas"), (0.8, 0.9)),
        ("training.max_steps=7", ("training", "max_steps"), 7),
        ("evaluation.every=epoch", ("evaluation", "every"), "epoch"),
        ("stopping={patience: 2}", ("stopping", "patience"), 2),
        ("stopping.threshold=0.5", ("stopping", "threshold"), 0.5),
        ("name=other", ("name",), "other"),
    ],
)
def test_an_override_is_read_by_the_same_schema(tmp_path, override, key, value):
    place = read_recipe(write(tmp_path, SMALL), [override])
    for part in key:
        place = getattr(place, part)
    assert place == value


def test_an_override_replaces_the_whole_value(tmp_path):
    recipe = read_recipe(write(tmp_path, SMALL), ['data.sources=[{kind: jsonl, path: "a.jsonl"}]'])
    assert [source.kind for source in recipe.data.sources] == ["jsonl"]


@pytest.mark.parametrize(
    ("override", "key", "text"),
    [
        ("training.learning_rate=fast", "training.learning_rate", "wanted a number"),
        ("training.learing_rate=1", "training.learing_rate", "did you mean learning_rate"),
        ("training.max_steps=0", "training.max_steps", "at least 1"),
        ("training.max_steps=1.5", "training.max_steps", "whole number"),
        ("training.max_steps=true", "training.max_steps", "whole number"),
        ("nonsense", "nonsense", "dotted.key=value"),
        ("data.sources.0.path=x", "data.sources.0.path", "replace it as a whole"),
        ("training.betas=[0.9", "training.betas", "not YAML"),
        ("training=3", "training", "mapping"),
    ],
)
def test_a_wrong_override_says_what_is_wanted(tmp_path, override, key, text):
    found = problems(write(tmp_path, SMALL), [override])
    assert text in found[key].message


def test_overrides_and_file_are_reported_together(tmp_path):
    found = problems(write(tmp_path, changed(training={"global_batch": 0})), ["oops", "checkpoint.keep=1"])
    assert set(found) == {"oops", "training.global_batch", "checkpoint.keep"}


def test_a_recipe_extends_another_by_one_level(tmp_path):
    write(tmp_path, SMALL, "base.yaml")
    child = write(tmp_path, "name: child\nextends: base\ntraining: {max_steps: 3}\n", "child.yaml")
    recipe = read_recipe(child)
    assert (recipe.name, recipe.training.max_steps, recipe.training.global_batch) == ("child", 3, 8)
    grandchild = write(tmp_path, "name: grandchild\nextends: child.yaml\n", "grandchild.yaml")
    assert "one level" in problems(grandchild)["extends"].message


@pytest.mark.parametrize(
    ("sections", "key"),
    [
        ({"model": {"family": "canine"}}, "tokenizer"),
        ({"model": {"family": "canine"}}, "objective.masking.kind"),
        ({"objective": {"masking": {"kind": "character"}}}, "objective.masking.kind"),
        ({"tokenizer": None}, "tokenizer"),
        ({"model": {"source": "some/model"}}, "model"),
        ({"tokenizer": {"source": "some/model"}}, "tokenizer"),
        ({"training": {"max_steps": None}}, "training"),
        ({"training": {"warmup_steps": 10.5}}, "training"),
    ],
)
def test_sections_that_contradict_each_other_are_refused(tmp_path, sections, key):
    assert key in problems(write(tmp_path, changed(**sections)))


def test_contradictions_are_said_beside_other_errors(tmp_path):
    found = problems(write(tmp_path, changed(model={"family": "canine"}, training={"global_batch": 0})))
    assert {"tokenizer", "objective.masking.kind", "training.global_batch"} <= set(found)


@pytest.mark.parametrize("text", ["[1, 2]", "just text", "", "a: [", "a: 1\na: 2"])
def test_a_file_that_holds_no_mapping_is_a_recipe_error(tmp_path, text):
    with pytest.raises(RecipeError):
        read_recipe(write(tmp_path, text))


def test_bytes_that_are_no_utf8_are_a_recipe_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes(b"name: caf\xe9\n")
    with pytest.raises(RecipeError):
        read_recipe(path)


def test_a_missing_recipe_names_the_nearest():
    with pytest.raises(RecipeError, match="did you mean deberta-tiny-encyclopedia-wwm"):
        find_recipe("deberta-tiny-encyclopaedia-wwm")


def test_the_resolved_recipe_reads_as_the_same_recipe(tmp_path):
    for path in [write(tmp_path, SMALL), *shipped_recipes()]:
        recipe = read_recipe(path)
        again = read_recipe(write(tmp_path, resolved_yaml(recipe), "again.yaml"))
        assert again == recipe


def test_every_shipped_recipe_reads_and_fits_the_json_schema():
    assert len(shipped_recipes()) == 5
    schema = json.loads(json_schema())
    for path in shipped_recipes():
        assert read_recipe(path).name == path.stem
        jsonschema.validate(load_yaml(path.read_text()), schema)


def test_the_shipped_schema_is_the_generated_one():
    assert (RECIPES / "recipe.schema.json").read_text() == json_schema()


def test_the_schema_describes_every_field():
    schema = json.loads(json_schema())
    warmup = schema["$defs"]["Training"]["properties"]["warmup_steps"]
    assert "Below 1 a share" in warmup["description"]
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate({**SMALL, "precission": "fp16"}, schema)
