"""Traces of the printed page in a text: ligatures, cut words, running heads, blanks.

Shapes: D documents.
"""

import re
from collections import defaultdict
from itertools import pairwise

import pyarrow as pa

from data_pipes.cleaning.rules import Rule, change_where, check_count
from data_pipes.documents import pc

# U+FB05 is a long s with a t; it is read as st, as U+FB06 is.
LIGATURES = dict(zip(range(0xFB00, 0xFB07), ("ff", "fi", "fl", "ffi", "ffl", "st", "st"), strict=True))
SOFT_HYPHEN = "\u00ad"
# All that str.isspace calls white space, in two parts: what ends a line, and the rest but for the space.
LINE_ENDS = r"\r\n?|[\x0B\x0C\x{85}\x{2028}\x{2029}]"
BLANKS = r"[\t\x1C-\x1F\x{A0}\x{1680}\x{2000}-\x{200A}\x{202F}\x{205F}\x{3000}]"
# The letter before is looked at second: a pattern that begins with the hyphen is searched at memory speed.
CUT = re.compile(r"[-\u2010](?<=[^\W\d_].)[^\S\n]*\n[^\S\n]*(?=[^\W\d_])")
COMPOUND = re.compile(r"[-\u2010](?<=[^\W\d_].)(?=[^\W\d_])")
LETTERS = re.compile(r"[^\W\d_]*")
# Words of natural text end within so many letters.
MAX_WORD_CHARACTERS = 64

# A page number, alone or with its marks: `12`, `- 12 -`, `[12]`, `Page 12`, `p. 12`, `xiv`. In capitals it
# would be a chapter, in parentheses a formula.
ROMAN = r"(?=[ivxlc]{2})(?:x[lc]|l?x{0,3}|c{1,3}l?x{0,3})(?:i[xv]|v?i{0,3})"
NUMBER_LINE = re.compile(
    rf"[-\u2010-\u2014\[|]?\s*(?:(?i:p(?:age|\.))\s*)?(?:\d{{1,4}}|{ROMAN})\s*[-\u2010-\u2014\]|]?"
)
NUMBER_AT_END = re.compile(r"^\d{1,4}\b|\b\d{1,4}$")
# What a line that belongs to the text ends in, and what is numbered without being a page.
OPEN_ENDS = tuple(",;:?!\"'\u2019\u201d-")
CAPTION = re.compile(
    r"(?:fig|figure|table|plate|pl|map|chart|chapter|section|part|book|appendix|no|note)\b", re.I
)
# A head comes once a page or once an opening: at least once in so many lines that stay.
LINES_PER_HEAD = 1000


def build_ligature_rule() -> Rule:
    """Write the ligatures U+FB00 to U+FB06 as letters, and nothing else."""

    def change(texts: pa.StringArray) -> pa.StringArray:
        for ligature, letters in LIGATURES.items():
            texts = pc.replace_substring(texts, chr(ligature), letters)
        return texts

    return Rule(
        "ligatures",
        change=lambda texts: change_where(
            texts, pc.match_substring_regex(texts, r"[\x{FB00}-\x{FB06}]"), change
        ),
    )


def build_hyphen_rule() -> Rule:
    """Join words that were cut by a hyphen at a line's end, and remove soft hyphens.

    A cut is a hyphen between two lower-case letters with one line end (and blanks) behind it: `exam-|ple`
    becomes `example`. Where the document has the compound in one line too (`well-known` for `well-|known`),
    or the word has a hyphen already (`state-of-the-|art`), only the line end goes. A capital or a digit at
    either side (`Anglo-|Saxon`) and an empty line behind the hyphen are left as they are.
    """

    def change(texts: pa.StringArray) -> pa.StringArray:
        has_soft = pc.match_substring(texts, SOFT_HYPHEN)
        texts = change_where(texts, has_soft, lambda chosen: pc.replace_substring(chosen, SOFT_HYPHEN, ""))
        is_cut = pc.match_substring_regex(texts, rf"[-\x{{2010}}](?:[ \r]|{LINE_ENDS}|{BLANKS})*\n")
        return change_where(
            texts, is_cut, lambda chosen: pa.array(map(join_cut_words, chosen.to_pylist()), pa.string())
        )

    return Rule("hyphens", change=change)


def join_cut_words(text: str) -> str:
    """The text with its cut words joined, see build_hyphen_rule."""
    compounds = None

    def join(cut: re.Match[str]) -> str:
        nonlocal compounds
        start, end = cut.span()
        if not (text[start - 1].islower() and text[end].islower()):
            return cut[0]
        left, right = _find_left_word(text, start), _find_right_word(text, end)
        if start > len(left) and text[start - len(left) - 1] in "-\u2010":
            return text[start]
        if compounds is None:
            compounds = _find_compounds(text)
        return text[start] if (left.lower(), right.lower()) in compounds else ""

    return CUT.sub(join, text)


def _find_compounds(text: str) -> set[tuple[str, str]]:
    """The words beside each hyphen inside of a line."""
    return {
        (_find_left_word(text, hyphen.start()).lower(), _find_right_word(text, hyphen.end()).lower())
        for hyphen in COMPOUND.finditer(text)
    }


