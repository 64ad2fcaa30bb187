import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.align import AlignError, AlignMap

# A text as runs: (kept, 0, 0), then a changed segment of so many raw and normal characters.
RUNS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 3), st.integers(0, 3)), max_size=8)


def build(runs):
    """The map, and its pairs of characters as an independent list."""
    segments, pairs, raw, norm = [], [], 0, 0
    for kept, removed, added in runs:
        pairs += [(raw + step, norm + step) for step in range(kept)]
        raw, norm = raw + kept, norm + kept
        segments.append((raw, raw + removed, norm, norm + added))
        raw, norm = raw + removed, norm + added
    return AlignMap.from_segments(segments, raw), pairs


@st.composite
def chains(draw, number=2):
    """Maps of which each begins with the text where the one before ends."""
    made = [draw(RUNS)]
    for _ in range(number - 1):
        left, runs = build(made[-1])[0].num_norm, []
        for kept, removed, added in draw(RUNS):
            kept = min(kept, left)
            removed = min(removed, left - kept)
            runs.append((kept, removed, added))
            left -= kept + removed
        runs.append((left, 0, 0))
        made.append(runs)
    return [build(runs) for runs in made]


def pairs_of(align):
    """Pairs that a map states: a character with a partner is a span of one on both sides, both ways."""
    found = []
    for raw in range(align.num_raw):
        start, end = align.raw_to_norm(raw, raw + 1)
        inside = ((align.segments[:, 0] <= raw) & (raw < align.segments[:, 1])).any()
        if not inside:
            assert end == start + 1
            assert align.norm_to_raw(start, end) == (raw, raw + 1)
            found.append((raw, start))
    return found


@given(RUNS)
def test_characters_outside_of_changes_go_one_to_one(runs):
    align, pairs = build(runs)
    assert pairs_of(align) == pairs
    assert align.num_norm == sum(kept + added for kept, _, added in runs)


@given(RUNS, st.data())
def test_spans_widen_to_the_segments_they_cut_into(runs, data):
    align, pairs = build(runs)
    start = data.draw(st.integers(0, align.num_raw))
    end = data.draw(st.integers(start, align.num_raw))
    norm_of = dict(pairs)
    if start == end:
        cut = [s for s in align.segments.tolist() if s[0] < start < s[1]]
        before = [norm for raw, norm in pairs if raw < start]
        swallowed = [s for s in align.segments.tolist() if s[1] <= start and s[0] < s[1]]
        point = max([0, *(norm + 1 for norm in before), *(s[3] for s in swallowed)])
        wanted = (cut[0][2], cut[0][3]) if cut else (point, point)
    else:
        touched = [s for s in align.segments.tolist() if s[0] < end and s[1] > start]
        kept = [norm_of[raw] for raw in range(start, end) if raw in norm_of]
        wanted = (
            min([*kept, *(s[2] for s in touched)]),
            max([*(norm + 1 for norm in kept), *(s[3] for s in touched)]),
        )
    assert align.raw_to_norm(start, end) == wanted


@given(RUNS)
def test_projections_never_run_backwards_and_arrays_give_what_single_spans_give(runs):
    align, _ = build(runs)
    spans = [(a, b) for a in range(align.num_raw + 1) for b in range(a, align.num_raw + 1)]
    starts, ends = align.raw_to_norm(*np.array(spans).T)
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [
        align.raw_to_norm(*span) for span in spans
    ]
    assert (starts <= ends).all()
    grid = {span: (a, b) for span, a, b in zip(spans, starts.tolist(), ends.tolist(), strict=True)}
    for (a, b), (norm_start, norm_end) in grid.items():
        if b < align.num_raw:
            assert grid[a, b + 1][1] >= norm_end
        if a < b - 1:
            assert grid[a + 1, b][0] >= norm_start


@given(chains())
def test_composing_is_composing_the_pairs(chain):
    (first, first_pairs), (second, second_pairs) = chain
    onward = dict(second_pairs)
    both = first.compose(second)
    assert pairs_of(both) == [(raw, onward[middle]) for raw, middle in first_pairs if middle in onward]
    assert (both.num_raw, both.num_norm) == (first.num_raw, second.num_norm)


@given(chains(3))
def test_composing_is_associative(chain):
    a, b, c = (align for align, _ in chain)
    assert a.compose(b).compose(c) == a.compose(b.compose(c))


@given(RUNS)
def test_inverting_twice_and_composing_with_identity_change_nothing(runs):
    align, pairs = build(runs)
    assert align.invert().invert() == align
    assert hash(align.invert().invert()) == hash(align)
    assert align.compose(AlignMap.identity(align.num_norm)) == align
    assert AlignMap.identity(align.num_raw).compose(align) == align
    assert pairs_of(align.invert()) == [(norm, raw) for raw, norm in pairs]


@given(chains())
def test_the_inverse_of_a_composition_is_the_inverses_composed(chain):
    (first, _), (second, _) = chain
    assert first.compose(second).invert() == second.invert().compose(first.invert())


@given(RUNS)
def test_maps_survive_json(runs):
    align, _ = build(runs)
    data = json.loads(json.dumps(align.to_json()))
    assert AlignMap.from_json(data) == align
    assert AlignMap.from_json(data, align.num_raw, align.num_norm) == align
    assert len(data["changes"]) == 3 * len(align.segments)


def test_json_takes_a_few_bytes_per_change_whatever_the_length():
    align = AlignMap.from_changes(np.array([(at, at + 2, 1) for at in range(0, 1_000_000, 1000)]), 1_000_000)
    text = json.dumps(align.to_json(), separators=(",", ":"))
    assert len(text) < 9 * 1000 + 40


