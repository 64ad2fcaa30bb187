import json

import pytest

from launch.recipe_file import read_recipe
from launch.strict_yaml import load_yaml
from launch.sweeping.axes import Axis, Range, is_varied, name_values, read_space, write_override
from launch.verdict import RunError

RECIPE = "deberta-tiny-encyclopedia-wwm"


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("training.learning_rate=[1e-3, 2e-3]", (0.001, 0.002)),
        ("training.seed=[1]", (1,)),
        ("training.seed=[1, 1, 2]", (1, 2)),
        ("training.epochs=[null, 2]", (None, 2)),
        ("evaluation.every=[10, epoch]", (10, "epoch")),
        ("training.betas=[[0.9, 0.98], [0.9, 0.999]]", ([0.9, 0.98], [0.9, 0.999])),
        ("objective.masking.replace=[[1, 0, 0]]", ([1, 0, 0],)),
        ("model.config={hidden_size: 64}", None),
        ("model.config=[{hidden_size: 64}, {hidden_size: 96}]", ({"hidden_size": 64}, {"hidden_size": 96})),
        # A value of the open mapping is a number or a list of texts.
        ("model.config.hidden_size=[64, 128]", (64, 128)),
        ("model.config.pos_att_type=[p2c, c2p]", None),
        ("model.config.pos_att_type=[[p2c], [p2c, c2p]]", (["p2c"], ["p2c", "c2p"])),
        ("training.betas=[0.9, 0.98]", None),
        ("data.sources=[{kind: text, path: a.txt}, {kind: text, path: b.txt}]", None),
        ("evaluation.samples=[one, two]", None),
        ("evaluation.metrics=[loss, accuracy]", None),
        ("evaluation.metrics=[[loss], [loss, accuracy]]", (["loss"], ["loss", "accuracy"])),
        ("report_to=[tensorboard]", None),
        ("data.clean=[]", None),
        ("training.learning_rate=1e-3", None),
        # An unknown key is varied, and the recipe then says that it is none.
        ("training.learning_rat=[1, 2]", (1, 2)),
    ],
)
def test_lists_that_are_values_are_told_from_lists_of_values(text, values):
    space = read_space([text, "training.weight_decay=[0, 0.1]"], is_search=False)
    key = text.partition("=")[0]
    if values is None:
        assert space.fixed == (text,)
    else:
        assert space.axes[0] == Axis(key, values)
    assert space.axes[-1].key == "training.weight_decay"


def test_every_list_in_a_shipped_recipe_is_one_value():
    tree = read_recipe(RECIPE).model_dump(mode="json")

    def walk(node, path):
        if isinstance(node, dict):
            for key, below in node.items():
                walk(below, [*path, key])
        elif isinstance(node, list):
            assert not is_varied(".".join(path), node), path

    walk(tree, [])


def test_ranges_are_for_a_search():
    texts = ["training.learning_rate=1e-4..1e-2:log", "training.warmup_steps=1..50", "training.eps=.5..1"]
    space = read_space(texts, is_search=True)
    assert space.ranges == (
        Range("training.learning_rate", 1e-4, 1e-2, True),
        Range("training.warmup_steps", 1, 50, False),
        Range("training.eps", 0.5, 1, False),
    )
    assert [one.is_whole for one in space.ranges] == [False, True, False]
    with pytest.raises(RunError, match="--search optuna --trials N") as error:
        read_space(texts, is_search=False)
    assert str(error.value).count("drawn from") == 3


@pytest.mark.parametrize(
    ("texts", "wanted"),
    [
        (["training.seed=1"], "nothing is varied"),
        (["training.betas=[0.9, 0.98]"], "list of lists"),
        (["training.seed=[]"], "empty list"),
        (["training.seed=[1", "training.eps=[2"], "training.eps"),
        (["training.seed=[1,2]", "training.seed=[3]"], "given twice"),
        (["training.eps=2..1"], "lower bound first"),
        (["training.eps=0..1:log"], "above 0"),
        (["training.eps=1e..2"], "two numbers"),
        (["=[1,2]"], r"wanted key=\[a,b\]"),
    ],
)
def test_what_cannot_be_meant_is_said(texts, wanted):
    with pytest.raises(RunError, match=wanted) as error:
        read_space(texts, is_search=True)
    assert error.value.verdict.exit_code == 2


def test_a_path_with_dots_is_no_range():
    text = "model.source=../a..b"
    assert read_space([text, "training.seed=[1,2]"], is_search=True).fixed == (text,)


def test_combinations_are_all_there_the_last_axis_fastest():
    space = read_space(["training.seed=[1,2]", "training.eps=[3,4,5]"], is_search=False)
    assert [tuple(one.values()) for one in space.combine()] == [
        (1, 3), (1, 4), (1, 5), (2, 3), (2, 4), (2, 5)
    ]  # fmt: skip


@pytest.mark.parametrize(
    "value",
    [1, 1e-5, 1.5e20, True, None, "plain", "true", "1e-3", "two words", "a: b", "[x]", "", " a ", "#x",
     "\u00e9\n", [0.9, 0.98], ["p2c"], {"kind": "text", "path": "a b"}],
)  # fmt: skip
def test_an_override_reads_as_its_value(value):
    key, _, text = write_override("a.b", value).partition("=")
    assert key == "a.b"
    assert load_yaml(text) == value
    assert type(load_yaml(text)) is type(value)


def test_names_are_short_and_safe_and_tell_combinations_apart():
    assert name_values({"training.learning_rate": 1e-3, "training.seed": 1}) == "learning_rate=0.001,seed=1"
    assert name_values({"training.betas": [0.9, 0.98]}) == "betas=0.9+0.98"
    assert name_values({"data.a.kind": "x", "model.kind": "y"}) == "a.kind=x,model.kind=y"
    assert name_values({"evaluation.rate": None}) == "rate=null"
    texts = ["a/b", "a-b", "../a", "a b", "", ".", "x" * 300, "x" * 299 + "y"]
    names = [name_values({"model.source": text}) for text in texts]
    names += [name_values({"model.config": {"hidden_size": size}}) for size in (64, 96)]
    names += [name_values({f"a.k{n}": "v" * 30 for n in range(count)}) for count in (20, 21)]
    assert len(set(names)) == len(names)
    for name in names:
        assert len(name.encode()) < 200
        assert "/" not in name
        assert name == json.loads(json.dumps(name)).strip("./ ")
