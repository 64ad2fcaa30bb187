import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CanineConfig, CanineModel, CanineTokenizer

from data_pipes.collate import Layout, collate
from data_pipes.masking import Hidden
from data_pipes.rows import Rows


def make_rows(rows, document_starts=()):
    lengths = [len(row) for row in rows]
    pieces = np.array([piece for row in rows for piece in row], np.uint32)
    offsets = np.concatenate(([0], np.cumsum(lengths))).astype(np.int64)
    starts = np.zeros(len(pieces), bool)
    starts[[offsets[row] + place for row, place in document_starts]] = True
    return Rows(pieces, offsets, np.ones(len(pieces), bool), starts)


def hide_nothing(rows):
    return Hidden(rows.pieces.copy(), np.zeros(len(rows.pieces), bool))


@settings(max_examples=80, deadline=None)
@given(data=st.data(), kind=st.sampled_from(["words", "characters"]))
def test_tensors_equal_plain_loops(data, kind):
    lengths = data.draw(st.lists(st.integers(0, 20), min_size=1, max_size=6))
    chance = np.random.default_rng(data.draw(st.integers(0, 1000)))
    rows = make_rows([chance.integers(5, 0x10FFFF, length).tolist() for length in lengths])
    if kind == "words":
        rows.document_starts[:] = chance.random(len(rows.pieces)) < 0.2
    hidden = Hidden(
        chance.integers(5, 99, len(rows.pieces)).astype(np.uint32), chance.random(len(rows.pieces)) < 0.3
    )
    batch = collate(rows, hidden, Layout(kind=kind, row_length=20, pad_piece=3))
    num_slots = batch["input_ids"].shape[1]
    parts = []
    for row, length in enumerate(lengths):
        first, part = rows.offsets[row], 1
        inputs, labels, documents = [], [], []
        for place in range(first, first + length):
            part += bool(rows.document_starts[place] and place > first)
            inputs.append(int(hidden.inputs[place]))
            labels.append(int(rows.pieces[place]) if hidden.is_target[place] else -100)
            documents.append(part)
        if kind == "characters":
            inputs, labels = [0xE000, *inputs, 0xE001], [-100, *labels, -100]
        padding = num_slots - len(inputs)
        assert batch["input_ids"][row].tolist() == inputs + [3] * padding
        assert batch["labels"][row].tolist() == labels + [-100] * padding
        assert batch["attention_mask"][row].tolist() == [1] * len(inputs) + [0] * padding
        parts.append(documents + [0] * padding)
    if max(map(max, parts), default=0) > 1:
        assert batch["document_ids"].tolist() == parts
    else:
        assert "document_ids" not in batch
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


@pytest.mark.parametrize(
    ("longest", "slots"), [(0, 8), (1, 8), (8, 8), (9, 16), (96, 96), (97, 100), (100, 100)]
)
def test_word_rows_are_rounded_up_to_eight_but_not_past_the_row_length(longest, slots):
    assert Layout(kind="words", row_length=100).count_slots(longest) == slots
    rows = make_rows([[5] * longest, [5]]) if longest else make_rows([[], []])
    batch = collate(rows, hide_nothing(rows), Layout(kind="words", row_length=100))
    assert batch["input_ids"].shape == (2, slots)


@pytest.mark.parametrize("text", ["a", "ab", "abc", "abcd", "abcde.com", "long-name-of-27-chars.co.uk"])
def test_character_rows_are_long_enough_that_canine_ignores_the_padding(text):
    torch.manual_seed(0)
    config = CanineConfig(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        num_hash_buckets=256,
    )
    model = CanineModel(config).eval()
    rows = make_rows([[ord(character) for character in text]])
    batch = collate(rows, hide_nothing(rows), Layout(kind="characters", row_length=64))
    num_real = len(text) + 2
    assert batch["input_ids"].shape[1] == 4 * -(-(num_real + 2) // 4) + 4
    longer = CanineTokenizer()(text, padding="max_length", max_length=128, return_tensors="pt")
    assert batch["input_ids"][0, :num_real].tolist() == longer["input_ids"][0, :num_real].tolist()

    def encode(tensors, num_slots):
        with torch.no_grad():
            output = model(tensors["input_ids"][:, :num_slots], tensors["attention_mask"][:, :num_slots])
        return output.last_hidden_state[0, :num_real]

    num_slots = batch["input_ids"].shape[1]
    torch.testing.assert_close(encode(batch, num_slots), encode(longer, 128), atol=2e-5, rtol=0)
    fewer = num_slots - 4
    assert (encode(batch, fewer) - encode(longer, 128)).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["words", "characters"])
