"""The lexicon: pieces of stretches of text that were met before, so that a tokenizer sees each once.

A stretch is what lies between two places where a tokenizer's work falls apart: single spaces with a plain
letter, digit or punctuation mark on both sides. Where `is_local` holds, the pieces of a text are those of its
stretches, end to end. Most stretches of a text are common words.

Shapes: D documents, B bytes, K stretches, E entries of the lexicon, N pieces.
"""

import unicodedata
from collections.abc import Callable
from functools import cache
from typing import Any, Protocol

import numpy as np
import pyarrow as pa
from tokenizers import pre_tokenizers

from data_pipes.documents import column_bytes, flatten_code_points
from data_pipes.tokens.boundaries import find_sentences

# Longer stretches are hardly ever met again; so many of the others take about 100 MB.
MAX_CHARACTERS, MAX_ENTRIES = 32, 1 << 19
# New stretches are encoded so many in a text: 25,000 of them took 60 ms in texts of 200 to 1,000, 73 ms in
# texts of 20 and 77 ms in one.
RUN_LENGTH, FRONT = 256, "x"
SPACE_BYTE = 0x20
# Each of these may stand on either side of a cut: it survives every normaliser and joins nothing across a
# space. Beyond ASCII: Latin, Greek and Cyrillic letters, dashes, curly quotes. The underscore joins words.
NUM_SAFE_LETTERS = 0x530
SAFE_SIGNS = (0x2013, 0x2014, 0x2018, 0x2019, 0x201C, 0x201D)

SPLITTERS = ("Metaspace", "ByteLevel", "BertPreTokenizer", "Whitespace", "WhitespaceSplit")
LOCAL_NORMALIZERS = (
    *("NFC", "NFD", "NFKC", "NFKD", "Lowercase", "StripAccents", "BertNormalizer", "Precompiled", "Strip"),
)
# Of white space of which no two characters are a cut.
LOCAL_PATTERNS = ({"Regex": r"\s{2,}|[\n\r\t]"}, {"Regex": " {2,}"})


class EncodedTexts(Protocol):
    """What a tokenizer gives for some texts, see tokenize.Pieces."""

    @property
    def ids(self) -> np.ndarray: ...  # noqa: D102
    @property
    def offsets(self) -> np.ndarray: ...  # noqa: D102
    @property
    def word_starts(self) -> np.ndarray: ...  # noqa: D102
    @property
    def sentence_starts(self) -> np.ndarray: ...  # noqa: D102


Encode = Callable[[pa.StringArray], tuple[EncodedTexts, np.ndarray]]


def is_local(state: dict[str, Any]) -> bool:
    """Whether a tokenizer (its JSON) gives stretches the pieces that they have inside a text.

    True only where every part is known to look no further than the next space.
    """
    added = [a for a in state["added_tokens"] if not a["special"]]
    normalizers = _flatten(state["normalizer"], "normalizers")
    splitters = [
        part
        for part in _flatten(state["pre_tokenizer"], "pretokenizers")
        if part["type"] not in ("Punctuation", "Digits")
    ]
    return (
        all(not (a["lstrip"] or a["rstrip"] or any(map(str.isspace, a["content"]))) for a in added)
        and all(map(_is_local_normalizer, normalizers))
        and not (added and any(part.get("strip_left") for part in normalizers))
        and len(splitters) > 0
        and all(part["type"] in SPLITTERS for part in splitters)
        and splitters[0].get("split", True)
        and splitters[0].get("use_regex", True)
        and _is_local_model(state["model"], splitters)
    )


def _flatten(part: dict[str, Any] | None, key: str) -> list[dict[str, Any]]:
    if part is None:
        return []
    if part["type"] != "Sequence":
        return [part]
    return [inner for child in part[key] for inner in _flatten(child, key)]


def _is_local_normalizer(part: dict[str, Any]) -> bool:
    if part["type"] != "Replace":
        return part["type"] in LOCAL_NORMALIZERS
    literal = part["pattern"].get("String")
    if literal is None:
        return part["pattern"] in LOCAL_PATTERNS
    return bool(part["content"]) and not any(map(str.isspace, literal + part["content"]))


def _is_local_model(model: dict[str, Any], splitters: list[dict[str, Any]]) -> bool:
    """Each word gives at least one piece, the same one each time."""
    if model["type"] != "BPE":
        return model["type"] in ("Unigram", "WordPiece", "WordLevel")
    has_bytes = splitters[-1]["type"] == "ByteLevel" and model["vocab"].keys() >= set(
        pre_tokenizers.ByteLevel.alphabet()
    )
    return not model["dropout"] and (has_bytes or model["unk_token"] is not None)


