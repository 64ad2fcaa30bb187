"""Cleaning rules and normalisers of a recipe."""

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from launch.recipe_part import Part


class LowerRule(Part):
    """Lower case."""

    kind: Literal["lower"]


class StripRule(Part):
    """No white space at the ends; empty documents are dropped."""

    kind: Literal["strip"]


class NfcRule(Part):
    """Unicode normal form C."""

    kind: Literal["nfc"]


class LengthRule(Part):
    """Keep documents of these lengths, in characters."""

    kind: Literal["length"]
    min: int = Field(1, ge=0)
    max: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_order(self) -> "LengthRule":
        if self.max is not None and self.max < self.min:
            raise ValueError(f"max {self.max} is below min {self.min}, so that no document is kept")
        return self


class AlphabetRule(Part):
    """Keep documents made of these characters only."""

    kind: Literal["alphabet"]
    characters: str = Field(min_length=1)
    """The inside of a regular expression's character class: `a-z0-9.-`."""

    @field_validator("characters")
    @classmethod
    def _check_class(cls, characters: str) -> str:
        try:
            re.compile(f"[{characters}]")
        except re.error as error:
            raise ValueError(f"{characters!r} is no character class: {error}") from error
        return characters


class UnicodeRule(Part):
    """A Unicode normal form."""

    kind: Literal["unicode"]
    form: Literal["NFC", "NFD", "NFKC", "NFKD"] = "NFC"


class NfkcRule(Part):
    """Unicode normal form KC."""

    kind: Literal["nfkc"]


class LigatureRule(Part):
    """Typographic ligatures (ff, fi, fl, ffi, ffl, st) become letters."""

    kind: Literal["ligatures"]


class HyphenRule(Part):
    """Words that a hyphen cut at a line's end are joined; soft hyphens go."""

    kind: Literal["hyphens"]


class RunningHeadRule(Part):
    """Short lines that come back again and again (page heads), and lines of only a page number, go."""

    kind: Literal["running_heads"]
    max_length: int = Field(60, ge=1)
    """Longest head, in characters."""
    min_repeats: int = Field(3, ge=2)
    """So often in a document."""


class WhitespaceRule(Part):
    """Runs of blanks become one space, runs of empty lines one, and the ends are stripped."""

    kind: Literal["whitespace"]


class IdnRule(Part):
    """International domain names as punycode (`ascii`) or as they are read (`unicode`)."""

    kind: Literal["idn"]
    to: Literal["ascii", "unicode"] = "ascii"


class LabelRule(Part):
    """Drop names that no domain can have: empty or long labels, hyphens at an end, other characters."""

    kind: Literal["labels"]


CleanRule = Annotated[
    LowerRule
    | StripRule
    | NfcRule
    | NfkcRule
    | UnicodeRule
    | LigatureRule
    | HyphenRule
    | RunningHeadRule
    | WhitespaceRule
    | LengthRule
    | AlphabetRule
    | IdnRule
    | LabelRule,
    Field(discriminator="kind"),
]


class TermNormalizer(Part):
    """Terms of several words become one: `Wheeler Formation`, `Wheeler_Formation`."""

    kind: Literal["terms"]
    file: str
    """The rules of a domain: a shipped one (`chronostratigraphy`), or a path."""


class FormNormalizer(Part):
    """Unicode normal form KC."""

    kind: Literal["nfkc"]


class LigatureNormalizer(Part):
    """Ligatures become letters."""

    kind: Literal["ligatures"]


class HyphenNormalizer(Part):
    """Words cut at a line's end are joined."""

    kind: Literal["hyphens"]


class WhitespaceNormalizer(Part):
    """Runs of blanks become one space."""

    kind: Literal["whitespace"]


Normalizer = Annotated[
    TermNormalizer | FormNormalizer | LigatureNormalizer | HyphenNormalizer | WhitespaceNormalizer,
    Field(discriminator="kind"),
]
