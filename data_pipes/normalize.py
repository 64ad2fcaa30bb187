"""Normalisers: steps that rewrite a text and know where each character went.

    nfkc          Unicode compatibility form
    ligatures     the seven Latin ligatures U+FB00 to U+FB06 as letters
    hyphens       words that a line's end parted are joined; soft hyphens go; U+2010 and U+2011 become `-`
    whitespace    runs become a space, a line break or an empty line; none at the ends of a text
    terms         terms of several words become one word, by a rule file (`file`: a shipped one, or a path)

Write `nfkc`, `ligatures`, `hyphens` and `whitespace` before `terms`, so that the terms are found.

Shapes: D documents, B bound places.
"""

import hashlib
import re
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa

from data_pipes.align import AlignMap
from data_pipes.normalizing.changes import SEPARATOR, Bound, Changes, NormalizerError
from data_pipes.normalizing.keys import suggest
from data_pipes.normalizing.term_rules import find_rule_file, read_term_rules
from data_pipes.normalizing.terms import TermFinder

# Goes into the cache key: raise it when a normaliser's result changes.
VERSION = 1
BATCH_CHARACTERS = 1 << 22


@dataclass(frozen=True)
class Normalizer:
    """One step: what it changes in documents laid end to end."""

    kind: str
    find: Callable[[str], Changes]


@dataclass(frozen=True)
class Normalized:
    """D documents after all steps.

    Attributes:
        texts: the normal texts.
        align_maps: from each raw text to its normal text.
        documents: int64 [B], the document of each bound place.
        bound: the places, in characters of that document's raw text.
    """

    texts: list[str]
    align_maps: list[AlignMap]
    documents: np.ndarray
    bound: Bound


def parse_normalizers(specs: list[dict | str]) -> list[Normalizer]:
    """Make normalisers of descriptions: `whitespace`, or `{kind: terms, file: chronostratigraphy}`.

    Raises:
        NormalizerError: a description or a rule file is wrong.
    """
    return [_build(*_read_spec(spec)) for spec in specs]


def hash_normalizers(specs: list[dict | str]) -> list[dict[str, Any]]:
    """What the result depends on: kinds and contents of rule files, but not where the files lie."""
    hashed = []
    for kind, file in map(_read_spec, specs):
        entry: dict[str, Any] = {"kind": kind, "version": VERSION}
        if kind == "nfkc":
            entry["unicode"] = unicodedata.unidata_version
        if file is not None:
            entry["sha256"] = hashlib.sha256(find_rule_file(file).read_bytes()).hexdigest()
        hashed.append(entry)
    return hashed


def normalize_texts(texts: pa.StringArray, normalizers: list[Normalizer]) -> pa.StringArray:
    """Normal texts [D], without maps."""
    if not normalizers:
        return texts
    done: list[str] = []
    for batch in _split(texts.to_pylist()):
        text = SEPARATOR.join(batch)
        align = None
        for normalizer in normalizers:
            changes = normalizer.find(text)
            if changes.starts:
                step = changes.align(len(text))
                align = step if align is None else align.compose(step)
                text = changes.apply(text)
        done += batch if align is None else _cut(text, *_find_bounds(batch, align))
    return pa.array(done, pa.string())


def normalize_documents(texts: list[str], normalizers: list[Normalizer]) -> list[tuple[str, AlignMap]]:
    """The normal text of each document, and the map to it."""
    done = normalize_batch(texts, normalizers)
    return list(zip(done.texts, done.align_maps, strict=True))


