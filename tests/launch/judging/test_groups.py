from collections import Counter, defaultdict

import numpy as np
import pytest

from data_pipes.collate import MASK_CHARACTER
from data_pipes.masking import Hidden, Masking
from data_pipes.masks.units import find_words
from data_pipes.rows import Rows
from launch.judging.groups import (
    group_all,
    group_by_corpus,
    group_by_frequency,
    group_names,
    name_ranges,
    recover,
)
from launch.judging.passes import FrozenPass
from launch.judging.scored import Scored
from launch.judging.words import WordHasher, list_words
from tests.launch.judging.small import make_masking, make_rows, make_tokenizer

NAMES = ["example.com", "a.co.uk", "news.example.org", "xn--bcher-kva.de", "shop.com", "localhost"]


def invent(sheet, seed=0):
    """Scores of a sheet that no model gave."""
    generator = np.random.default_rng(seed)
    num_targets = len(sheet.places)
    return Scored(sheet, generator.gamma(2, 2, num_targets), generator.integers(0, 3, num_targets))


def make_names(names=NAMES):
    code_points = np.array([ord(character) for name in names for character in name], np.uint32)
    offsets = np.cumsum([0, *map(len, names)])
    starts = np.zeros(len(code_points), bool)
    starts[offsets[:-1]] = True
    return Rows(code_points, offsets, np.ones(len(code_points), bool), starts)


def hide_names(rows, kind="character", rate=0.5):
    masking = Masking(
        kind=kind,
        rate=rate,
        mask_piece=MASK_CHARACTER,
        random_pieces=np.arange(97, 123, dtype=np.uint32),
        special_pieces=np.zeros(0, np.uint32),
    )
    return FrozenPass(rows, masking, seed=1).load(np.array([5, 0, 3, 1, 2, 4]))


@pytest.mark.parametrize("kind", ["whole_word", "token"])
def test_every_target_is_in_one_group_of_frequency(kind):
    tokenizer = make_tokenizer()
    rows, hasher = make_rows(tokenizer), WordHasher.build(tokenizer)
    words = list_words(rows, hasher)
    counts = np.random.default_rng(0).choice([0, 1, 9, 10, 5000], len(words)).astype(float)
    grouping = group_by_frequency(hasher, words, counts, [1, 10, 100])
    sheet = FrozenPass(rows, make_masking(tokenizer, kind), seed=1).load(np.array([2, 0, 3, 1]))
    grouping.add(invent(sheet))
    found = grouping.metric.compute()
    count_of = dict(zip(words.tolist(), counts.tolist(), strict=True))
    bounds = find_words(sheet.rows)
    owners = np.searchsorted(bounds, sheet.places, side="right") - 1
    hashes = hasher.hash(sheet.rows.pieces, bounds)
    bucket = {0: "unseen", 1: "1-9", 9: "1-9", 10: "10-99", 5000: "100-up"}
    expected = Counter(bucket[count_of[int(hashes[owner])]] for owner in owners)
    expected_words = Counter(bucket[count_of[int(hashes[owner])]] for owner in set(owners))
    assert {name: found[f"{name}/num_targets"] for name in expected} == expected
    assert {name: found[f"{name}/num_words"] for name in expected} == expected_words
    assert sum(expected.values()) == len(sheet.places)


def test_targets_are_told_apart_by_corpus():
    rows = make_names()
    sheet = hide_names(rows)
    grouping = group_by_corpus(("first", "none", "second"), (2, 0, 4), ("num_targets",))
    grouping.add(invent(sheet))
    number = sheet.row_ids[np.searchsorted(sheet.rows.offsets, sheet.places, side="right") - 1]
    assert grouping.metric.compute() == {
        "first/num_targets": (number < 2).sum(), "second/num_targets": (number >= 2).sum()
    }  # fmt: skip


