from collections import Counter

import numpy as np
import pyarrow as pa
import pytest

from data_pipes.masks.units import find_words
from data_pipes.tokenize import PieceEncoder
from launch.judging import words as words_module
from launch.judging.words import WordHasher, count_words, list_words
from tests.data_pipes.tiny_tokenizers import MAKERS
from tests.launch.judging.small import make_rows, make_tokenizer


def spell_words(rows, tokenizer):
    """The text of each word, piece by piece."""
    bounds = find_words(rows)
    names = tokenizer.convert_ids_to_tokens(rows.pieces.tolist())
    return [
        "".join(name.strip("▁ĠĊ").removeprefix("##") for name in names[start:stop])
        for start, stop in zip(bounds[:-1], bounds[1:], strict=True)
    ]


@pytest.mark.parametrize("kind", MAKERS)
def test_words_have_one_hash_if_and_only_if_they_have_one_text(kind):
    tokenizer = make_tokenizer(kind)
    rows = make_rows(tokenizer)
    hashes = WordHasher.build(tokenizer).hash(rows.pieces, find_words(rows)).tolist()
    texts = ["" if text in tokenizer.all_special_tokens else text for text in spell_words(rows, tokenizer)]
    assert len(set(texts)) == len(set(hashes)) == len(set(zip(texts, hashes, strict=True))) > 10


def test_a_word_is_the_same_however_it_is_cut():
    tokenizer = make_tokenizer()
    hasher = WordHasher.build(tokenizer)
    whole, parts = (tokenizer.convert_tokens_to_ids(names) for names in (["▁the"], ["▁", "t", "h", "e"]))
    hashes = [hasher.hash(np.array(ids), np.array([0, len(ids)]))[0] for ids in (whole, parts)]
    assert hashes[0] == hashes[1]
    backwards = tokenizer.convert_tokens_to_ids(["▁", "e", "h", "t"])
    assert hasher.hash(np.array(backwards), np.array([0, 4]))[0] != hashes[0]


def test_a_bracket_before_a_word_does_not_make_it_another():
    tokenizer = make_tokenizer()
    encoded = PieceEncoder(tokenizer).encode(pa.array(["fossil (fossil"]))
    bounds = np.append(encoded.word_starts.nonzero()[0], len(encoded.ids))
    first, _, last = (encoded.ids[a:b].tolist() for a, b in zip(bounds[:-1], bounds[1:], strict=True))
    assert first != last, "the pieces differ"
    hashes = WordHasher.build(tokenizer).hash(encoded.ids, bounds)
    assert hashes[0] == hashes[2]


@pytest.mark.parametrize("num_ranks", [1, 3])
def test_words_are_counted_as_a_counter_does(num_ranks, monkeypatch):
    monkeypatch.setattr(words_module, "_CHUNK_PIECES", 40)
    tokenizer = make_tokenizer()
    hasher = WordHasher.build(tokenizer)
    rows = make_rows(tokenizer).take(np.array([0, 1, 2, 3, 3, 2, 0]))
    wanted = list_words(make_rows(tokenizer, [["They say the graptolite."]]), hasher)
    parts, scales = zip(
        *(
            count_words(rows, hasher, wanted, seed=0, max_pieces=10**9, part=(rank, num_ranks))
            for rank in range(num_ranks)
        ),
        strict=True,
    )
    counts = Counter(hasher.hash(rows.pieces, find_words(rows)).tolist())
    assert set(scales) == {1.0}
    found = np.sum(parts, axis=0).tolist()
    assert found == [counts[number] for number in wanted.tolist()]
    assert min(found) == 0 < 3 < max(found)


def test_a_part_of_a_large_corpus_is_scaled_up(monkeypatch):
    monkeypatch.setattr(words_module, "_CHUNK_PIECES", 200)
    tokenizer = make_tokenizer()
    hasher = WordHasher.build(tokenizer)
    rows = make_rows(tokenizer).take(np.tile(np.arange(4), 200))
    wanted = list_words(rows, hasher)
    whole, _ = count_words(rows, hasher, wanted, seed=0, max_pieces=10**9)
    part, scale = count_words(rows, hasher, wanted, seed=0, max_pieces=10_000)
    assert scale > 2
    assert (part * scale != whole).any()
    assert part.sum() * scale == pytest.approx(whole.sum(), rel=0.1)


def test_counts_of_a_sampled_corpus_are_the_same_however_many_ranks_count(monkeypatch):
    """A bound of a group lies between 100 and 99.99999999999999, which is what 25/9 + 35 * 25/9 comes to."""
    assert (1 + 35) * 25 / 9 == 100 > 1 * (25 / 9) + 35 * (25 / 9)
    monkeypatch.setattr(words_module, "_CHUNK_PIECES", 200)
    tokenizer = make_tokenizer()
    hasher = WordHasher.build(tokenizer)
    rows = make_rows(tokenizer).take(np.tile(np.arange(4), 200))
    wanted = list_words(rows, hasher)
    found = []
    for num_ranks in (1, 2, 3, 5):
        parts = [
            count_words(rows, hasher, wanted, seed=0, max_pieces=10_000, part=(rank, num_ranks))
            for rank in range(num_ranks)
        ]
        assert len({scale for _, scale in parts}) == 1
        assert all((counts == counts.round()).all() for counts, _ in parts)
        found.append((sum(counts for counts, _ in parts) * parts[0][1]).tolist())
    assert found[1:] == found[:1] * 3


def test_nothing_to_count_is_no_error():
    tokenizer = make_tokenizer()
    hasher, rows = WordHasher.build(tokenizer), make_rows(tokenizer)
    counts, scale = count_words(rows, hasher, np.zeros(0, np.uint64), seed=0, max_pieces=9)
    assert (len(counts), scale) == (0, 1.0)
    none = rows.take(np.zeros(0, np.int64))
    assert count_words(none, hasher, np.ones(1, np.uint64), seed=0, max_pieces=9) == ([0], 1.0)
