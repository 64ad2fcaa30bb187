import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import Batch
from data_pipes.duplication.near import NearDuplicates
from data_pipes.duplication.shingles import IS_SEPARATOR, find_shingles
from data_pipes.duplication.signatures import SignatureError, choose_bands
from data_pipes.split import OverlapError

ROOT = Path(__file__).parents[2]
WORDS = np.array([f"word{number}" for number in range(5000)])


def column(texts):
    return pa.array(texts, pa.string())


def split_words(text):
    return "".join(" " if ord(c) < 0x3001 and IS_SEPARATOR[ord(c)] else c for c in text).split()


def shingle_by_hand(text, size, of_words):
    items = split_words(text) if of_words else list(text)
    if not items:
        return {text}
    return {tuple(items[i : i + size]) for i in range(max(1, len(items) - size + 1))}


def compute_jaccard(first, second, size=5, of_words=True):
    a, b = (shingle_by_hand(text, size, of_words) for text in (first, second))
    return len(a & b) / len(a | b)


def make_variants(seed, num_words=300):
    """A text and ever worse copies of it, each word of which has been replaced with a growing chance."""
    generator = np.random.default_rng(seed)
    words = generator.choice(WORDS, num_words)
    texts = []
    for chance in np.linspace(0, 0.06, 26):
        copy = words.copy()
        is_new = generator.random(num_words) < chance
        copy[is_new] = generator.choice(WORDS, int(is_new.sum()))
        texts.append(" ".join(copy))
    return texts


# Shingles

# ASCII in lower case: what lower case means for other letters is not the question here.
short_texts = st.lists(
    st.text(st.sampled_from("ab .,-\u00a0\u2019\u3000\u3001\u65e5\U0001f600"), max_size=12), max_size=8
)


@settings(deadline=None)
@given(short_texts, st.integers(1, 6), st.booleans())
def test_shingles_are_equal_where_a_loop_over_words_or_characters_finds_them_equal(texts, size, of_words):
    hashes, offsets = find_shingles(column(texts), size, of_words)
    wanted = [shingle_by_hand(text, size, of_words) for text in texts]
    found = [set(hashes[a:b].tolist()) for a, b in zip(offsets[:-1], offsets[1:], strict=True)]
    assert [len(ours) for ours in found] == [len(theirs) for theirs in wanted]
    for i in range(len(texts)):
        for j in range(i):
            assert len(found[i] & found[j]) == len(wanted[i] & wanted[j])


def test_capitals_and_punctuation_do_not_count():
    first, second = (
        find_shingles(column([text]), 2, True)[0].tolist()
        for text in ("The Burgess Shale, of 1909.", "the burgess shale (of 1909)")
    )
    assert first == second


# Signatures


def test_equal_places_of_signatures_estimate_the_jaccard_similarity():
    near = NearDuplicates()
    errors = []
    for seed in range(8):
        texts = make_variants(seed)
        signatures = near.sketch(column(texts))
        assert (signatures.dtype, signatures.shape) == (np.uint32, (26, 128))
        for text, signature in zip(texts, signatures, strict=True):
            errors.append((signature == signatures[0]).mean() - compute_jaccard(text, texts[0]))
    errors = np.array(errors)
    # 208 estimates of a standard deviation of at most 0.044 each.
    assert abs(errors.mean()) < 0.012
    assert errors.std() < 0.044


def test_a_signature_depends_on_its_text_alone_and_never_changes():
    near, other = NearDuplicates(num_permutations=16), NearDuplicates(num_permutations=16)
    texts = ["a b c d e f g", "", "x", *make_variants(0)[:4]]
    whole = near.sketch(column(texts))
    assert np.array_equal(np.concatenate([other.sketch(column([text])) for text in texts]), whole)
    # Of rensa 0.5.0: a state that is saved names the version of its algorithm.
    assert whole[:, 0].tolist() == PINNED
    assert near.sketch(column([])).shape == (0, 16)


PINNED = [3208625855, 3955477180, 2682150795, 83259505, 83259505, 83259505, 83259505]


