from collections import Counter

import idna
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.clean import RuleError, apply_rules, parse_rules
from data_pipes.documents import Batch


def clean(names, *rules):
    dropped = Counter()
    batch = apply_rules(Batch.from_strings(names), parse_rules(list(rules)), dropped)
    return batch.texts.to_pylist(), dropped


def is_valid_by_hand(name):
    def is_good(label):
        letters = set("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-")
        is_ldh = bool(label) and set(label) <= letters
        return is_ldh and len(label) <= 63 and label[0] != "-" and label[-1] != "-"

    return len(name.encode()) <= 253 and all(is_good(label) for label in name.split("."))


name_like = st.text(st.sampled_from("aZ0-.._ \u00e9\n"), max_size=12)


@settings(deadline=None)
@given(st.lists(name_like | st.text(max_size=5), max_size=8))
def test_labels_agree_with_a_loop_over_labels(names):
    (rule,) = parse_rules(["labels"])
    assert rule.keep is not None
    assert rule.keep(pa.array(names, pa.string())).to_pylist() == [is_valid_by_hand(name) for name in names]


def test_the_longest_labels_and_names_are_kept_and_longer_ones_are_not():
    labels = ["a" * 63, "a" * 64, "a" + "-" * 61 + "a", "a" + "-" * 62 + "a"]
    names = [".".join(["a" * 63] * 3 + ["a" * length]) for length in (61, 62)]
    kept, dropped = clean([*labels, *names], "labels")
    assert kept == [labels[0], labels[2], names[0]]
    assert len(names[0]) == 253
    assert dropped == {"invalid_label": 3}


INVALID = ["", ".com", "a..com", "com.", "-a.com", "a-.com", "a_b.com", "a b.com", "caf\u00e9.fr", "a.com\n"]


@pytest.mark.parametrize("name", INVALID)
def test_invalid_labels_drop_their_name(name):
    (rule,) = parse_rules(["labels"])
    assert rule.keep is not None
    assert rule.keep(pa.array([name])).to_pylist() == [False]


PAIRS = [
    ("m\u00fcnchen.de", "xn--mnchen-3ya.de"),
    ("fa\u00df.de", "xn--fa-hia.de"),
    ("\u65e5\u672c\u8a9e.jp", "xn--wgv71a119e.jp"),
    ("\u043f\u0440\u0438\u043c\u0435\u0440.\u0440\u0444", "xn--e1afmkfd.xn--p1ai"),
    ("example.com", "example.com"),
]


def test_names_become_punycode_and_back():
    letters, codes = map(list, zip(*PAIRS, strict=True))
    assert clean(letters, "idn")[0] == codes
    assert clean(codes, {"kind": "idn", "to": "unicode"})[0] == letters
    # The codec of the standard library (IDNA 2003, which has no sharp s) as the second opinion.
    assert [name.encode("idna").decode() for name in letters if "\u00df" not in name] == [
        code for code in codes if code != "xn--fa-hia.de"
    ]


def test_names_in_other_spellings_become_the_usual_one():
    names = ["M\u00dcNCHEN.de", "m\uff55\u0308nchen\u3002de", "XN--MNCHEN-3YA.de"]
    assert clean(names[:2], "idn")[0] == ["xn--mnchen-3ya.de"] * 2
    assert clean(names, {"kind": "idn", "to": "unicode"})[0] == [names[0], names[1], "m\u00fcnchen.de"]
    assert clean(["\uff57ww.xn--9ca.fr"], {"kind": "idn", "to": "unicode"})[0] == ["www.\u00e9.fr"]


def test_names_that_cannot_be_converted_are_dropped_and_counted():
    names = ["ok.com", "\u2603.com", "a..\u00e9", "\u00e9" * 70 + ".fr", "\u0301a.com", "a\u200db.com"]
    assert clean(names, "idn") == (["ok.com"], {"invalid_idn": 5})
    codes = ["ok.com", "xn--a.com", "xn--.com", "x.xn--0ci.je", "xn--zz zz.com", "a--xn--9ca.fr"]
    assert clean(codes, {"kind": "idn", "to": "unicode"}) == (["ok.com", codes[-1]], {"invalid_idn": 4})


@settings(deadline=None, max_examples=200)
@given(
    st.lists(
        st.text(max_size=8)
        | st.from_regex(r"(xn--)?[a-z0-9\u00e0-\u00ff\u4e00-\u4eff-]{1,8}\.com", fullmatch=True)
    )
)
def test_any_text_is_converted_or_dropped_and_what_is_converted_comes_back(names):
    codes, dropped = clean(names, "idn", "labels")
    assert len(codes) + sum(dropped.values()) == len(names)
    assert clean(codes, "idn", "labels") == (codes, {})
    letters, dropped = clean(codes, {"kind": "idn", "to": "unicode"})
    assert clean(letters, {"kind": "idn", "to": "unicode"})[0] == letters
    lost = dropped["invalid_idn"]
    assert len(letters) + lost == len(codes)
    back = clean(letters, "idn")[0]
    valid = [code for code in codes if not _fails(code)]
    assert back == [_lower_codes(code) for code in valid]


def _fails(code):
    try:
        idna.decode(code, uts46=True)
    except UnicodeError:
        return _is_coded(code)
    return False


def _lower_codes(code):
    return code.lower() if _is_coded(code) else code


def _is_coded(name):
    return any(label.lower().startswith("xn--") for label in name.split("."))


def test_plain_names_are_left_alone():
    names = ["Example.COM", "under_score.com", "a--b.org", "-x", "a_xn--b.com"]
    for to in ("ascii", "unicode"):
        assert clean(names, {"kind": "idn", "to": to}) == (names, {})


def test_names_in_capitals_become_lower_case():
    assert clean(["WWW.Example.ORG"], "lower")[0] == ["www.example.org"]


def test_an_unknown_direction_and_a_missing_library_are_named(monkeypatch):
    with pytest.raises(RuleError, match="'idn': to is 'latin', wanted ascii or unicode"):
        parse_rules([{"kind": "idn", "to": "latin"}])
    monkeypatch.setattr("data_pipes.cleaning.names.find_spec", lambda name: None)
    with pytest.raises(RuleError, match="needs the package idna: pip install idna"):
        parse_rules(["idn"])
