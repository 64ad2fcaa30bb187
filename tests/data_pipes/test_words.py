import numpy as np
import pyarrow as pa
import pytest

from data_pipes.tokenize import PieceEncoder, TokenizerError
from data_pipes.tokens import words
from data_pipes.tokens.words import load_tokenizer, split_columns, tokenize_texts
from tests.data_pipes.tiny_tokenizers import MAKERS

TEXTS = ["the Wheeler Formation yields trilobites. They say", "they say", "", "the fossils " * 30] * 5


@pytest.mark.parametrize("kind", list(MAKERS))
@pytest.mark.parametrize("most", [1, 50, 400])
def test_pieces_do_not_depend_on_chunks(monkeypatch, kind, most):
    encoder = PieceEncoder(MAKERS[kind]())
    whole = encoder.encode_whole(pa.array(TEXTS))
    monkeypatch.setattr(words, "CHUNK_CHARACTERS", most)
    pieces = tokenize_texts(encoder, pa.array(["x", *TEXTS])[1:])
    for name in ("ids", "offsets", "word_starts", "sentence_starts"):
        got, wanted = getattr(pieces, name), getattr(whole, name)
        assert got.dtype == wanted.dtype
        assert got.tolist() == wanted.tolist()


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


def test_no_texts_give_no_pieces():
    assert list(split_columns(pa.array([], pa.string()))) == []
    encoder = PieceEncoder(MAKERS["unigram"]())
    for texts, offsets in (([], [0]), (["", ""], [0, 0, 0])):
        pieces = tokenize_texts(encoder, pa.array(texts, pa.string()))
        assert pieces.offsets.tolist() == offsets
        assert (len(pieces.ids), pieces.ids.dtype, pieces.offsets.dtype) == (0, np.uint32, np.int64)
        assert (len(pieces.word_starts), len(pieces.sentence_starts)) == (0, 0)


def test_a_folder_without_a_tokenizer_is_named(tmp_path):
    with pytest.raises(TokenizerError, match=f"no tokenizer can be loaded from {tmp_path}"):
        load_tokenizer(tmp_path)
