import numpy as np
import pyarrow as pa
import pytest

from data_pipes import words
from data_pipes.documents import Batch
from data_pipes.store import DOCUMENT_BIT, ID_MASK, WORD_BIT
from data_pipes.tokenize import TokenizerError
from data_pipes.words import WordEncoder, load_tokenizer, split_columns
from tests.data_pipes.tiny_tokenizers import make_unigram

TEXTS = ["the Wheeler Formation yields trilobites,", "they say", "", "the fossils " * 30] * 5


def encode_all(texts, batch_size, row_length=24, is_packed=True):
    encoder = WordEncoder(make_unigram(), row_length, is_packed)
    parts = [
        encoder.encode(Batch.from_strings(texts[start : start + batch_size]))
        for start in range(0, len(texts), batch_size)
    ]
    parts.append(encoder.finish())
    return np.concatenate([p for p, _ in parts]), np.concatenate([n for _, n in parts]), encoder


@pytest.mark.parametrize("is_packed", [True, False])
def test_rows_do_not_depend_on_batches_or_chunks(monkeypatch, is_packed):
    pieces, lengths, encoder = encode_all(TEXTS, 100, is_packed=is_packed)
    assert lengths.sum() == len(pieces)
    monkeypatch.setattr(words, "CHUNK_CHARACTERS", 50)
    for batch_size in (1, 3, 100):
        again, its_lengths, other = encode_all(TEXTS, batch_size, is_packed=is_packed)
        assert again.tolist() == pieces.tolist()
        assert its_lengths.tolist() == lengths.tolist()
        assert other.describe() == encoder.describe()


def test_the_description_counts_words_and_parts_without_special_pieces():
    pieces, _, encoder = encode_all(["the fossils, they say", "the"], 2)
    tokenizer = make_unigram()
    names = tokenizer.convert_ids_to_tokens((pieces & ID_MASK).tolist())
    assert (names[0], names[-1], names.count("[CLS]")) == ("[CLS]", "[SEP]", 2)
    assert encoder.describe() == {"num_words": 6, "num_parts": 2}  # the fossils , they say | the
    starts = np.count_nonzero(pieces & WORD_BIT)
    assert (starts, np.count_nonzero(pieces & DOCUMENT_BIT)) == (6 + 4, 2)


@pytest.mark.parametrize("most", [1, 7, 10, 1000])
def test_columns_are_split_between_texts_and_below_the_limit(monkeypatch, most):
    monkeypatch.setattr(words, "CHUNK_CHARACTERS", most)
    column = pa.array(["\u65e5\u672c", "", "x" * 12, "abc", "de", ""] * 3)
    chunks = [chunk.to_pylist() for chunk in split_columns(column)]
    assert [text for chunk in chunks for text in chunk] == column.to_pylist()
    assert all(len(chunk) == 1 or sum(map(len, chunk)) <= most for chunk in chunks)
    # No chunk could have taken the first text of the next one.
    for chunk, following in zip(chunks[:-1], chunks[1:], strict=True):
        assert sum(map(len, chunk)) + len(following[0]) > most


def test_no_texts_give_no_rows():
    assert list(split_columns(pa.array([], pa.string()))) == []
    pieces, lengths, _ = encode_all([""], 1)
    assert (len(pieces), len(lengths)) == (0, 0)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=f"no tokenizer can be loaded from {tmp_path}"):
        load_tokenizer(tmp_path)
