import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data_pipes.clean import RuleError, apply_rules, drop_unfit_characters, parse_rules
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


@given(st.text(st.characters(exclude_categories=["Cs", "Cn"]), min_size=1, max_size=20))
def test_normal_form_c_and_lengths_agree_with_python(text):
    kept, _ = clean([text, "."], "nfc", {"kind": "length", "min": 2})
    normal = unicodedata.normalize("NFC", text)
    assert kept == [normal] * (len(normal) >= 2 and bool(normal.strip()))


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
        ("upper", "rule 'upper' is not known; write one of lower, strip, nfc, length, alphabet"),
        ({"kind": "length", "most": 3}, "rule 'length': .*most"),
        ({"kind": "alphabet", "characters": "z-a"}, "alphabet 'z-a' is no regex class"),
    ],
)
def test_a_wrong_rule_says_what_is_known(spec, wanted):
    with pytest.raises(RuleError, match=wanted):
        parse_rules([spec])