@given(RUNS, st.data())
def test_a_slice_is_the_map_of_that_part(runs, data):
    align, _ = build(runs)
    part, _ = build(data.draw(RUNS))
    raw = AlignMap.from_segments(
        np.concatenate(
            (align.segments, part.segments + np.repeat([align.num_raw + 1, align.num_norm + 1], 2))
        ),
        align.num_raw + 1 + part.num_raw,
    )
    assert raw.slice(0, align.num_raw) == align
    assert raw.slice(align.num_raw + 1, raw.num_raw) == part


def test_a_single_character_keeps_its_partner_when_another_takes_its_place():
    align = AlignMap.from_changes(np.array([(3, 4, 1), (5, 7, 1), (9, 9, 2)]), 12)
    assert align.segments.tolist() == [[5, 7, 5, 6], [9, 9, 8, 10]]
    assert align.raw_to_norm(3, 4) == (3, 4)


def test_touching_segments_are_one():
    align = AlignMap.from_segments([(1, 2, 1, 3), (2, 4, 3, 3), (6, 6, 5, 5)], 8)
    assert align.segments.tolist() == [[1, 4, 1, 3]]


def test_an_insertion_lies_outside_of_spans_that_end_or_begin_at_it():
    align = AlignMap.from_segments([(3, 3, 3, 5)], 6)
    assert align.raw_to_norm(1, 3) == (1, 3)
    assert align.raw_to_norm(3, 5) == (5, 7)
    assert align.raw_to_norm(2, 4) == (2, 6)
    assert align.raw_to_norm(3, 3) == (3, 3)
    assert align.norm_to_raw(3, 5) == (3, 3)
    assert align.norm_to_raw(4, 4) == (3, 3)


@pytest.mark.parametrize("as_key", [str, int])
def test_the_old_form_of_one_entry_per_character_is_read(as_key):
    # `a  bc` -> `a_bcc`: two blanks shrank to one, the last character grew.
    old = {as_key(raw): norm for raw, norm in enumerate([0, 1, 1, 2, 3])}
    assert AlignMap.from_json(old).segments.tolist() == [[1, 3, 1, 2]]
    assert AlignMap.from_json(old, 5, 5).segments.tolist() == [[1, 3, 1, 2], [4, 5, 3, 5]]
    assert AlignMap.from_json({as_key(0): 2, as_key(1): 3}).segments.tolist() == [[0, 1, 0, 3]]
    jump = {as_key(raw): norm for raw, norm in enumerate([0, 1, 4])}
    assert AlignMap.from_json(jump).segments.tolist() == [[1, 2, 1, 4]]


@given(RUNS)
@settings(max_examples=50)
def test_the_old_form_agrees_on_every_character_that_has_a_partner(runs):
    align, _ = build([(kept, removed, max(added, 1)) for kept, removed, added in runs if removed])
    if align.num_raw == 0:
        return
    old = {str(raw): align.raw_to_norm(raw, raw + 1)[0] for raw in range(align.num_raw)}
    read = AlignMap.from_json(old, align.num_raw, align.num_norm)
    for raw in range(align.num_raw):
        assert read.raw_to_norm(raw, raw + 1) == align.raw_to_norm(raw, raw + 1)


def test_null_is_an_unchanged_text():
    assert AlignMap.from_json(None, 7) == AlignMap.identity(7)
    assert AlignMap.from_json({}, 0) == AlignMap.identity(0)


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (None, "give num_raw"),
        ([1, 2], "an object, not list"),
        ({"length": 3}, "three counts per segment"),
        ({"length": 3, "changes": [1, 1]}, "three counts"),
        ({"length": 3, "changes": [1, -1, 1]}, "three counts"),
        ({"length": 3, "changes": [1.0, 1, 1]}, "three counts"),
        ({"length": 3, "changes": [2, 2, 1]}, "inside a text of 3 characters"),
        ({"length": 3, "changes": [], "more": 1}, "found the keys length, changes, more"),
        ({"0": 0, "2": 1}, "each raw index from 0 on"),
        ({"0": 1, "1": 0}, "never fall"),
        ({"a": 0}, "numbers only"),
    ],
)
def test_other_data_is_refused(data, wanted):
    with pytest.raises(AlignError, match=wanted):
        AlignMap.from_json(data)


def test_lengths_that_do_not_fit_are_refused():
    data = AlignMap.from_segments([(1, 2, 1, 3)], 4).to_json()
    with pytest.raises(AlignError, match="4 raw characters, the text has 5"):
        AlignMap.from_json(data, 5)
    with pytest.raises(AlignError, match="5 normal characters, the text has 4"):
        AlignMap.from_json(data, 4, 4)
    with pytest.raises(AlignError, match="cannot go before one of 4"):
        AlignMap.from_json(data).compose(AlignMap.identity(4))


@pytest.mark.parametrize(
    "segments",
    [
        [(2, 1, 2, 3)],
        [(1, 3, 1, 2), (2, 4, 2, 3)],
        [(1, 3, 1, 3), (2, 4, 2, 4)],
        [(0, 1, 0, -1)],
        [(3, 9, 3, 4)],
        [(1, 2, 2, 3)],
    ],
)
def test_segments_that_fit_no_text_are_refused(segments):
    with pytest.raises(AlignError):
        AlignMap.from_segments(segments, 5)


@pytest.mark.parametrize("span", [(-1, 2), (3, 2), (0, 6)])
@pytest.mark.parametrize("align", [AlignMap.identity(5), AlignMap.from_segments([(1, 2, 1, 1)], 5)])
def test_spans_outside_of_the_text_are_refused(align, span):
    with pytest.raises(AlignError, match="not within 5 characters"):
        align.raw_to_norm(*span)
