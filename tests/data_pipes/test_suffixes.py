import re
import sys

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.documents import flatten_code_points
from data_pipes.masking import Masking, describe_rate, hide
from data_pipes.masks.suffixes import SuffixRules, find_suffixes, load_suffix_rules
from data_pipes.rows import Rows

MASK = 0xE003
LIST = """
// a comment
com
uk
co.uk
jp
*.kobe.jp
!city.kobe.jp
*.ck
!www.ck
b.c.d   trailing words are no part of it
\u0440\u0444
\u0161koly.fr
""".splitlines()
LABELS = ["com", "co", "uk", "jp", "kobe", "city", "ck", "www", "a", "b", "c", "d", "CO", "\u0440\u0444"]
ODD = ["\u0420\u0424", "xn--p1ai", "xn--koly-m9a", "\u0161koly", "fr", "", "\U0001f980", "\u0130", "\ue003"]


def make_names(names):
    pieces, offsets = flatten_code_points(pa.array(names, pa.string()))
    offsets = offsets.astype(np.int64)
    starts = np.ones(len(pieces), bool)
    return Rows(pieces.astype(np.uint32), offsets, starts, np.zeros(len(pieces), bool))


def cut(names, rules):
    """The suffix of each name as it is written there."""
    rows = make_names(names)
    starts, ends = find_suffixes(rows.pieces, rows.offsets, rules)
    spans = zip(names, starts - rows.offsets[:-1], ends - rows.offsets[:-1], strict=True)
    return [name[start:end] for name, start, end in spans]


def mask(suffix, kind="character", rate=0.3, rules=None, **changes):
    randoms = np.arange(97, 123)
    return Masking(kind, rate, MASK, randoms, [], suffix=suffix, suffix_rules=rules, **changes)


NAMES = st.lists(st.lists(st.sampled_from(LABELS + ODD), max_size=5).map(".".join), max_size=8)


@settings(max_examples=400, deadline=None)
@given(names=NAMES, dot=st.sampled_from(["", ".", ".."]))
def test_suffixes_are_those_that_the_package_finds_name_by_name(names, dot):
    package = pytest.importorskip("publicsuffixlist").PublicSuffixList(LIST)
    names = [name + dot for name in names]
    wanted = [(package.publicsuffix(name, keep_case=True) or "") for name in names]
    assert cut(names, SuffixRules.parse(LIST)) == [suffix.rstrip(".") for suffix in wanted]


def test_suffixes_of_the_whole_list_are_those_that_the_package_finds():
    package = pytest.importorskip("publicsuffixlist").PublicSuffixList()
    rules = [rule.replace("*", "foo").lstrip("!") for rule in package._publicsuffix]
    names = [prefix + rule for prefix in ("", "a.", "b.a.", "c.b.a.") for rule in rules]
    assert len(names) > 30_000
    assert cut(names, load_suffix_rules()) == [package.publicsuffix(name) or "" for name in names]


def test_upper_case_is_read_as_lower_case():
    rules = SuffixRules.parse(LIST)
    assert cut(["A.CO.UK", "X.B.Kobe.jP", "a.\u0428KOLY.fr", "a.\u0160KOLY.FR"], rules) == [
        "CO.UK",
        "B.Kobe.jP",
        "fr",
        "\u0160KOLY.FR",
    ]


def test_no_two_rules_share_a_hash():
    hashes = load_suffix_rules().hashes
    assert len(hashes) > 9_000
    assert (hashes[1:] > hashes[:-1]).all()


def test_suffixes_of_nothing_and_without_rules():
    assert cut([], SuffixRules.parse(LIST)) == []
    assert cut(["", ""], SuffixRules.parse(LIST)) == ["", ""]
    assert cut(["a.b.co.uk", "x"], SuffixRules.parse([])) == ["uk", "x"]


def test_an_exception_from_a_whole_top_level_domain_is_refused():
    with pytest.raises(ValueError, match="'!com' excepts a whole top-level domain"):
        SuffixRules.parse(["com", "!com"])


def test_a_missing_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "publicsuffixlist", None)
    load_suffix_rules.cache_clear()
    with pytest.raises(ModuleNotFoundError, match="publicsuffixlist: install it"):
        mask("never")
    load_suffix_rules.cache_clear()
    mask("any")
    mask("never", rules=SuffixRules.parse(LIST))


def hide_names(names, how, *, repeat=1, seed=0):
    """What is hidden in each name: the name with a # for each target."""
    rows = make_names(names * repeat)
    hidden = hide(rows, how, row_ids=np.arange(rows.num_rows), epochs=0, seed=seed)
    spans = zip(rows.offsets[:-1], rows.offsets[1:], strict=True)
    flags = [hidden.is_target[first:end] for first, end in spans]
    shown = [
        "".join("#" if flag else character for character, flag in zip(name, row, strict=True))
        for name, row in zip(names * repeat, flags, strict=True)
    ]
    return rows, hidden, shown


