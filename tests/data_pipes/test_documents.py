from itertools import pairwise

import numpy as np
import pyarrow as pa
from hypothesis import given
from hypothesis import strategies as st

from data_pipes.documents import Batch, flatten_code_points

TEXTS = st.lists(st.text(st.characters(exclude_categories=["Cs"]), max_size=12), max_size=8)


@given(TEXTS, st.integers(0, 3))
def test_flat_code_points_equal_the_characters_of_each_text(texts, skipped):
    code_points, offsets = flatten_code_points(pa.array(texts, pa.string())[skipped:])
    got = [code_points[a:b].tolist() for a, b in pairwise(offsets)]
    assert got == [[ord(c) for c in text] for text in texts[skipped:]]
    assert code_points.dtype == np.uint32
    assert offsets.dtype == np.int64


def test_lone_surrogates_are_replaced_and_mark_their_document():
    batch = Batch.from_strings(["plain", "bad \ud800 end", "whole \ud83d\ude00 pair"])
    assert batch.texts.to_pylist() == ["plain", "bad \ufffd end", "whole \U0001f600 pair"]
    assert batch.is_damaged.tolist() == [False, True, False]


def test_a_replacement_character_of_the_text_itself_is_no_damage():
    assert not Batch.from_strings(["given \ufffd", "\ud800"]).is_damaged[0]


def test_the_head_of_a_batch_keeps_all_columns_aligned():
    head = Batch.from_strings(["a", "\ud800", "c"], ["1", "2", "3"], "train").head(2)
    assert (head.texts.to_pylist(), head.groups.to_pylist()) == (["a", "\ufffd"], ["1", "2"])
    assert (head.is_damaged.tolist(), head.split) == ([False, True], "train")
