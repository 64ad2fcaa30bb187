import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipes.documents import Batch
from data_pipes.split import HashSet, OverlapError, Splitter, hash_texts

MASK = 2**64 - 1
GOLDEN = [16294208416658607535, 11297726381991289176, 4208531695879890520, 1216450231959997790]


def mix(value):
    value = (value + 0x9E3779B97F4A7C15) & MASK
    value = ((value ^ (value >> 30)) * 0xBF58476D1CE4E5B9) & MASK
    value = ((value ^ (value >> 27)) * 0x94D049BB133111EB) & MASK
    return value ^ (value >> 31)


def hash_one(text):
    total = sum(mix((position << 21) | ord(c)) for position, c in enumerate(text))
    return mix((total + len(text) * 0x9E3779B97F4A7C15) & MASK)


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9))
def test_the_hash_equals_its_definition_in_python_integers(texts):
    assert hash_texts(pa.array(texts, pa.string())).tolist() == [hash_one(text) for text in texts]


def test_the_hash_never_changes():
    texts = pa.array(["", "a", "example.com", "trilobite \u65e5\u672c \U0001f600"])
    assert hash_texts(texts).tolist() == GOLDEN


def test_the_evaluation_share_is_met_and_does_not_depend_on_batches():
    names = [f"name-{number}.org" for number in range(20_000)]
    whole = Splitter(0.1).part(Batch.from_strings(names))[1].texts.to_pylist()
    splitter = Splitter(0.1)
    parts = [splitter.part(Batch.from_strings(names[at : at + 999]))[1] for at in range(0, 20_000, 999)]
    assert [text for part in parts for text in part.texts.to_pylist()] == whole
    assert len(whole) == pytest.approx(2000, abs=4 * np.sqrt(20_000 * 0.09))


def test_a_larger_share_keeps_what_was_in_the_smaller_one():
    names = Batch.from_strings([f"{number}" for number in range(3000)])
    small, large = (set(Splitter(share).part(names)[1].texts.to_pylist()) for share in (0.05, 0.2))
    assert small < large


def test_a_group_stays_on_one_side():
    groups = [str(number % 50) for number in range(2000)]
    parts = Splitter(0.3).part(Batch.from_strings([f"text {number}" for number in range(2000)], groups))
    train, evaluation = (set(part.groups.to_pylist()) for part in parts)
    assert train
    assert evaluation
    assert not train & evaluation


def test_an_explicit_choice_stands():
    train, evaluation = Splitter(0.5).part(Batch.from_strings(["a", "b"], split="evaluation"))
    assert (len(train.texts), evaluation.texts.to_pylist()) == (0, ["a", "b"])


def test_duplicates_are_dropped_within_and_across_batches_and_the_first_stays():
    splitter = Splitter(0.0)
    first, _ = splitter.part(Batch.from_strings(["b", "a", "b", "c"]))
    second, _ = splitter.part(Batch.from_strings(["d", "c", "d"]))
    assert (first.texts.to_pylist(), second.texts.to_pylist()) == (["b", "a", "c"], ["d"])
    assert splitter.dropped == {"duplicate": 3}


@pytest.mark.parametrize("order", [("train", "evaluation"), ("evaluation", "train")])
def test_a_text_in_both_splits_is_counted_once_and_stops_the_run(order):
    splitter = Splitter(0.1)
    for split in order:
        splitter.part(Batch.from_strings([f"text {number}" for number in range(5)], split=split))
        splitter.part(Batch.from_strings([f"{split} only", "text 0"], split=split))
    with pytest.raises(OverlapError, match=r"^5 texts are in both .*'text 0'; 'text 1'; 'text 2'\. Take"):
        splitter.check_overlap()


def test_the_same_text_in_two_groups_on_two_sides_stops_the_run():
    groups = [str(number) for number in range(40)]
    splitter = Splitter(0.5)
    splitter.part(Batch.from_strings(["the same"] * 40, groups))
    with pytest.raises(OverlapError, match="1 texts"):
        splitter.check_overlap()


def test_distinct_splits_pass():
    splitter = Splitter(0.5)
    splitter.part(Batch.from_strings([str(number) for number in range(100)]))
    splitter.check_overlap()


@given(st.lists(st.lists(st.integers(0, 30), max_size=20), max_size=12))
def test_a_hash_set_is_a_set(batches):
    ours, seen = HashSet(), set()
    for batch in batches:
        wanted = []
        for value in batch:
            wanted.append(value not in seen)
            seen.add(value)
        assert ours.add(np.array(batch, np.uint64)).tolist() == wanted
    assert ours.contains(np.arange(31, dtype=np.uint64)).tolist() == [value in seen for value in range(31)]