@pytest.mark.parametrize("kind", ["character", "character_span"])
def test_never_leaves_the_suffix_and_the_dots_around_it(kind):
    names = ["example.co.uk", "sub.example.com.", "x.b.kobe.jp", "city.kobe.jp"]
    _, _, shown = hide_names(names, mask("never", kind, 0.4, SuffixRules.parse(LIST)), repeat=500)
    patterns = [r"[^.]{7}\.co\.uk", r"[^.]{3}.[^.]{7}\.com\.", r"[^.]\.b\.kobe\.jp", r"[^.]{4}\.kobe\.jp"]
    assert all(re.fullmatch(pattern, name) for pattern, name in zip(patterns * 500, shown, strict=True))
    for place, (count, size) in enumerate(((3, 7), (5, 11), (1, 1), (2, 4))):
        hidden = [name.count("#") for name in shown[place::4]]
        assert set(hidden) <= {count, max(1, count - 1)}
        assert np.mean(hidden) == pytest.approx(max(1, 0.4 * size), abs=0.1)


def test_a_name_that_is_nothing_but_a_suffix_is_hidden_like_any_row():
    how = mask("never", rate=0.5, rules=SuffixRules.parse(LIST))
    names = ["co.uk", "com", "localhost", "a.com", "", f"{chr(MASK)}.com"]
    rows, hidden, shown = hide_names(names, how)
    assert [name.count("#") for name in shown][4] == 0
    assert all(name.count("#") for name in (*shown[:4], shown[5]))
    assert shown[3] == "#.com"
    got = describe_rate(rows, how, row_ids=np.arange(6), epochs=0, seed=0)
    assert got["num_suffix_rows"] == 4
    assert got["num_units"] == 5 + 3 + 9 + 1 + 4
    assert got["num_hidden"] == hidden.is_target.sum()


@pytest.mark.parametrize("kind", ["character", "character_span"])
def test_always_hides_every_label_of_the_suffix_whole_and_the_rate_in_the_rest(kind):
    names = ["long-example.co.uk", "a.b.com.", "co.uk", "localhost", "x.kobe.jp", "", "a..com"]
    rules = SuffixRules.parse(LIST)
    how = mask("always", kind, 0.25, rules, replace=(0.6, 0.2, 0.2))
    rows, hidden, shown = hide_names(names, how, repeat=400)
    ends = [".##.##", ".###.", "##.##", "#########", "#.####.##", "", ""]
    assert all(name.endswith(end) for name, end in zip(shown, ends * 400, strict=True))
    rest = [name[: -len(ends[0])] for name in shown[::7]]
    assert {name.count("#") for name in rest} == {3}
    assert all(re.fullmatch(r"#\.b\.###\.|a\.#\.###\.|a#b\.###\.", name) for name in shown[1::7])
    # No suffix where a label is empty: two or one of six characters.
    assert {name.count("#") for name in shown[6::7]} == {1, 2}
    # Each label becomes one thing as a whole.
    became = {"mask": 0, "stay": 0, "random": 0}
    for first in rows.offsets[:-1][::7]:
        label = slice(first + 13, first + 15)
        given, old = hidden.inputs[label], rows.pieces[label]
        if (given == MASK).all():
            became["mask"] += 1
        elif (given == old).all():
            became["stay"] += 1
        else:
            assert not (given == MASK).any()
            became["random"] += 1
    assert became["mask"] == pytest.approx(240, abs=50)
    assert became["random"] == pytest.approx(80, abs=40)
    got = describe_rate(rows, how, row_ids=np.arange(len(shown)), epochs=0, seed=0)
    assert got["num_suffix_words"] == 400 * (2 + 1 + 2 + 1 + 3)
    assert got["num_hidden"] + 400 * (4 + 3 + 4 + 9 + 7) == hidden.is_target.sum()


@pytest.mark.parametrize("suffix", ["never", "always"])
@settings(max_examples=150, deadline=None)
@given(
    names=NAMES,
    rate=st.sampled_from([0.01, 0.3, 0.99]),
    kind=st.sampled_from(["character", "character_span"]),
)
def test_every_odd_name_has_a_target_alone_and_in_any_batch(suffix, names, rate, kind):
    how = mask(suffix, kind, rate, SuffixRules.parse(LIST))
    rows, hidden, _ = hide_names(names, how)
    for row, (first, end) in enumerate(zip(rows.offsets[:-1], rows.offsets[1:], strict=True)):
        alone = hide(rows.take(np.array([row])), how, row_ids=np.array([row]), epochs=0, seed=0)
        assert alone.inputs.tolist() == hidden.inputs[first:end].tolist()
        assert alone.is_target.tolist() == hidden.is_target[first:end].tolist()
        assert not hidden.is_target[first:end][rows.pieces[first:end] == MASK].any()
        has_any = (rows.pieces[first:end] != MASK).any()
        only_dots = set(names[row]) <= {".", chr(MASK)}
        assert alone.is_target.any() or only_dots or not has_any
