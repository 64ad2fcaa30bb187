import re

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipes.clean import RuleError, parse_rules

ODD = "\u00a0\u2003\u3000\u202f\u1680\x1c\x1f\t\r\x0b\x0c\x85\u2028\u2029" + (
    "\u00ad\u2010-\n  ab\u00e9Z1\ufb01\u200b\ufeff"
)
odd_text = st.text(st.sampled_from(ODD), max_size=25) | st.text(
    st.characters(exclude_categories=["Cs"]), max_size=15
)


def change(texts, kind):
    texts = [texts] if isinstance(texts, str) else texts
    (rule,) = parse_rules([kind])
    assert rule.change is not None
    return rule.change(pa.array(texts, pa.string())).to_pylist()


# Ligatures


def test_the_seven_ligatures_become_letters_and_nothing_else_changes():
    assert change("o\ufb00 \ufb01n \ufb02y a\ufb03x wa\ufb04e la\ufb05 \ufb06op", "ligatures") == [
        "off fin fly affix waffle last stop"
    ]
    others = "".join(
        chr(c) for c in range(0x110000) if not 0xD800 <= c < 0xE000 and not 0xFB00 <= c <= 0xFB06
    )
    assert change([others, others + "\ufb01"], "ligatures") == [others, others + "fi"]


# Hyphens


def join_by_hand(text):
    """Character by character: what the rule's description says."""
    text = text.replace("\u00ad", "")

    def word(place, step):
        letters = ""
        while 0 <= place < len(text) and text[place].isalpha():
            letters, place = letters + text[place], place + step
        return letters[::step].lower(), place

    compounds = {
        (word(i - 1, -1)[0], word(i + 1, 1)[0])
        for i, c in enumerate(text)
        if c in "-\u2010" and 0 < i < len(text) - 1 and text[i - 1].isalpha() and text[i + 1].isalpha()
    }
    out, i = "", 0
    while i < len(text):
        rest = text[i + 1 :]
        behind = rest.lstrip()
        gap = rest[: len(rest) - len(behind)]
        is_cut = text[i] in "-\u2010" and i > 0 and text[i - 1].islower() and gap.count("\n") == 1
        if not (is_cut and behind and behind[0].islower()):
            out, i = out + text[i], i + 1
            continue
        left, before = word(i - 1, -1)
        is_compound = (left, word(i + 1 + len(gap), 1)[0]) in compounds
        is_chain = before >= 0 and text[before] in "-\u2010"
        out += text[i] if is_compound or is_chain else ""
        i += 1 + len(gap)
    return out


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("an exam-\nple", "an example"),
        ("an exam- \r\n  ple", "an example"),
        ("an exam-\u00a0\n\u2003ple", "an example"),
        ("an exam\u2010\nple and an\u00adother", "an example and another"),
        ("a-\nb-\nc", "abc"),
        ("a well-\nknown fact", "a wellknown fact"),
        ("a well-\nknown, Well-known fact", "a well-known, Well-known fact"),
        ("state-of-the-\nart", "state-of-the-art"),
        ("Anglo-\nSaxon, X-\nray, 1990-\n1995, a -\nb, end-\n\nnext", None),
        ("mid-line well-known", None),
        ("caf\u00e9-\n\u00e9tude", "caf\u00e9\u00e9tude"),
    ],
)
def test_cut_words_are_joined_and_compounds_stay(text, wanted):
    assert change(text, "hyphens") == [text if wanted is None else wanted]


cut_text = st.text(st.sampled_from("ab\u00e9Z1--\n\n \u2010\u00ad\r\u00a0"), max_size=25)


@settings(deadline=None)
@given(st.lists(odd_text | cut_text, max_size=4))
def test_joining_agrees_with_a_loop_over_characters_and_is_done_once(texts):
    joined = change(texts, "hyphens")
    assert joined == [join_by_hand(text) for text in texts]
    assert change(joined, "hyphens") == joined


def test_long_texts_are_joined_in_time_that_grows_with_their_length():
    text = "the well-known exam-\nple of a well-\nknown word\n" * 20_000
    assert change(text, "hyphens") == ["the well-known example of a well-known word\n" * 20_000]


# White space


def tidy_by_hand(text):
    text = re.sub("\r\n", "\n", text)
    text = "".join("\n" if c in "\r\x0b\x0c\x85\u2028\u2029" else c for c in text)
    lines = [" ".join(line.split()) for line in text.split("\n")]
    kept = [line for line, before in zip(lines, ["", *lines[:-1]], strict=True) if line or before]
    return "\n".join(kept).strip()


@settings(deadline=None)
@given(st.lists(odd_text, max_size=4))
def test_white_space_agrees_with_python_line_by_line_and_is_tidied_once(texts):
    tidy = change(texts, "whitespace")
    assert tidy == [tidy_by_hand(text) for text in texts]
    assert change(tidy, "whitespace") == tidy


