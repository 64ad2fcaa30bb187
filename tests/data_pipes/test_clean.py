import unicodedata
from collections import Counter

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.clean import RULES, RuleError, apply_rules, drop_unfit_characters, parse_rules
from data_pipes.documents import Batch


def clean(texts, *specs):
    dropped = Counter()
    return apply_rules(
        Batch.from_strings(texts), parse_rules(list(specs)), dropped
    ).texts.to_pylist(), dropped


def test_rules_run_in_order_and_count_what_they_drop():
    texts = [" ABC.com ", "ab", "", " ", "x" * 9, "caf\u00e9.fr", "a.b\n"]
    rules = [
        "strip",
        "lower",
        {"kind": "length", "min": 3, "max": 8},
        {"kind": "alphabet", "characters": "a-z."},
    ]
    kept, dropped = clean(texts, *rules)
    assert kept == ["abc.com", "a.b"]
    assert dropped == {"length": 4, "alphabet": 1}


def test_an_alphabet_does_not_overlook_a_line_end():
    assert clean(["ab\n", "ab"], {"kind": "alphabet", "characters": "a-z"})[0] == ["ab"]


def test_documents_of_white_space_only_are_dropped_without_any_rule():
    assert clean(["a", " \t\n", ""]) == (["a"], {"empty": 2})


@settings(deadline=None)
@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=20))
def test_normal_form_c_and_lengths_agree_with_python(text):
    kept, _ = clean([text, "."], "nfc", {"kind": "length", "min": 2})
    normal = unicodedata.normalize("NFC", text)
    assert kept == [normal] * (len(normal) >= 2 and bool(normal.strip()))


FORMS = ("NFC", "NFD", "NFKC", "NFKD")
# Old characters only: Python and Arrow may know different versions of Unicode.
old_text = st.text(
    st.characters(exclude_categories=["Cs", "Cn", "Co"], max_codepoint=0x2FFF)
    | st.sampled_from("a\u00e9\u2019\u2026\u2011\u0301\u0327\u00a0\u212b\uac00\u1161\ufb01"),
    max_size=12,
)


@pytest.mark.parametrize("form", FORMS)
@settings(deadline=None)
@given(st.lists(old_text, max_size=5))
def test_normal_forms_agree_with_python_and_are_reached_at_once(form, texts):
    change = parse_rules([{"kind": "unicode", "form": form}])[0].change
    assert change is not None
    normal = change(pa.array(texts, pa.string()))
    assert normal.to_pylist() == [unicodedata.normalize(form, text) for text in texts]
    assert change(normal).equals(normal)


@pytest.mark.parametrize("form", FORMS)
def test_each_character_alone_gets_its_normal_form(form):
    change = parse_rules([{"kind": "unicode", "form": form}])[0].change
    assert change is not None
    known = [chr(c) for c in range(0x2FFF) if unicodedata.category(chr(c)) not in ("Cn", "Cs")]
    for before in ("", "a"):
        texts = [before + character for character in known]
        assert change(pa.array(texts)).to_pylist() == [unicodedata.normalize(form, text) for text in texts]


def test_short_names_of_the_normal_forms():
    assert clean(["e\u0301 \ufb01"], "nfc")[0] == ["\u00e9 \ufb01"]
    assert clean(["e\u0301 \ufb01"], "nfkc")[0] == ["\u00e9 fi"]


ANY_RULE = [
    *(kind for kind in RULES if kind != "alphabet"),
    {"kind": "length", "min": 2, "max": 9},
    {"kind": "alphabet", "characters": "a-z0-9. -"},
    {"kind": "idn", "to": "unicode"},
    {"kind": "running_heads", "min_repeats": 2},
]
any_text = st.text(max_size=15) | st.text(
    st.sampled_from("ab\n\n- .\u00e9\u00ad1XxN\u0130\ufb05\u3002"), max_size=25
)


@settings(deadline=None, max_examples=200)
@given(
    st.lists(any_text | st.just("xn--9ca.fr"), max_size=8), st.lists(st.sampled_from(ANY_RULE), max_size=5)
)
def test_every_document_is_kept_or_counted_under_one_reason(texts, rules):
    dropped = Counter()
    batch = Batch.from_strings(texts, [str(number) for number in range(len(texts))])
    cleaned = apply_rules(batch, parse_rules(rules), dropped)
    cleaned = drop_unfit_characters(cleaned, dropped)
    assert cleaned.num_documents + sum(dropped.values()) == len(texts)
    assert min(dropped.values(), default=1) > 0
    assert cleaned.texts.null_count == 0
    assert len(cleaned.is_damaged) == len(cleaned.groups) == cleaned.num_documents
    # One by one gives the same: no rule looks across documents.
    alone = [
        apply_rules(Batch.from_strings([text]), parse_rules(rules), Counter()).texts.to_pylist()
        for text in texts
    ]
    kept = {
        int(group): text
        for group, text in zip(cleaned.groups.to_pylist(), cleaned.texts.to_pylist(), strict=True)
    }
    assert all(alone[number] == [text] for number, text in kept.items())


def test_a_text_that_cannot_be_changed_drops_its_document_under_the_reason_of_the_rule():
    batch = Batch.from_strings(["a.com", "\u2603..com", "\u00c9.fr"], ["1", "2", "3"])
    dropped = Counter()
    batch = apply_rules(batch, parse_rules(["idn"]), dropped)
    assert (batch.texts.to_pylist(), batch.groups.to_pylist()) == (["a.com", "xn--9ca.fr"], ["1", "3"])
    assert dropped == {"invalid_idn": 1}


def test_groups_and_damage_stay_with_their_documents():
    batch = Batch.from_strings(["aa", "b", "\ud800c"], ["1", "2", "3"])
    batch = apply_rules(batch, parse_rules([{"kind": "length", "min": 2}]), Counter())
    assert (batch.groups.to_pylist(), batch.is_damaged.tolist()) == (["1", "3"], [False, True])


def test_characters_that_a_character_model_would_misread_drop_their_document():
    bad = ["a\x00b", *(f"x{chr(0xE000 + number)}" for number in range(5)), "half \ud800"]
    dropped = Counter()
    batch = drop_unfit_characters(Batch.from_strings(["ok", "\ue005", *bad]), dropped)
    assert batch.texts.to_pylist() == ["ok", "\ue005"]
    assert dropped == {"reserved_character": 6, "lone_surrogate": 1}


@pytest.mark.parametrize(
    ("spec", "wanted"),
    [
        ("upper", "rule 'upper' is not known; write one of lower, strip, nfc, nfkc, unicode, "),
        ({"kind": "length", "min": "3"}, "'length': min is '3', wanted a whole number of at least 0"),
        ({"kind": "length", "min": 9, "max": 3}, "'length': max is 3, wanted a whole number of at least 9"),
        ({"kind": "unicode", "form": "NFX"}, "form 'NFX' is not known; write one of NFC, NFD, NFKC, NFKD"),
        ({"kind": "length", "most": 3}, "rule 'length': .*most"),
        ({"kind": "alphabet", "characters": "z-a"}, "alphabet 'z-a' is no regex class"),
    ],
)
def test_a_wrong_rule_says_what_is_known(spec, wanted):
    with pytest.raises(RuleError, match=wanted):
        parse_rules([spec])