@pytest.mark.parametrize(("threshold", "num_permutations"), [(0.8, 128), (0.5, 128), (0.95, 64), (0.3, 256)])
def test_bands_miss_few_pairs_at_the_threshold(threshold, num_permutations):
    bands = choose_bands(threshold, num_permutations)
    rows = num_permutations // bands
    generator = np.random.default_rng(0)
    is_equal = generator.random((20_000, bands, rows)) < threshold
    assert is_equal.all(axis=2).any(axis=1).mean() > 0.987
    assert 1 - (1 - threshold ** (rows + 1)) ** (num_permutations // (rows + 1)) < 0.99


# Near-duplicates


def find_by_hand(signatures, splits, threshold):
    """Every document against every one that stayed."""
    kept = ([], [])
    is_near, is_shared = [], []
    for signature, split in zip(signatures, splits, strict=True):
        meets = [any((signature == other).mean() >= threshold for other in side) for side in kept]
        is_near.append(meets[split])
        is_shared.append(not meets[split] and meets[1 - split])
        if not meets[split]:
            kept[split].append(signature)
    return is_near, is_shared


@pytest.mark.parametrize("batch_size", [1, 7, 400])
@pytest.mark.parametrize("has_folder", [True, False])
def test_what_stays_is_what_a_comparison_of_all_pairs_leaves(tmp_path, batch_size, has_folder):
    generator = np.random.default_rng(1)
    texts = [text for seed in range(15) for text in make_variants(seed, 120)]
    texts = [texts[place] for place in generator.permutation(len(texts))]
    near = NearDuplicates(folder=tmp_path if has_folder else None)
    signatures = near.sketch(column(texts))
    splits = np.zeros(len(texts), int)
    wanted, _ = find_by_hand(signatures, splits, 0.8)
    found = [near.add(signatures[at : at + batch_size], 0)[0] for at in range(0, len(texts), batch_size)]
    assert 0.2 < np.mean(wanted) < 0.9
    # Bands miss 1 % of the pairs at most, each of which lets one document more stay.
    assert np.mean(np.concatenate(found) != wanted) <= 0.01


def test_documents_well_above_the_threshold_are_found_and_those_well_below_stay():
    for seed in range(10):
        texts = make_variants(seed)
        for text in texts[1:]:
            jaccard = compute_jaccard(text, texts[0])
            if 0.68 < jaccard < 0.92:
                continue
            near = NearDuplicates()
            is_near, _ = near.add(near.sketch(column([texts[0], text])), 0)
            assert is_near.tolist() == [False, jaccard > 0.8]


def test_what_is_in_the_other_split_is_shared_and_what_is_left_out_is_not():
    base = make_variants(3)
    near = NearDuplicates()
    sketches = near.sketch(column([base[0], base[1], base[3], "something else altogether, of other words"]))
    assert [flags.tolist() for flags in near.add(sketches[[0, 1]], 0)] == [[False, True], [False, False]]
    assert [flags.tolist() for flags in near.add(sketches[[3, 1, 2]], 1)] == [
        [False, False, True],
        [False, True, False],
    ]


def test_admission_counts_drops_and_stops_at_shared_documents():
    base = [make_variants(seed)[0] for seed in range(4)]
    near = NearDuplicates()

    def admit(texts, is_evaluation, is_candidate):
        batch = Batch.from_strings(texts)
        flags = np.array(is_evaluation, bool), np.array(is_candidate, bool)
        return near.admit(batch, near.sketch(batch.texts), *flags).tolist()

    assert admit([base[0], base[0], base[1], base[2]], [0, 0, 0, 0], [1, 1, 1, 0]) == [
        True,
        False,
        True,
        False,
    ]
    assert near.dropped == {"near_duplicate": 1}
    # base[2] was no candidate, so it has not been seen.
    assert admit([base[2], base[3]], [1, 1], [1, 1]) == [True, True]
    near.check_overlap()
    admit([base[0]], [1], [1])
    with pytest.raises(OverlapError, match=r"1 texts are nearly the same in both .*: 'word"):
        near.check_overlap()
    admit([base[1]], [1], [1])
    with pytest.raises(OverlapError, match="3 texts are nearly the same in both"):
        admit([base[3]], [0], [1])


# Restart


@pytest.mark.parametrize("has_folder", [True, False])
def test_a_restart_goes_on_from_the_saved_state_and_forgets_what_came_later(tmp_path, has_folder):
    folder = tmp_path if has_folder else None
    texts = [text for seed in range(6) for text in make_variants(seed, 120)]
    near = NearDuplicates(folder=folder)
    signatures = near.sketch(column(texts))
    near.add(signatures[:50], 0)
    near.add(signatures[50:60], 1)
    plain, arrays = near.state()
    plain = json.loads(json.dumps(plain))
    lost = np.ascontiguousarray(signatures[::-1])
    near.add(lost, 0)
    for _ in range(2):
        again = NearDuplicates(folder=folder)
        again.restore(plain, arrays)
        straight = NearDuplicates()
        straight.add(signatures[:50], 0)
        straight.add(signatures[50:60], 1)
        for split in (1, 0):
            for ours, wanted in zip(
                again.add(signatures, split), straight.add(signatures, split), strict=True
            ):
                assert np.array_equal(ours, wanted)
        # What has just been added is read back from its own place.
        assert again.add(signatures, 0)[0].all()
    fresh = NearDuplicates(folder=folder)
    fresh.add(signatures, 0)
    assert fresh.add(signatures, 0)[0].all()


def test_damaged_or_foreign_states_are_refused(tmp_path):
    near = NearDuplicates(folder=tmp_path)
    near.add(near.sketch(column(make_variants(0))), 0)
    state = near.state()
    with pytest.raises(SignatureError, match="other settings"):
        NearDuplicates(0.9, folder=tmp_path).restore(*state)
    path = tmp_path / "train.u32"
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(SignatureError, match="train.u32 changed after saving"):
        NearDuplicates(folder=tmp_path).restore(*state)
    path.write_bytes(bytes(data)[:-4])
    with pytest.raises(SignatureError, match="bytes, wanted"):
        NearDuplicates(folder=tmp_path).restore(*state)


# Settings


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        ({"threshold": 1.0}, "threshold of near-duplicates is 1.0, wanted above 0 and below 1"),
        ({"num_permutations": 8}, "at least 16 permutations"),
        ({"shingle": 0}, "not 128 and 0"),
        ({"unit": "lines"}, "'lines', wanted words or characters"),
    ],
)
def test_wrong_settings_are_refused(arguments, wanted):
    with pytest.raises(ValueError, match=wanted):
        NearDuplicates(**arguments)