def test_blanks_and_empty_lines_at_the_ends_go():
    assert change([" a", "a ", "\na", "a\n", "a"], "whitespace") == ["a"] * 5


def test_every_character_that_python_calls_white_space_counts():
    blanks = [chr(c) for c in range(0x110000) if chr(c).isspace()]
    assert len(blanks) == 29
    assert set(change([f"a{blank} {blank}b" for blank in blanks], "whitespace")) == {"a b", "a\n\nb"}


# Running heads

PAGE = "A line of prose that goes on and on until the right edge of the page is reached\nand one more of it."


def make_pages(make_head, num_pages=6):
    return "\n".join(f"{make_head(page)}\n{PAGE} {chr(97 + page)}x" for page in range(num_pages))


def drop_page_lines(num_pages=6):
    return "\n".join(f"{PAGE} {chr(97 + page)}x" for page in range(num_pages))


@pytest.mark.parametrize(
    "make_head",
    [
        lambda page: "JOURNAL OF GEOLOGY",
        lambda page: f"{page + 7} JOURNAL OF GEOLOGY 1897",
        lambda page: f"   The Burgess Shale   {page + 98}\r",
        lambda page: (
            f"JOURNAL OF GEOLOGY\n\x0c{page + 1}" if page % 2 else f"TRILOBITES  {page + 1}\n- {page} -"
        ),
        lambda page: f"{page + 1}",
        lambda page: ["i", "ii", "iii", "iv", "v", "vi"][page] if page % 4 else f"Page {page}",
        lambda page: f"[{page + 100}]",
    ],
)
def test_running_heads_and_page_numbers_go(make_head):
    assert change(make_pages(make_head), "running_heads") == [drop_page_lines()]


@pytest.mark.parametrize(
    "make_head",
    [
        lambda page: f"Figure {page + 1}",
        lambda page: f"TABLE {page}",
        lambda page: "A head that is longer than a line of sixty characters may ever be",
        lambda page: "* * *",
        lambda page: "he said,",
        lambda page: "What?",
        lambda page: f"Sample {[5, 3, 8, 1, 9, 2][page]}",
        lambda page: f"Sample {page // 2}",
        lambda page: "Quartz\nQuartz",
        lambda page: f"{page}\n{page + 10}",
        lambda page: f"({page})",
        lambda page: ["II", "VI", "IX", "XI", "IV", "XX"][page],
        lambda page: f"{page + 10_000}",
        lambda page: f"Unlike heads {'abcdef'[page]}",
        lambda page: "",
    ],
)
def test_other_short_lines_stay(make_head):
    text = make_pages(make_head)
    assert change(text, "running_heads") == [text]


def test_a_line_that_comes_twice_stays_and_the_arguments_say_how_often_and_how_long():
    text = make_pages(lambda page: "JOURNAL", 2)
    assert change(text, "running_heads") == [text]
    assert change(text, {"kind": "running_heads", "min_repeats": 2}) == [drop_page_lines(2)]
    assert change(text, {"kind": "running_heads", "min_repeats": 2, "max_length": 6}) == [text]


def test_a_long_book_wants_more_repeats():
    page = "\n".join(
        "A line of prose that is longer than sixty characters, as all of them are here." for _ in range(1000)
    )
    text = "\n".join(f"Yes.\n{page}" for _ in range(3))
    assert change(text, "running_heads") == [text.replace("Yes.\n", "")]
    rare = "\n".join(f"Yes.\n{page}\n{page}" for _ in range(3))
    assert change(rare, "running_heads") == [rare]


LINES = [
    "HEAD",
    "HEAD 1",
    "HEAD 2",
    "HEAD 3",
    "1",
    "2",
    "xi",
    "",
    "Figure 1",
    "prose, prose",
    "x" * 70,
    "7 HEAD",
]


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES) | odd_text, max_size=30))
def test_only_short_lines_go_and_once(lines):
    text = "\n".join(lines)
    (cleaned,) = change(text, "running_heads")
    assert change(cleaned, "running_heads") == [cleaned]
    remaining = iter(text.split("\n"))
    for line in cleaned.split("\n"):
        for before in remaining:
            if before == line:
                break
            assert 0 < len(before.strip()) <= 60
    assert all(0 < len(line.strip()) <= 60 for line in remaining)


@pytest.mark.parametrize("value", [0, 1, True, "3"])
def test_a_wrong_number_of_repeats_is_refused(value):
    with pytest.raises(RuleError, match="'running_heads': min_repeats is .*at least 2"):
        parse_rules([{"kind": "running_heads", "min_repeats": value}])
