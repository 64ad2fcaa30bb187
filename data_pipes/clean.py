"""Cleaning: rules that change or drop documents, each drop with a counted reason.

Shapes: D documents in, K of them kept.
"""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.documents import Batch, pc

# NUL is the pad of CANINE, U+E000 to U+E004 are its [CLS], [SEP], [BOS], [MASK] and [RESERVED].
RESERVED_CHARACTERS = r"[\x00\x{E000}-\x{E004}]"


class RuleError(ValueError):
    """A cleaning rule is not known or its arguments are wrong."""


@dataclass(frozen=True)
class Rule:
    """A step of cleaning: `change` rewrites texts, `keep` says which ones stay (bool [D])."""

    reason: str
    change: Callable[[pa.StringArray], pa.StringArray] | None = None
    keep: Callable[[pa.StringArray], pa.Array] | None = None


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
            batch = batch.with_texts(rule.change(batch.texts))
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


EMPTY = Rule("empty", keep=lambda texts: pc.not_equal(pc.utf8_trim_whitespace(texts), ""))

RULES: dict[str, Callable[..., Rule]] = {
    "lower": lambda: Rule("lower", change=pc.utf8_lower),
    "strip": lambda: Rule("strip", change=pc.utf8_trim_whitespace),
    "nfc": lambda: Rule("nfc", change=lambda texts: pc.utf8_normalize(texts, form="NFC")),
    "length": _build_length_rule,
    "alphabet": _build_alphabet_rule,
}
