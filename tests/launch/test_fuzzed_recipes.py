"""Recipes from strangers: whatever stands in the file, there is one report and no traceback."""

import copy
import json
import math
import os
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from launch import cli, strict_yaml
from launch.recipe_check import RecipeError, check_recipe
from launch.recipe_file import read_recipe, resolved_yaml, shipped_recipes
from launch.strict_yaml import MAX_BYTES, MAX_DEPTH, StrictYamlError, key_lines, load_yaml

FUZZ = settings(deadline=None, max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 10)
)
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
SMALL_YAML = yaml.safe_dump(SMALL)


def refuse(tmp_path, content):
    """Read a file of bytes as a recipe; the one report."""
    path = tmp_path / "r.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(RecipeError) as caught:
        read_recipe(path)
    text = str(caught.value)
    assert "Traceback" not in text
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in text)
    return text


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not a NoneType"),
        (b"\xff\xfen\x00a\x00", "not UTF-8"),
        (b"name: caf\xe9\n", "not UTF-8"),
        (b"name: a\x00b\n", "special characters are not allowed"),
        (b"name: a\x1b[31mb\n", "special characters are not allowed"),
        ("- 1\n- 2\n", "not a list"),
        ("just text", "not a str"),
        ("a: 1\n---\nb: 2\n", "single document"),
        ("a: [1\n", "expected"),
        ("\ta: 1\n", "cannot start any token"),
        ("name: x\nname: y\n", "stands twice"),
        (BOMB, "anchors and aliases"),
        ("a: &a [*a]\n", "anchors and aliases"),
        ("a: &a 1\n", "anchors and aliases"),
        ("a: {<<: {b: 1}}\n", "merge keys"),
        ("a: !!python/object/apply:os.system [id]\n", "tags"),
        ("a: !!binary aGVsbG8=\n", "tags"),
        ("a: !!bool maybe\n", "tags"),
        ("a: !!timestamp never\n", "tags"),
        ("a: ! x\n", "tags"),
        ("a: " + "[" * 3000 + "]" * 3000, f"nested more than {MAX_DEPTH} deep"),
        ("".join(f"{' ' * n}a:\n" for n in range(40)) + " " * 40 + "b: 1", "nested more than"),
        ("a: " + "9" * 5000, "a number of 5,000 digits"),
        ("a: 0x" + "f" * 5000, "a number of 5,002 digits"),
        ("a: 1" + "_0" * 300, "a number of 301 digits"),
        ("a: " + "9" * 5000 + ".5", "a number of 5,002 digits"),
        ("a: 1e999", "larger than any number"),
        ("? [1, 2]\n: x\n", "plain name"),
        ("a" * (MAX_BYTES + 1), "larger than 1,048,576 bytes"),
    ],
    ids=lambda value: None if isinstance(value, bytes) else str(value)[:24],
)
def test_what_is_no_plain_small_yaml_mapping_is_one_report(content, words, tmp_path):
    assert words in refuse(tmp_path, content)


def test_a_recipe_of_the_largest_size_is_read(tmp_path):
    path = tmp_path / "large.yaml"
    head = SMALL_YAML.encode()
    path.write_bytes(head + b"#" * (MAX_BYTES - len(head)))
    assert read_recipe(path).name == "small"
    path.write_bytes(head + b"#" * (MAX_BYTES - len(head) + 1))
    with pytest.raises(RecipeError, match="larger than"):
        read_recipe(path)


