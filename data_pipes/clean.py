"""Cleaning: rules that change or drop documents, each drop with a counted reason.

Shapes: D documents in, K of them kept.
"""

from collections import Counter
from collections.abc import Callable

import numpy as np
import pyarrow as pa

from data_pipes.cleaning.layout import (
    build_hyphen_rule,
    build_ligature_rule,
    build_running_head_rule,
    build_whitespace_rule,
)
from data_pipes.cleaning.names import build_idn_rule, build_label_rule
from data_pipes.cleaning.rules import Rule, RuleError, change_where, check_count
from data_pipes.documents import Batch, pc

__all__ = [
    "RULES",
    "Rule",
    "RuleError",
    "apply_rules",
    "drop_unfit_characters",
    "keep_documents",
    "parse_rules",
]

# NUL is the pad of CANINE, U+E000 to U+E004 are its [CLS], [SEP], [BOS], [MASK] and [RESERVED].
RESERVED_CHARACTERS = r"[\x00\x{E000}-\x{E004}]"
# A text of these characters is in the form already, and normalising costs ten times the look.
STABLE_CHARACTERS = {
    "NFC": r"\x00-\x{2FF}\x{2010}-\x{2027}",
    "NFD": r"\x00-\x{BF}\x{2010}-\x{2027}",
    "NFKC": r"\x00-\x{9F}\x{C0}-\x{FF}\x{2012}-\x{2016}\x{2018}-\x{2023}",
    "NFKD": r"\x00-\x{9F}\x{2012}-\x{2016}\x{2018}-\x{2023}",
}


def parse_rules(specs: list[dict | str]) -> list[Rule]:
    """Make rules of their plain descriptions: `lower`, or `{kind: length, min: 3, max: 64}`."""
    rules = []
    for spec in specs:
        arguments = {"kind": spec} if isinstance(spec, str) else dict(spec)
        kind = arguments.pop("kind", None)
        if kind not in RULES:
            raise RuleError(f"cleaning rule {kind!r} is not known; write one of {', '.join(RULES)}")
        try:
            rules.append(RULES[kind](**arguments))
        except TypeError as error:
            raise RuleError(f"cleaning rule {kind!r}: {error}; correct data.clean") from error
    return rules


def apply_rules(batch: Batch, rules: list[Rule], dropped: Counter) -> Batch:
    """Apply rules in order; `dropped` counts the documents that each reason removed.

    Documents that are empty afterwards are dropped as "empty".
    """
    for rule in [*rules, EMPTY]:
        if rule.change is not None:
            changed = rule.change(batch.texts)
            batch = keep_documents(batch.with_texts(changed), changed.is_valid(), rule.reason, dropped)
        if rule.keep is not None:
            batch = keep_documents(batch, rule.keep(batch.texts), rule.reason, dropped)
    return batch


def drop_unfit_characters(batch: Batch, dropped: Counter) -> Batch:
    """Drop documents that a character model would misread: reserved characters and lone surrogates."""
    is_reserved = pc.match_substring_regex(batch.texts, RESERVED_CHARACTERS)
    batch = keep_documents(batch, pc.invert(is_reserved), "reserved_character", dropped)
    return keep_documents(batch, pa.array(~batch.is_damaged), "lone_surrogate", dropped)


def keep_documents(batch: Batch, keep: pa.Array, reason: str, dropped: Counter) -> Batch:
    """The documents where `keep` is true; the others are counted under the reason."""
    mask = keep.to_numpy(zero_copy_only=False)
    num_dropped = len(mask) - int(np.count_nonzero(mask))
    if num_dropped == 0:
        return batch
    dropped[reason] += num_dropped
    return batch.filter(mask)


def _build_length_rule(min: int = 1, max: int | None = None) -> Rule:
    check_count("length", "min", min, 0)
    if max is not None:
        check_count("length", "max", max, min)

    def keep(texts: pa.StringArray) -> pa.Array:
        lengths = pc.utf8_length(texts)
        is_kept = pc.greater_equal(lengths, min)
        return is_kept if max is None else pc.and_(is_kept, pc.less_equal(lengths, max))

    return Rule("length", keep=keep)


def _build_alphabet_rule(characters: str) -> Rule:
    """Keep texts made of the given characters only, written as inside a regex class: `a-z0-9.-`."""
    pattern = f"^[{characters}]*$"
    try:
        pc.match_substring_regex(pa.array([""]), pattern)
    except pa.ArrowInvalid as error:
        raise RuleError(f"alphabet {characters!r} is no regex class: {error}") from error
    return Rule("alphabet", keep=lambda texts: pc.match_substring_regex(texts, pattern))


def _build_unicode_rule(form: str = "NFC") -> Rule:
    """A Unicode normal form: NFC, NFD, NFKC or NFKD."""
    if form not in STABLE_CHARACTERS:
        raise RuleError(f"Unicode form {form!r} is not known; write one of {', '.join(STABLE_CHARACTERS)}")
    unstable = f"[^{STABLE_CHARACTERS[form]}]"

    def change(texts: pa.StringArray) -> pa.StringArray:
        may_change = pc.match_substring_regex(texts, unstable)
        return change_where(texts, may_change, lambda chosen: pc.utf8_normalize(chosen, form=form))

    return Rule(form.lower(), change=change)


EMPTY = Rule("empty", keep=lambda texts: pc.not_equal(pc.utf8_trim_whitespace(texts), ""))

RULES: dict[str, Callable[..., Rule]] = {
    "lower": lambda: Rule("lower", change=pc.utf8_lower),
    "strip": lambda: Rule("strip", change=pc.utf8_trim_whitespace),
    "nfc": lambda: _build_unicode_rule("NFC"),
    "nfkc": lambda: _build_unicode_rule("NFKC"),
    "unicode": _build_unicode_rule,
    "ligatures": build_ligature_rule,
    "hyphens": build_hyphen_rule,
    "running_heads": build_running_head_rule,
    "whitespace": build_whitespace_rule,
    "length": _build_length_rule,
    "alphabet": _build_alphabet_rule,
    "idn": build_idn_rule,
    "labels": build_label_rule,
}