def test_names_are_told_apart_by_place_length_and_suffix():
    rows = make_names()
    sheet = hide_names(rows)
    scored = invent(sheet)
    expected = defaultdict(list)
    suffixes = {"example.com": "com", "shop.com": "com", "a.co.uk": "co.uk", "news.example.org": "org"}
    at = 0
    for row, start in zip(sheet.row_ids, sheet.rows.offsets, strict=False):
        name = NAMES[row]
        suffix = suffixes.get(name, name.rpartition(".")[2])
        group = suffix if suffix in ("com", "co.uk") else "other"
        length = "1-8" if len(name) < 9 else "9-12" if len(name) < 13 else "13-16"
        for place in range(len(name)):
            if not sheet.hidden.is_target[start + place]:
                continue
            in_suffix = place >= len(name) - len(suffix) - 1
            place_name = next(
                text
                for text, last in {"1": 1, "2": 2, "3-4": 4, "5-8": 8, "9-16": 16}.items()
                if place + 1 <= last
            )
            for key in (
                f"names/place/{place_name}", f"names/length/{length}", f"names/suffix/{group}",
                f"names/part/{'suffix' if in_suffix else 'body'}",
            ):  # fmt: skip
                expected[key].append(scored.losses[at])
            at += 1
    assert at == len(sheet.places)
    found = {}
    for grouping in group_names(rows, num_suffixes=2):
        grouping.add(scored)
        found |= {grouping.prefix + name: value for name, value in grouping.metric.compute().items()}
    assert {name.rsplit("/", 1)[0] for name in found} == set(expected)
    for key, losses in expected.items():
        assert found[f"{key}/num_targets"] == len(losses)
        assert found[f"{key}/perplexity"] == pytest.approx(np.exp(np.mean(losses)))


def test_a_word_is_recovered_when_all_its_pieces_are():
    tokenizer = make_tokenizer()
    sheet = FrozenPass(make_rows(tokenizer), make_masking(tokenizer), seed=1).load(np.arange(4))
    scored = invent(sheet)
    bounds, rank_of = find_words(sheet.rows), dict(zip(sheet.places.tolist(), scored.ranks, strict=True))
    expected = defaultdict(list)
    for start, stop in zip(bounds[:-1].tolist(), bounds[1:].tolist(), strict=True):
        if sheet.hidden.is_target[start]:
            right = all(rank_of[place] == 0 for place in range(start, stop))
            expected[str(stop - start) if stop - start < 4 else "4-up"].append(right)
    grouping = recover(is_word=True)
    grouping.add(scored)
    found = grouping.metric.compute()
    for name, right in expected.items():
        assert found[f"{name}/num_spans"] == len(right)
        assert found[f"{name}/exact"] == pytest.approx(np.mean(right))
    assert found["num_spans"] == sum(map(len, expected.values()))
    assert found["exact"] == pytest.approx(
        np.mean([right for values in expected.values() for right in values])
    )


def test_half_a_hidden_word_is_not_recovered():
    tokenizer = make_tokenizer()
    sheet = FrozenPass(make_rows(tokenizer), make_masking(tokenizer, "token"), seed=1).load(np.arange(4))
    sizes = np.diff(find_words(sheet.rows))
    owners = np.searchsorted(find_words(sheet.rows), sheet.places, side="right") - 1
    num_hidden = np.bincount(owners, minlength=len(sizes))
    grouping = recover(is_word=True)
    grouping.add(invent(sheet))
    assert grouping.metric.compute()["num_spans"] == (num_hidden == sizes).sum() < (num_hidden > 0).sum()


@pytest.mark.parametrize("kind", ["character", "character_span"])
def test_a_run_of_hidden_characters_is_recovered_as_one(kind):
    sheet = hide_names(make_names(), kind)
    scored = invent(sheet)
    rank_of, expected = dict(zip(sheet.places.tolist(), scored.ranks, strict=True)), defaultdict(list)
    for first, stop in zip(sheet.rows.offsets[:-1].tolist(), sheet.rows.offsets[1:].tolist(), strict=True):
        run = []
        for place in range(first, stop + 1):
            if place < stop and sheet.hidden.is_target[place]:
                run.append(rank_of[place] == 0)
            elif run:
                expected[str(len(run)) if len(run) < 4 else "4-up"].append(all(run))
                run = []
    grouping = recover(is_word=False)
    grouping.add(scored)
    found = grouping.metric.compute()
    assert len(expected) > 1
    assert {name: found[f"{name}/num_spans"] for name in expected} == {n: len(r) for n, r in expected.items()}
    assert {name: found[f"{name}/exact"] for name in expected} == {n: np.mean(r) for n, r in expected.items()}


def test_rows_without_targets_add_nothing():
    rows = make_names()
    sheet = hide_names(rows)
    empty = type(sheet)(
        sheet.row_ids, sheet.rows, Hidden(sheet.rows.pieces, np.zeros(len(rows.pieces), bool)), sheet.owners
    )
    scored = Scored(empty, np.zeros(0), np.zeros(0, np.int64))
    for grouping in (
        group_all(("loss",)),
        recover(is_word=True),
        recover(is_word=False),
        *group_names(rows, 3),
    ):
        grouping.add(scored)
        assert grouping.metric.compute() == {}


def test_ranges_have_names():
    assert name_ranges([1, 2, 3, 10]) == ("1", "2", "3-9", "10-up")