def test_a_document_as_deep_as_allowed_is_read_and_one_deeper_is_not():
    assert load_yaml("[" * MAX_DEPTH + "]" * MAX_DEPTH)
    with pytest.raises(StrictYamlError, match="nested"):
        load_yaml("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1))


def test_a_byte_order_mark_does_no_harm(tmp_path):
    path = tmp_path / "bom.yaml"
    path.write_bytes(b"\xef\xbb\xbf" + SMALL_YAML.encode())
    assert read_recipe(path).name == "small"


def test_a_folder_a_pipe_and_an_endless_device_are_no_recipes(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    (tmp_path / "zero.yaml").symlink_to("/dev/zero")
    (tmp_path / "folder.yaml").mkdir()
    for name in ("pipe.yaml", "zero.yaml", "folder.yaml"):
        with pytest.raises(RecipeError, match="no such file"):
            read_recipe(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (".INF", math.inf), ("-.Inf", -math.inf), ("0o17", 15), ("+.5", 0.5), ("1.", 1.0), ("yes", "yes"),
        ("0b11", "0b11"), ("1e5", 1e5), ("1E-07", 1e-7), ("<<x", "<<x"), ("0x1F", 31), ("-0", 0),
    ],
)  # fmt: skip
def test_more_scalars_are_those_of_yaml_1_2(text, value):
    read = load_yaml(text)
    assert read == value
    assert type(read) is type(value)
    assert math.isnan(load_yaml(".NaN"))


@FUZZ
@given(
    st.one_of(
        st.text(max_size=60), st.text("{}[]&*!<>|:-?,#'\"\n\t %@~=0123456789eE._xoinfaNb ", max_size=60)
    )
)
@example("a: !<tag:yaml.org,2002:int> x")
@example("%YAML 9.9\n---\n1")
@example("%TAG ! tag:x,2002:\n---\n!y 1")
@example("0x")
@example("-")
@example("2001-99-99T99:99:99Z")
@example("1__0")
def test_any_text_is_a_value_or_a_yaml_error(text):
    try:
        value = load_yaml(text)
    except StrictYamlError:
        return
    assert json.dumps(value, default=repr)
    key_lines(text)


PLAIN = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=12),
        st.sampled_from(["10", "1e-4", "true", "no", "", "\x00", "\x1b[2J", "\ud800", "../../x", "auto"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


def list_paths(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from list_paths(item, (*path, key))


FULL: list[dict[str, Any]] = [
    json.loads(json.dumps(load_yaml(resolved_yaml(read_recipe(path))))) for path in shipped_recipes()
]
PLACES = [(number, path) for number, raw in enumerate(FULL) for path in list_paths(raw) if path]


@settings(deadline=None, max_examples=150)
@given(st.sampled_from(PLACES), PLAIN, st.sampled_from(["replace", "delete", "rename", "add"]))
def test_any_value_anywhere_gives_a_recipe_or_a_report_of_printable_text(place, value, action):
    number, path = place
    raw = copy.deepcopy(FULL[number])
    parent: Any = raw
    for key in path[:-1]:
        parent = parent[key]
    if action == "replace" or isinstance(parent, list):
        parent[path[-1]] = value
    elif action == "delete":
        del parent[path[-1]]
    elif action == "rename":
        parent[f"{path[-1]}x"] = parent.pop(path[-1])
    else:
        parent[str(value)[:20]] = value
    recipe, problems = check_recipe(raw)
    assert (recipe is None) == bool(problems)
    for problem in problems:
        assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in str(problem))
        str(problem).encode()
    if recipe is not None:
        again, none = check_recipe(load_yaml(resolved_yaml(recipe)))
        assert none == []
        assert again == recipe.model_copy(update={"extends": None})


def test_every_place_was_within_reach_of_the_fuzz():
    assert len(PLACES) > 300


@pytest.mark.parametrize(
    "value", [".nan", ".inf", "-.inf", "1e999", "true", '"5"', "[5]", "{a: 5}", "null", "5.5"]
)
@pytest.mark.parametrize("key", ["training.global_batch", "data.row_length", "checkpoint.keep"])
def test_a_whole_number_is_nothing_else(key, value, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        read_recipe(path, [f"{key}={value}"])


@pytest.mark.parametrize("value", [".nan", ".inf", "-.inf"])
@pytest.mark.parametrize(
    "key",
    ["training.learning_rate", "training.weight_decay", "training.eps", "training.max_grad_norm",
     "training.epochs", "training.warmup_steps", "stopping.threshold", "objective.masking.rate",
     "model.config.layer_norm_eps"],
)  # fmt: skip
def test_no_number_of_a_recipe_is_infinite_or_none(key, value, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    with pytest.raises(RecipeError, match=key.replace(".", r"\.")):
        read_recipe(path, [f"{key}={value}"])


@FUZZ
@given(st.text(max_size=40), st.text(max_size=40))
@example("training.learning_rate", "&a 1")
@example("training.learning_rate", "0")
@example("", "")
@example("a..b", "1")
@example("training", "\x1b[31m")
@example("name", "\udcff")
def test_any_override_is_read_or_reported(tmp_path, key, value):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    assume("\n" not in key)
    try:
        recipe = read_recipe(path, [f"{key}={value}"])
    except RecipeError as error:
        text = str(error)
    else:
        text = recipe.name
    assert text
    assert not any(ord(letter) < 32 and letter not in "\n\t" for letter in text)


def test_a_rate_of_zero_is_given_and_not_left_out(tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    assert read_recipe(path, ["training.learning_rate=0"]).training.learning_rate == 0.0


@pytest.mark.parametrize(
    "name", ["../up", "a/b", "/abs", "..", ".hidden", "-x", "a b", "a\nb", "A", "a\x00", ""]
)
def test_the_name_of_a_run_is_no_path(name, tmp_path):
    path = tmp_path / "small.yaml"
    path.write_text(SMALL_YAML)
    with pytest.raises(RecipeError, match="name"):
        read_recipe(path, [f"name={json.dumps(name)}"])


@pytest.mark.parametrize(
    "content", [BOMB, "a: [", "name: 1\nname: 2", "[]", "training: {learning_rate: .nan}"]
)
@pytest.mark.parametrize("verb", ["plan", "run"])
def test_the_command_ends_with_2_and_one_report(content, verb, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bad.yaml").write_text(content)
    assert cli.main([verb, "bad.yaml", "--profile", "cpu"]) == 2
    out, err = capsys.readouterr()
    assert "Traceback" not in out + err
    assert (out + err).count("bad.yaml:") == 1
    assert [path.name for path in tmp_path.iterdir()] == ["bad.yaml"]


def test_reading_is_quick_for_the_largest_file_of_brackets(tmp_path):
    """A quadratic scanner or a deep recursion would show here as a hang."""
    for text in ("[" * MAX_BYTES, "- " * (MAX_BYTES // 2), "a: " * 1000):
        with pytest.raises(StrictYamlError):
            load_yaml(text)
    assert strict_yaml.MAX_DEPTH < 100