def test_a_missing_library_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "rensa", None)
    with pytest.raises(ModuleNotFoundError, match="needs the package rensa: pip install"):
        NearDuplicates()


def test_planning_loads_neither_the_library_nor_the_tables_of_names():
    script = (
        "import sys, data_pipes.clean as c, data_pipes.split\n"
        "c.parse_rules([{'kind': 'idn'}, 'labels', 'hyphens', 'nfc'])\n"
        "print([name for name in ('rensa', 'idna', 'torch', 'transformers') if name in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, cwd=ROOT, check=True
    )
    assert done.stdout == "[]\n"


@settings(max_examples=30, deadline=None)
@given(short_texts)
def test_all_texts_can_be_sketched(texts):
    near = NearDuplicates(unit="characters", shingle=3, num_permutations=16)
    is_near, _ = near.add(near.sketch(column(texts)), 0)
    for place, text in enumerate(texts):
        assert is_near[place] or text.lower() not in {other.lower() for other in texts[:place]}


def test_texts_of_the_other_split_are_left_out_where_that_is_asked():
    words = [f"word{number}" for number in range(60)]
    texts = [" ".join(words), " ".join([*words[:-1], "other"]), "something else " * 20]
    near = NearDuplicates(across_splits="drop")
    batch = Batch.from_strings(texts)
    is_evaluation = np.array([False, True, True])
    stays = near.admit(batch, near.sketch(batch.texts), is_evaluation, np.ones(3, bool))
    assert stays.tolist() == [True, False, True]
    assert near.dropped == {"near_duplicate_of_other_split": 1}
    near.check_overlap()
