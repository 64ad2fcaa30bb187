import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import Batch, flatten_code_points
from data_pipes.duplication.hashes import BLOCK, hash_spans
from data_pipes.split import OverlapError, Splitter, choose_evaluation, hash_texts

ROOT = Path(__file__).parents[2]

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


@settings(deadline=None)
@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=9), max_size=9))
def test_the_hash_equals_its_definition_in_python_integers(texts):
    assert hash_texts(pa.array(texts, pa.string())).tolist() == [hash_one(text) for text in texts]


def test_long_texts_are_hashed_block_by_block_to_the_same():
    generator = np.random.default_rng(0)
    sizes = [3, BLOCK - 3, 0, BLOCK, 1, 2 * BLOCK + 1, 0, 5]
    texts = ["".join(map(chr, generator.integers(32, 0xD000, size))) for size in sizes]
    assert hash_texts(pa.array(texts)).tolist() == [hash_one(text) for text in texts]


def test_spans_are_hashed_as_texts_of_their_own():
    code_points, _ = flatten_code_points(pa.array(["a trilobite and a brachiopod"]))
    starts, ends = np.array([2, 5, 12, 12, 27]), np.array([5, 11, 12, 27, 27])
    wanted = [hash_one("a trilobite and a brachiopod"[a:b]) for a, b in zip(starts, ends, strict=True)]
    assert hash_spans(code_points, starts, ends).tolist() == wanted


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


ORDERS = [("train", "evaluation"), ("evaluation", "train")]


@pytest.mark.parametrize("order", ORDERS)
def test_texts_in_both_splits_stop_the_run_at_once_with_examples(order):
    splitter = Splitter(0.1)
    splitter.part(Batch.from_strings([f"text {number}" for number in range(5)], split=order[0]))
    splitter.part(Batch.from_strings([f"{order[0]} only", "text 0"], split=order[0]))
    with pytest.raises(OverlapError, match=r"^5 texts are in both .*: 'text 0'; 'text 1'; 'text 2'\. Take"):
        splitter.part(Batch.from_strings([f"text {number}" for number in range(5)], split=order[1]))


@pytest.mark.parametrize("order", ORDERS)
def test_fewer_texts_in_both_splits_are_counted_once_and_stop_the_run_at_its_end(order):
    splitter = Splitter(0.1)
    for split in order:
        splitter.part(Batch.from_strings(["a", "x" * 200, split], split=split))
        splitter.part(Batch.from_strings([f"{split} only", "a"], split=split))
    with pytest.raises(OverlapError, match=f"^2 texts are in both .*: 'a'; '{'x' * 80}'\\. Take"):
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


def make_batches(seed):
    generator = np.random.default_rng(seed)
    texts = [f"text {number}" for number in generator.integers(0, 3000, 4000)]
    return [Batch.from_strings(texts[at : at + 500]) for at in range(0, 4000, 500)]


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_restart_goes_on_from_the_saved_state(tmp_path, has_folder):
    folder = tmp_path if has_folder else None
    batches = make_batches(0)

    def part(splitter, chosen):
        return [[part.texts.to_pylist() for part in splitter.part(batch)] for batch in chosen]

    straight = Splitter(0.3)
    wanted = part(straight, batches)
    first = Splitter(0.3, folder)
    part(first, batches[:4])
    plain, arrays = first.state()
    plain = json.loads(json.dumps(plain))
    part(first, batches[4:7])  # the process dies here
    second = Splitter(0.3, folder)
    second.restore(plain, arrays)
    assert part(second, batches[4:]) == wanted[4:]
    assert second.dropped == straight.dropped
    assert (len(arrays) == 0) == has_folder


def test_overlaps_survive_a_restart():
    first = Splitter(0.1)
    first.part(Batch.from_strings(["a", "b"], split="train"))
    first.part(Batch.from_strings(["a"], split="evaluation"))
    second = Splitter(0.1)
    second.restore(*first.state())
    second.part(Batch.from_strings(["b"], split="evaluation"))
    with pytest.raises(OverlapError, match="2 texts are in both .*: 'a'; 'b'"):
        second.check_overlap()


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 40), st.booleans()), max_size=40), st.integers(1, 9))
def test_a_splitter_is_two_sets(documents, batch_size):
    splitter, seen, num_shared, num_dropped = Splitter(0.5), (set(), set()), 0, 0
    for at in range(0, len(documents), batch_size):
        chosen = documents[at : at + batch_size]
        for split in (0, 1):
            numbers = [number for number, is_evaluation in chosen if is_evaluation == split]
            batch = Batch.from_strings(
                [str(number) for number in numbers], split=("train", "evaluation")[split]
            )
            new = [
                number
                for place, number in enumerate(numbers)
                if number not in {*seen[split], *numbers[:place]}
            ]
            seen[split].update(new)
            num_shared += sum(number in seen[1 - split] for number in new)
            num_dropped += len(numbers) - len(new)
            if num_shared >= 3:
                with pytest.raises(OverlapError, match=f"^{num_shared} texts"):
                    splitter.part(batch)
                return
            assert splitter.part(batch)[split].texts.to_pylist() == [str(number) for number in new]
    assert splitter.dropped["duplicate"] == num_dropped


def test_admission_takes_hashes_and_sides_from_elsewhere():
    batch = Batch.from_strings(["a", "b", "a", "c"])
    hashes = hash_texts(batch.texts)
    is_evaluation = choose_evaluation(batch, hashes, 0.5)
    splitter = Splitter(0.5)
    assert splitter.admit(batch, hashes, is_evaluation).tolist() == [True, True, False, True]
    assert splitter.admit(batch, hashes, is_evaluation).tolist() == [False] * 4
    assert splitter.dropped == {"duplicate": 5}


def test_an_empty_batch_is_parted():
    train, evaluation = Splitter(0.5).part(Batch.from_strings([]))
    assert (train.num_documents, evaluation.num_documents) == (0, 0)


SPLIT_SCRIPT = """
import json, sys
from data_pipes.documents import Batch
from data_pipes.split import Splitter
splitter = Splitter(0.2)
groups = {} if sys.argv[2] == "texts" else {"groups": [f"g{number % 40}" for number in range(400)]}
texts = [f"text {number}" for number in range(400)]
order = json.loads(sys.argv[1])
held_out = []
for at in range(0, 400, 37):
    chosen = order[at : at + 37]
    batch = Batch.from_strings(
        [texts[number] for number in chosen],
        **{name: [keys[number] for number in chosen] for name, keys in groups.items()},
    )
    held_out += splitter.part(batch)[1].texts.to_pylist()
print(json.dumps(sorted(held_out)))
"""


@pytest.mark.parametrize("key", ["texts", "groups"])
def test_the_split_depends_neither_on_the_hash_seed_of_python_nor_on_the_order_of_files(key):
    forward = list(range(400))
    shuffled = np.random.default_rng(0).permutation(400).tolist()
    runs = [("0", forward), ("1", forward[::-1]), ("random", shuffled)]
    found = [
        subprocess.run(
            [sys.executable, "-c", SPLIT_SCRIPT, json.dumps(order), key],
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
            cwd=ROOT,
        ).stdout
        for seed, order in runs
    ]
    assert found[0] == found[1] == found[2]
    assert 20 < len(json.loads(found[0])) < 160


def test_hashes_go_to_the_folder(tmp_path):
    splitter = Splitter(0.3, tmp_path)
    splitter.part(make_batches(0)[0])
    splitter.state()
    assert [len(list((tmp_path / name).iterdir())) for name in ("train", "evaluation")] == [1, 1]