def normalize_batch(texts: list[str], normalizers: list[Normalizer]) -> Normalized:
    """Normal texts, maps, and where terms were bound."""
    done: list[str] = []
    maps: list[AlignMap] = []
    documents = [np.zeros(0, np.int64)]
    spans = [np.zeros((2, 0), np.int64)]
    rules: list[str] = []
    for batch in _split(texts):
        raw = text = SEPARATOR.join(batch)
        align = AlignMap.identity(len(raw))
        starts = np.concatenate(([0], np.cumsum([len(text) + 1 for text in batch])))
        for normalizer in normalizers:
            changes = normalizer.find(text)
            if not changes.starts:
                continue
            places = np.stack(align.norm_to_raw(changes.bound.starts, changes.bound.ends))
            owners = np.searchsorted(starts, places[0], "right") - 1
            documents.append(owners + len(done))
            spans.append(places - starts[owners])
            rules += changes.bound.rules
            align = align.compose(changes.align(len(text)))
            text = changes.apply(text)
        maps += [
            align.slice(int(start), int(start) + len(one))
            for start, one in zip(starts[:-1], batch, strict=True)
        ]
        done += _cut(text, *_find_bounds(batch, align))
    places = np.concatenate(spans, axis=1)
    return Normalized(done, maps, np.concatenate(documents), Bound(places[0], places[1], rules))


def _split(texts: list[str]) -> Iterator[list[str]]:
    """Runs of documents of about BATCH_CHARACTERS together."""
    batch: list[str] = []
    size = 0
    for text in texts:
        batch.append(text)
        size += len(text) + 1
        if size >= BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _find_bounds(batch: list[str], align: AlignMap) -> tuple[list[int], list[int]]:
    """Where each document begins and ends in the normal text: at the separators, which no step changes."""
    separators = np.cumsum([len(text) + 1 for text in batch])[:-1] - 1
    places, _ = align.raw_to_norm(separators, separators + 1)
    return [0, *(places + 1).tolist()], [*places.tolist(), align.num_norm]


def _cut(text: str, starts: list[int], ends: list[int]) -> list[str]:
    return [text[start:end] for start, end in zip(starts, ends, strict=True)]


def _read_spec(spec: dict | str) -> tuple[str, str | None]:
    """Kind and rule file of a description; keys whose value is None count as absent."""
    given = {"kind": spec} if isinstance(spec, str) else {k: v for k, v in spec.items() if v is not None}
    kind = given.pop("kind", None)
    known = [*FINDERS, "terms"]
    if kind not in known:
        raise NormalizerError(
            f"normaliser {kind!r} is not known{suggest(str(kind), known)}; write one of {', '.join(known)}"
        )
    for key in given:
        if (kind, key) != ("terms", "file"):
            hint = f"{suggest(key, ['file'])}; its only key is file" if kind == "terms" else "; it takes none"
            raise NormalizerError(f"normaliser {kind!r} has no key {key!r}{hint}")
    file = given.get("file")
    if kind == "terms" and not isinstance(file, str):
        raise NormalizerError("normaliser 'terms' lacks the key file: the name or the path of a rule file")
    return kind, file


def _build(kind: str, file: str | None) -> Normalizer:
    if file is None:
        return Normalizer(kind, FINDERS[kind])
    return Normalizer(kind, TermFinder(read_term_rules(find_rule_file(file))).find)


def find_compatible(text: str) -> Changes:
    """Changes to Unicode's form NFKC."""
    if unicodedata.is_normalized("NFKC", text):
        return Changes([], [], [])
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    begins = np.ones(len(codes), bool)
    is_odd = np.zeros(len(codes), bool)
    far = np.flatnonzero(codes >= 128)
    others, places = np.unique(codes[far], return_inverse=True)
    letters = [chr(code) for code in others.tolist()]
    begins[far] = np.array([_begins_cluster(letter) for letter in letters])[places]
    is_odd[far] = np.array([unicodedata.normalize("NFKC", letter) != letter for letter in letters])[places]
    begins[:1] = True
    starts = np.flatnonzero(begins)
    # Normal forms of clusters do not depend on each other.
    clusters = np.unique(np.cumsum(begins)[is_odd | ~begins] - 1)
    ends = np.append(starts[1:], len(codes))
    found = []
    for start, end in zip(starts[clusters].tolist(), ends[clusters].tolist(), strict=True):
        new = unicodedata.normalize("NFKC", text[start:end])
        while start < end and new[:1] == text[start]:
            start, new = start + 1, new[1:]
        if (start, new) != (end, ""):
            found.append((start, end, new))
    return _gather(found)