def _find_left_word(text: str, end: int) -> str:
    start = max(0, end - MAX_WORD_CHARACTERS)
    reverse = LETTERS.match(text[start:end][::-1])
    assert reverse is not None
    return reverse[0][::-1]


def _find_right_word(text: str, start: int) -> str:
    word = LETTERS.match(text, start, start + MAX_WORD_CHARACTERS)
    assert word is not None
    return word[0]


def build_running_head_rule(max_length: int = 60, min_repeats: int = 3) -> Rule:
    """Remove the running heads and page numbers of a document that still has its pages.

    A head is a line of at most max_length characters, with a letter in it, that comes min_repeats times or
    more, and at least once in 1,000 lines that stay anyway. Lines that differ in a number at their start or
    end are the same head if the number rises from each to the next and they are no captions (`Figure 3`).
    Lines that follow one another directly (a table) or end within a sentence (a comma, a question mark, a
    quotation mark) are none. A line of only a page number goes, unless its neighbour is a number too.
    """
    check_count("running_heads", "max_length", max_length, 1)
    check_count("running_heads", "min_repeats", min_repeats, 2)

    def change(texts: pa.StringArray) -> pa.StringArray:
        return change_where(
            texts,
            pc.match_substring(texts, "\n"),
            lambda chosen: pa.array(
                [remove_running_heads(text, max_length, min_repeats) for text in chosen.to_pylist()],
                pa.string(),
            ),
        )

    return Rule("running_heads", change=change)


def remove_running_heads(text: str, max_length: int, min_repeats: int) -> str:
    """The text without its running heads and page numbers, see build_running_head_rule."""
    lines = text.split("\n")
    places = _find_short_lines(lines, max_length)
    heads = _find_heads(places, max(min_repeats, (len(lines) - len(places)) // LINES_PER_HEAD))
    kept = [place for place in range(len(lines)) if place not in heads]
    numbers = _find_page_numbers(lines, kept, places)
    if not heads and not numbers:
        return text
    return "\n".join(lines[place] for place in kept if place not in numbers)


def _find_short_lines(lines: list[str], max_length: int) -> dict[int, str]:
    """The short lines by their place, stripped; empty ones are left out."""
    # Indented ones are longer by their blanks.
    short = {place: line.strip() for place, line in enumerate(lines) if len(line) <= 2 * max_length}
    return {place: line for place, line in short.items() if 0 < len(line) <= max_length}


def _find_heads(places: dict[int, str], min_repeats: int) -> set[int]:
    same, numbered = defaultdict(list), defaultdict(list)
    for place, line in places.items():
        if line.endswith(OPEN_ENDS) or NUMBER_LINE.fullmatch(line):
            continue
        same[line].append(place)
        if not CAPTION.match(line):
            for number in NUMBER_AT_END.finditer(line):
                numbered[line[: number.start()], line[number.end() :]].append((place, int(number[0])))
    heads = set()
    for line, found in same.items():
        if len(found) >= min_repeats and _are_apart(found) and _has_letter(line):
            heads.update(found)
    for (before, after), found in numbered.items():
        if len(found) < min_repeats or not _has_letter(before + after):
            continue
        is_rising = all(first[1] < second[1] for first, second in pairwise(found))
        if is_rising and _are_apart([place for place, _ in found]):
            heads.update(place for place, _ in found)
    return heads


def _are_apart(places: list[int]) -> bool:
    return all(second - first > 1 for first, second in pairwise(places))


def _has_letter(text: str) -> bool:
    return any(character.isalpha() for character in text)


def _find_page_numbers(lines: list[str], kept: list[int], places: dict[int, str]) -> set[int]:
    """Lines of only a page number whose neighbours among the kept ones are no numbers."""
    is_number = [place in places and NUMBER_LINE.fullmatch(places[place]) is not None for place in kept]
    beside = [False, *is_number, False]
    return {
        place
        for index, place in enumerate(kept)
        if is_number[index] and not beside[index] and not beside[index + 2]
    }


def build_whitespace_rule() -> Rule:
    """One space for a run of blanks, at most one empty line in a row, nothing at the ends of lines and text.

    Blanks and line ends of all kinds count (no-break spaces, tabs, U+2028, carriage returns).
    """

    def change(texts: pa.StringArray) -> pa.StringArray:
        for pattern, new in (
            (LINE_ENDS, "\n"),
            (BLANKS, " "),
            (" {2,}", " "),
            (" \n ?|\n ", "\n"),
            ("\n{3,}", "\n\n"),
        ):
            texts = pc.replace_substring_regex(texts, pattern, new)
        return pc.utf8_trim(texts, " \n")

    untidy = rf"{LINE_ENDS}|{BLANKS}|  | \n|\n |\n\n\n|^[ \n]|[ \n]$"
    return Rule(
        "whitespace",
        change=lambda texts: change_where(texts, pc.match_substring_regex(texts, untidy), change),
    )
