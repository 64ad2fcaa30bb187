import pytest

from launch.strict_yaml import StrictYamlError, key_lines, load_yaml


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("1E5", 1e5),
        ("2.0e-4", 2e-4),
        (".5", 0.5),
        ("10_000", 10_000),
        ("0x1f", 31),
        ("010", 10),
        ("no", "no"),
        ("on", "on"),
        ("true", True),
        ("~", None),
        ("12:30:45", "12:30:45"),
        ("2024-01-01", "2024-01-01"),
        ("0.0.7", "0.0.7"),
        ("1e", "1e"),
        ("[1, 2.5, a]", [1, 2.5, "a"]),
        ("{a: {b: 1}}", {"a": {"b": 1}}),
    ],
)
def test_scalars_are_read_as_yaml_1_2(text, value):
    read = load_yaml(text)
    assert read == value
    assert type(read) is type(value)


def test_infinity_and_nan_are_numbers():
    assert load_yaml("-.inf") == float("-inf")
    assert load_yaml(".nan") != load_yaml(".nan")


@pytest.mark.parametrize("text", ["a: 1\nb: 2\na: 3", "x: {a: 1, a: 1}", "- {k: 1, k: 2}"])
def test_a_key_that_stands_twice_is_refused_with_its_line(text):
    with pytest.raises(StrictYamlError, match=r"line \d+: the key '\w' stands twice"):
        load_yaml(text)


@pytest.mark.parametrize(
    "text", ["a: [1", "a: b: c", "{", "&a [*a", "? [1, 2]\n: x", "!!python/object:os.system x"]
)
def test_what_is_no_plain_yaml_is_refused_as_such(text):
    with pytest.raises(StrictYamlError):
        load_yaml(text)


def test_lines_of_keys_are_known():
    text = "a: 1\nb:\n  - {c: 2}\n  - d: 3\n"
    assert key_lines(text) == {
        ("a",): 1,
        ("b",): 2,
        ("b", 0): 3,
        ("b", 0, "c"): 3,
        ("b", 1): 4,
        ("b", 1, "d"): 4,
    }