@lru_cache(maxsize=1 << 16)
def _begins_cluster(letter: str) -> bool:
    """Whether a character never combines with what stands before it."""
    first = unicodedata.normalize("NFKD", letter)[0]
    return unicodedata.combining(first) == 0 and first not in _find_second_letters()


@lru_cache(maxsize=1)
def _find_second_letters() -> frozenset[str]:
    """Characters that composition takes as the second of a pair, Hangul vowels and finals included."""
    pairs = [unicodedata.decomposition(chr(code)).split() for code in range(0xC0, 0x2FA20)]
    seconds = {chr(int(pair[1], 16)) for pair in pairs if len(pair) == 2 and pair[0][0] != "<"}
    return frozenset(seconds | {chr(code) for code in [*range(0x1161, 0x1176), *range(0x11A8, 0x11C3)]})


_LIGATURE = re.compile("[\ufb00-\ufb06]")
# Begins with the hyphen, so that the search skips to the next one: 8 times as fast as a look behind it first.
_HYPHEN = re.compile(
    "[-\u00ad\u2010\u2011](?:(?<=[^\\W\\d_][-\u00ad\u2010])"
    "[ \\t]*(?:\\r\\n|\\n|\\r)[ \\t]*(?=([^\\W\\d_]))|(?<!-))"
)
# No white space lies beyond U+3000.
_IS_BLANK = np.array([chr(code).isspace() for code in range(0x3001)] + [False])
_BREAK = re.compile("\r\n|[\n\r\v\f\x85\u2028\u2029]")


def find_ligatures(text: str) -> Changes:
    """Changes of ligatures to their letters."""
    return _gather(
        [(m.start(), m.end(), unicodedata.normalize("NFKC", m[0])) for m in _LIGATURE.finditer(text)]
    )


def find_hyphens(text: str) -> Changes:
    """Changes that join words parted at a line's end.

    Before a small letter the hyphen goes; before another letter only the line break does (`Anglo-` `Saxon`).
    """
    found = []
    for match in _HYPHEN.finditer(text):
        hyphen, after = match[0][0], match[1]
        is_kept = hyphen != "\u00ad" and not (after and after.islower())
        found.append((match.start(), match.end(), "-" if is_kept else ""))
    return _gather(found)


def find_blanks(text: str) -> Changes:
    """Changes of white space to a space, a line break or an empty line; none is left at the ends."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    is_blank = _IS_BLANK[np.minimum(codes, 0x3001)]
    is_end = codes == ord(SEPARATOR)
    bounds = np.flatnonzero(np.diff(is_blank, prepend=False, append=False)).reshape(-1, 2)
    starts, ends = bounds.T
    firsts = codes[starts]
    is_outer = np.append(True, is_end)[starts] | np.append(is_end, True)[ends]
    is_plain = (ends - starts == 1) & ((firsts == ord(" ")) | (firsts == ord("\n")))
    found = []
    for start, end, at_end in np.column_stack((bounds, is_outer))[is_outer | ~is_plain].tolist():
        num_breaks = len(_BREAK.findall(text, start, end))
        new = "" if at_end else "\n" * min(num_breaks, 2) or " "
        if new != text[start:end]:
            found.append((start, end, new))
    return _gather(found)


def _gather(found: list[tuple[int, int, str]]) -> Changes:
    starts, ends, texts = (list(column) for column in zip(*found, strict=True)) if found else ([], [], [])
    return Changes(starts, ends, texts)


FINDERS: dict[str, Callable[[str], Changes]] = {
    "nfkc": find_compatible,
    "ligatures": find_ligatures,
    "hyphens": find_hyphens,
    "whitespace": find_blanks,
}
