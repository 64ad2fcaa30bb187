"""Domain names: rules for their letters and labels.

Shapes: D names.
"""

from collections.abc import Callable
from importlib.util import find_spec

import pyarrow as pa

from data_pipes.cleaning.rules import Rule, RuleError, change_where
from data_pipes.documents import pc

# RFC 1123, section 2.1: letters, digits and hyphens, no hyphen at the ends, at most 63 of them.
LABEL = "[A-Za-z0-9](?:[A-Za-z0-9-]{0,61}[A-Za-z0-9])?"
NAME = rf"^{LABEL}(?:\.{LABEL})*$"
# RFC 1035 allows 255 bytes on the wire; two of them are the first length and the root.
MAX_NAME_CHARACTERS = 253
PUNYCODE_LABEL = r"(?i)(?:^|\.)xn--"


def build_label_rule() -> Rule:
    """Drop names with an invalid label: empty, too long, a hyphen at an end, other characters than LDH.

    A name in Unicode is invalid here: this rule goes before `{kind: idn, to: unicode}`.
    """

    def keep(names: pa.StringArray) -> pa.Array:
        is_short = pc.less_equal(pc.binary_length(names), MAX_NAME_CHARACTERS)
        return pc.and_(is_short, pc.match_substring_regex(names, NAME))

    return Rule("invalid_label", keep=keep)


def build_idn_rule(to: str = "ascii") -> Rule:
    """Write internationalised names in punycode (`ascii`) or in their own letters (`unicode`), by IDNA 2008.

    The mapping of UTS 46 goes first: upper case, full-width letters and other full stops are allowed. Names
    that cannot be converted are dropped as "invalid_idn"; those without need for it are left alone.
    """
    converters = {"ascii": _choose_unicode_names, "unicode": _choose_punycode_names}
    if to not in converters:
        raise RuleError(f"cleaning rule 'idn': to is {to!r}, wanted ascii or unicode")
    choose, convert = converters[to], _find_converter(to)

    def change(names: pa.StringArray) -> pa.StringArray:
        # A loop, but only over the names that need it: 0.2 % of the registered ones.
        return change_where(
            names,
            choose(names),
            lambda chosen: pa.array([convert(name) for name in chosen.to_pylist()], pa.string()),
        )

    return Rule("invalid_idn", change=change)


def _choose_unicode_names(names: pa.StringArray) -> pa.Array:
    return pc.invert(pc.string_is_ascii(names))


def _choose_punycode_names(names: pa.StringArray) -> pa.Array:
    return pc.match_substring_regex(names, PUNYCODE_LABEL)


def _find_converter(to: str) -> Callable[[str], str | None]:
    if find_spec("idna") is None:
        raise RuleError("cleaning rule 'idn' needs the package idna: pip install idna")

    def convert(name: str) -> str | None:
        # Imported at the first name that needs it, so that planning a run does not load its tables.
        import idna

        try:
            return idna.encode(name, uts46=True).decode() if to == "ascii" else idna.decode(name, uts46=True)
        except UnicodeError:  # the base of all errors of idna
            return None

    return convert