class Lexicon:
    """Encodes documents by looking up their stretches; new ones go through the tokenizer.

    What comes out does not depend on what was met before.

    Args:
        encode: gives pieces of some texts, and the code points (start, end) of each in all texts together.
    """

    def __init__(self, encode: Encode):
        self._encode = encode
        self._forget()

    def _forget(self) -> None:
        self._numbers: dict[str, int] = {}
        self._lengths = np.zeros(0, np.int64)  # [E]
        self._can_end = self._can_begin = np.zeros(0, bool)  # [E]
        self._ids = np.zeros(0, np.uint32)  # of all entries, end to end
        self._word_starts = self._sentence_starts = np.zeros(0, bool)

    def encode(self, texts: pa.StringArray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Ids uint32 [N], offsets int64 [D + 1], word starts bool [N], sentence starts bool [N]."""
        if len(texts) == 0:
            flags = np.zeros(0, bool)
            return np.zeros(0, np.uint32), np.zeros(1, np.int64), flags, flags
        column, first_D = cut_stretches(texts)
        is_first_K = np.zeros(len(column), bool)
        is_first_K[first_D] = True
        entries_K = self._look_up(column, is_first_K)

        lengths_E, ends_E = self._lengths, np.cumsum(self._lengths)
        lengths_K = lengths_E[entries_K]
        offsets = np.concatenate(([0], np.cumsum(lengths_K)))
        source = np.repeat((ends_E - lengths_E)[entries_K] - offsets[:-1], lengths_K) + np.arange(offsets[-1])
        ids, starts, sentences = self._ids[source], self._word_starts[source], self._sentence_starts[source]
        is_sentence_K = is_first_K | (
            np.append(True, self._can_end[entries_K[:-1]]) & self._can_begin[entries_K]
        )
        # Only a document that is one stretch can have no pieces.
        sentences[offsets[:-1][lengths_K > 0]] = is_sentence_K[lengths_K > 0]
        self._drop_rare()
        return ids, offsets[np.append(first_D, len(column))], starts, sentences

    def _look_up(self, column: pa.StringArray, is_first_K: np.ndarray) -> np.ndarray:
        """The entry of each stretch, after new ones were added; int64 [K]."""
        encoded = column.dictionary_encode()
        # The same characters are one entry at the front of a document and another one inside.
        codes_K = 2 * encoded.indices.to_numpy().astype(np.int64) + is_first_K
        is_met = np.zeros(2 * len(encoded.dictionary), bool)
        is_met[codes_K] = True
        met = np.flatnonzero(is_met)
        strings = encoded.dictionary.take(pa.array(met >> 1)).to_pylist()
        # No stretch inside a document begins with anything but a space.
        for place in np.flatnonzero(met & 1).tolist():
            strings[place] = f"^{strings[place]}"
        numbers = np.fromiter(map(self._numbers.get, strings, [-1] * len(strings)), np.int64, len(strings))
        new = np.flatnonzero(numbers < 0)
        if len(new):
            numbers[new] = self._add([strings[place] for place in new.tolist()])
        entry_of_code = np.zeros(len(is_met), np.int64)
        entry_of_code[met] = numbers
        return entry_of_code[codes_K]

    def _add(self, keys: list[str]) -> np.ndarray:
        """Encode new stretches and give their entries, int64; long ones are last."""
        column = pa.array(keys, pa.string())
        code_points, bounds = flatten_code_points(column)
        is_first = code_points[bounds[:-1]] == ord("^")
        is_long = np.diff(bounds) > MAX_CHARACTERS
        is_joined = ~is_first & ~is_long & build_safe_table()[code_points[bounds[1:] - 1]]
        kinds = np.where(is_long, 2, np.where(is_joined, 0, 1))
        order = np.argsort(kinds, kind="stable").tolist()
        strings = [keys[place].removeprefix("^") for place in order]
        entries = len(self._lengths) + np.arange(len(keys))
        num_joined, num_kept = int(np.count_nonzero(kinds == 0)), int(np.count_nonzero(kinds < 2))
        kept_keys = (keys[place] for place in order[:num_kept])
        self._numbers.update(zip(kept_keys, entries[:num_kept].tolist(), strict=True))
        firsts = [*range(0, num_joined, RUN_LENGTH), *range(num_joined, len(keys))]
        self._append(strings, np.array(firsts, np.int64), ~is_first[order])
        numbers = np.empty(len(keys), np.int64)
        numbers[order] = entries
        return numbers

    def _append(self, strings: list[str], first_T: np.ndarray, has_front_E: np.ndarray) -> None:
        """Encode runs of stretches, each run as a text, and give each piece to the stretch that it begins in.

        Behind a word of their own, stretches from inside a document are what they are inside a document.
        """
        bounds = [*first_T.tolist(), len(strings)]
        runs = zip(bounds[:-1], bounds[1:], has_front_E[first_T].tolist(), strict=True)
        texts = [FRONT * has_front + "".join(strings[a:b]) for a, b, has_front in runs]
        pieces, spans = self._encode(pa.array(texts, pa.string()))

        text_N = np.repeat(np.arange(len(texts)), np.diff(pieces.offsets))
        text_E = np.repeat(np.arange(len(texts)), np.diff(bounds))
        lengths_E = np.fromiter(map(len, strings), np.int64, len(strings))
        start_E = np.cumsum(lengths_E) - lengths_E + np.cumsum(has_front_E[first_T])[text_E]
        entries_N = np.searchsorted(start_E, spans[:, 0], side="right") - 1
        is_kept = entries_N >= first_T[text_N]  # not of the front
        self._lengths = np.concatenate(
            (self._lengths, np.bincount(entries_N[is_kept], minlength=len(strings)))
        )
        self._ids = np.concatenate((self._ids, pieces.ids[is_kept]))
        self._word_starts = np.concatenate((self._word_starts, pieces.word_starts[is_kept]))
        self._sentence_starts = np.concatenate((self._sentence_starts, pieces.sentence_starts[is_kept]))
        code_points, bounds = flatten_code_points(pa.array(strings, pa.string()))
        _, can_end, can_begin = find_sentences(code_points, bounds)
        self._can_end = np.concatenate((self._can_end, can_end))
        self._can_begin = np.concatenate((self._can_begin, can_begin))

    def _drop_rare(self) -> None:
        """Forget the long stretches of the last call, and everything once it is too much."""
        if len(self._numbers) > MAX_ENTRIES:
            self._forget()
            return
        num_entries = len(self._numbers)
        num_pieces = int(self._lengths[:num_entries].sum())
        self._lengths = self._lengths[:num_entries]
        self._can_end, self._can_begin = self._can_end[:num_entries], self._can_begin[:num_entries]
        self._ids, self._word_starts = self._ids[:num_pieces], self._word_starts[:num_pieces]
        self._sentence_starts = self._sentence_starts[:num_pieces]


@cache
def build_safe_table() -> np.ndarray:
    """Whether a code point may stand beside a cut, bool [0x110000]."""
    table = np.zeros(0x110000, bool)
    letters = [c for c in range(0x80, NUM_SAFE_LETTERS) if unicodedata.category(chr(c)) in ("Lu", "Ll")]
    table[0x21:0x7F] = True
    table[letters + list(SAFE_SIGNS)] = True
    table[ord("_")] = False
    table.flags.writeable = False
    return table


def cut_stretches(texts: pa.StringArray) -> tuple[pa.StringArray, np.ndarray]:
    """Stretches of all texts [K], those inside with the space before them, and the first of each text [D].

    A text without a cut is one stretch, an empty one as well.
    """
    data = np.frombuffer(column_bytes(texts), np.uint8)
    sizes = np.diff(np.frombuffer(texts.buffers()[1], np.int32)[texts.offset : texts.offset + len(texts) + 1])
    bounds_D = np.concatenate(([0], np.cumsum(sizes, dtype=np.int64)))
    spaces = np.flatnonzero(data == SPACE_BYTE)
    is_edge = np.zeros(len(data) + 1, bool)
    is_edge[bounds_D] = True
    spaces = spaces[~(is_edge[spaces] | is_edge[spaces + 1])]
    cuts = spaces[_is_safe_before(data, spaces) & _is_safe_after(data, spaces)]
    first_D = np.searchsorted(cuts, bounds_D) + np.arange(len(bounds_D))
    bounds = np.empty(len(cuts) + len(bounds_D), np.int32)
    is_cut = np.ones(len(bounds), bool)
    is_cut[first_D] = False
    bounds[first_D], bounds[is_cut] = bounds_D, cuts
    return (
        pa.StringArray.from_buffers(len(bounds) - 1, pa.py_buffer(bounds), pa.py_buffer(data)),
        first_D[:-1],
    )


def _is_safe_before(data_B: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the code point before each place, none of them the first, is safe."""
    last = data_B[places - 1]
    is_safe = build_safe_table()[last]
    (wide,) = np.nonzero(last >= 0x80)
    is_safe[wide] = _are_wide_safe(data_B, places[wide] - np.where(data_B[places[wide] - 2] >= 0xC0, 2, 3))
    return is_safe


def _is_safe_after(data_B: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the code point after each place, none of them the last, is safe."""
    following = data_B[places + 1]
    is_safe = build_safe_table()[following]
    (wide,) = np.nonzero(following >= 0x80)
    is_safe[wide] = _are_wide_safe(data_B, places[wide] + 1)
    return is_safe


def _are_wide_safe(data_B: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Whether the code points of two or three bytes that begin at the places are safe; no others are."""
    bytes_3 = np.stack([np.take(data_B, places + n, mode="clip").astype(np.int64) for n in range(3)])
    lead, second, third = bytes_3
    twos = (lead & 0x1F) << 6 | second & 0x3F
    threes = (lead & 0x0F) << 12 | (second & 0x3F) << 6 | third & 0x3F
    is_two, is_three = (lead >= 0xC0) & (lead < 0xE0), (lead >= 0xE0) & (lead < 0xF0)
    return np.where(is_two, build_safe_table()[twos], is_three & build_safe_table()[threes])
