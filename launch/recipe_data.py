"""The data section of a recipe: sources, cleaning rules, rows."""

import re
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator


class Part(BaseModel):
    """A strict, frozen piece of a recipe; the text under a field is its description in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)


class TextSource(Part):
    """Plain text files, UTF-8."""

    kind: Literal["text"]
    path: str
    """A file, a folder's glob (`corpus/*.txt`), relative to the working folder."""
    unit: Literal["line", "paragraph", "file"] = "line"
    """What one document is."""
    split: Literal["auto", "train", "evaluation"] = "auto"
    """`auto`: by hash. Otherwise the whole source goes to one side."""


class JsonlSource(Part):
    """One JSON object a line."""

    kind: Literal["jsonl"]
    path: str
    """A file or a glob, relative to the working folder."""
    text_key: str = "text"
    group_key: str | None = None
    """Documents with the same value (a publication, say) stay on one side of the split."""
    split: Literal["auto", "train", "evaluation"] = "auto"


class PackageSource(Part):
    """A file inside a package of the Python index, at a pinned version, checked by hash."""

    kind: Literal["package"]
    package: str
    version: str
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    """Of the wheel."""
    member: str
    """The file inside the wheel."""
    format: Literal["hsts_table", "json_list", "json_records"]
    list_key: str | None = None
    """The key under which the list (`json_list`, `json_records`) stands; null: at the top."""
    text_key: str = "text"
    """`json_records`: the key of a record's text."""
    group_key: str | None = None
    licence: str | None = None
    """Of the data; goes into the model card."""
    split: Literal["auto", "train", "evaluation"] = "auto"


class HubSource(Part):
    """A dataset of the Hugging Face hub, or a local folder in the same format."""

    kind: Literal["hub"]
    path: str
    """The dataset's id, or a folder."""
    name: str | None = None
    """The dataset's configuration."""
    revision: str | None = None
    """A commit or tag; without one a change of the dataset is not noticed."""
    dataset_split: str = "train"
    text_key: str = "text"
    group_key: str | None = None
    split: Literal["auto", "train", "evaluation"] = "auto"


Source = Annotated[TextSource | JsonlSource | PackageSource | HubSource, Field(discriminator="kind")]


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


CleanRule = Annotated[
    LowerRule | StripRule | NfcRule | LengthRule | AlphabetRule, Field(discriminator="kind")
]


class Data(Part):
    """Which text, and how it becomes rows."""

    sources: list[Source] = Field(min_length=1)
    row_length: int = Field(ge=8, le=16_384)
    """Pieces in a row, special ones included; the longest row of a character model."""
    evaluation_share: float = Field(0.02, ge=0, lt=0.5)
    """Share of the documents (of the groups, where there is a group key) kept for evaluation, by hash."""
    packing: bool = True
    """Several documents in a row, without attention across them. Character models take one a row."""
    limit: int | None = Field(None, ge=1)
    """At most this many documents, for a try."""
    clean: list[CleanRule] = []
    """Rules that keep, change or drop a document, in order."""
    expected_tokens: int | None = Field(None, ge=1)
    """Corpus size for the plan until the data is prepared."""
    expected_rows: int | None = Field(None, ge=1)