def test_rows_are_rounded_up_to_the_next_shape_and_longer_ones_keep_their_length(kind):
    shapes = {"words": (16, 40, 104), "characters": (12, 40, 132)}[kind]
    exact, shaped = Layout(kind, 200), Layout(kind, 200, shapes=shapes)
    for longest in range(201):
        slots = exact.count_slots(longest)
        assert shaped.count_slots(longest) == min(
            [shape for shape in shapes if shape >= slots], default=slots
        )
    rows = make_rows([[65, 66], [67] * 9])
    batch = collate(rows, hide_nothing(rows), Layout(kind, 200, pad_piece=3, shapes=shapes[1:]))
    assert {tensor.shape for tensor in batch.values()} == {(2, 40)}
    plain = collate(rows, hide_nothing(rows), Layout(kind, 200, pad_piece=3))
    for name, tensor in batch.items():
        num_slots = plain[name].shape[1]
        assert torch.equal(tensor[:, :num_slots], plain[name])
        padding = {"input_ids": 3, "labels": -100, "attention_mask": 0}[name]
        assert (tensor[:, num_slots:] == padding).all()


def test_canine_ignores_padding_up_to_any_shape():
    torch.manual_seed(0)
    config = CanineConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        num_hash_buckets=512,
    )
    model = CanineModel(config).eval()
    for length in (5, 124, 125, 130):
        rows = make_rows([np.random.default_rng(length).integers(97, 123, length).tolist()])
        outputs = []
        for shapes in ((), (140,), (260,), (384,)):
            batch = collate(rows, hide_nothing(rows), Layout("characters", 300, shapes=shapes))
            assert not shapes or batch["labels"].shape[1] in (shapes[0], 256)
            with torch.no_grad():
                output = model(batch["input_ids"], batch["attention_mask"]).last_hidden_state
            outputs.append(output[0, : length + 2])
        for output in outputs[1:]:
            torch.testing.assert_close(output, outputs[0], atol=2e-5, rtol=0)


def test_shapes_that_no_row_can_have_are_refused():
    for shapes in ((16, 8), (8, 8)):
        with pytest.raises(ValueError, match="list each once, the shortest first"):
            Layout("words", 100, shapes=shapes)
    for shape in (104, 0, -8):
        with pytest.raises(ValueError, match="with row_length 100: no row is so long"):
            Layout("words", 100, shapes=(shape,))
    with pytest.raises(
        ValueError, match="shapes holds 20: rows of words take at least 8 slots and a multiple of 8"
    ):
        Layout("words", 100, shapes=(20,))
    for shape in (4, 18):
        with pytest.raises(ValueError, match=f"shapes holds {shape}: rows of characters .* multiple of 4"):
            Layout("characters", 100, shapes=(shape,))
    assert Layout("words", 100, shapes=(16, 100)).shapes == (16, 100)


def test_a_document_is_numbered_only_where_a_row_holds_several():
    one = make_rows([[5, 6, 7], [8]], document_starts=[(0, 0), (1, 0)])
    assert "document_ids" not in collate(one, hide_nothing(one), Layout(kind="words", row_length=8))
    two = make_rows([[5, 6, 7], [8]], document_starts=[(0, 0), (0, 2), (1, 0)])
    batch = collate(two, hide_nothing(two), Layout(kind="words", row_length=8))
    assert batch["document_ids"].tolist() == [[1, 1, 2, 0, 0, 0, 0, 0], [1, 0, 0, 0, 0, 0, 0, 0]]


def test_rows_that_a_layout_cannot_hold_are_refused():
    rows = make_rows([[5] * 9])
    with pytest.raises(ValueError, match="9 pieces but row_length is 8"):
        collate(rows, hide_nothing(rows), Layout(kind="words", row_length=8))
    packed = make_rows([[65, 66]], document_starts=[(0, 1)])
    with pytest.raises(ValueError, match="without packing"):
        collate(packed, hide_nothing(packed), Layout(kind="characters", row_length=8))
    with pytest.raises(ValueError, match="layout kind is 'pixels'"):
        Layout(kind="pixels", row_length=8)  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="row_length is 0"):
        Layout(kind="words", row_length=0)


def test_a_batch_has_the_slots_that_each_of_its_rows_needs():
    layout = Layout(kind="characters", row_length=300)
    assert (layout.count_slots(126), layout.count_slots(127)) == (256, 136)
    for lengths in ([126, 127], [127, 126, 3], [127], [0], [254, 270], [3, 20]):
        wanted = max(layout.count_slots(length) for length in lengths)
        assert layout.count_slots_of(np.array(lengths)) == wanted
    rows = Rows(
        np.full(253, 97, np.uint32), np.array([0, 127, 253]), np.ones(253, bool), np.arange(253) % 127 == 0
    )
    hidden = Hidden(rows.pieces, np.zeros(253, bool))
    assert collate(rows, hidden, layout)["input_ids"].shape == (2, 256)
