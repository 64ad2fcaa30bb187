"""The metrics of an evaluation beside loss, perplexity and accuracy."""

from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag, field_validator

from launch.recipe_data import Source
from launch.recipe_part import Part

Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9_-]*$")]


class TermPerplexity(Part):
    """Occurrences of domain terms in the evaluation rows, each hidden whole, all its pieces."""

    lists: dict[Name, str] = Field(min_length=1)
    """Files of terms by category, one term a line (`vocab mine` writes one); `_` for a space."""
    per_term: int = Field(20, ge=1)
    """Most occurrences of one term, drawn at random."""
    max_occurrences: int = Field(2000, ge=1)
    """Most occurrences in all."""
    hidden: Literal["alone", "together"] = "alone"
    """`alone`: one occurrence of a document at a time, so that none is guessed from a context with holes
    where other terms stood. `together`: all of a row at once, which is cheaper and a harder task."""


class RareWords(Part):
    """The targets by how often their word stands in the training rows."""

    bounds: list[Annotated[int, Field(ge=1)]] = [1, 10, 100, 1000]
    """Where a new group begins; words below the first are one group too."""
    max_pieces: int = Field(200_000_000, ge=1)
    """Of a larger corpus a random part is counted, and the counts are scaled up."""

    @field_validator("bounds")
    @classmethod
    def _check_bounds(cls, bounds: list[int]) -> list[int]:
        if not bounds or bounds != sorted(set(bounds)):
            raise ValueError(f"wanted counts that ascend, given {bounds}")
        return bounds


class Names(Part):
    """Targets in domain names: by place in the name, by length of the name, by public suffix."""

    num_suffixes: int = Field(10, ge=1)
    """The most frequent suffixes of the evaluation rows; the rest is one group."""
    max_span: int | None = Field(None, ge=1, le=32)
    """Gaps of 1 to so many characters are hidden, each in a name of its own, and the share that is filled
    without a fault is measured by length; null: none."""
    num_spans: int = Field(200, ge=1)
    """Most gaps of one length."""


class PseudoPerplexity(Part):
    """Whole rows of the evaluation (names, for characters), of which each unit is hidden alone."""

    unit: Literal["masking", "piece"] = "masking"
    """`masking`: what the recipe's masking hides as one, a whole word for instance. `piece`: each piece; a
    model that was trained on whole words has never seen half a word hidden, and is much worse at it."""
    num_pieces: int = Field(2000, ge=1)
    """Rows are drawn until they hold so many pieces; each unit is one row to compute."""


class General(Part):
    """Another corpus, to see what is forgotten: the same masks and figures."""

    sources: list[Source] = Field(min_length=1)
    """All of it is evaluated, none is trained on."""
    limit: int | None = Field(1000, ge=1)
    """At most so many documents."""


class Probe(Part):
    """A linear classifier on the frozen encoder's mean output, from labelled texts."""

    name: Name
    path: str
    """A file of records: `.jsonl`, or `.tsv` or `.csv` with a header."""
    text_key: str = "text"
    label_key: str = "label"
    split_key: str | None = None
    """A field that says `train` for the training part; null: four of five records, by hash of the text."""
    num_examples: int = Field(2000, ge=10)
    """Most training records, and half as many for the test, drawn at random."""


class Metrics(Part):
    """What an evaluation measures; loss, perplexity and accuracy always are."""

    terms: TermPerplexity | None = None
    rare_words: RareWords | None = None
    fragmentation: bool = False
    """Pieces a word, and the share of the occurrences of listed terms (`terms.lists`) that are cut."""
    names: Names | None = None
    pseudo: PseudoPerplexity | None = None
    general: General | None = None
    probes: list[Probe] = []

    @field_validator("probes")
    @classmethod
    def _check_names(cls, probes: list[Probe]) -> list[Probe]:
        names = [probe.name for probe in probes]
        if len(names) != len(set(names)):
            raise ValueError(f"two probes have one name: {names}")
        return probes


Printed = list[Literal["loss", "perplexity", "accuracy"]]


def _find_form(value: object) -> str:
    return "list" if isinstance(value, list) else "settings"


MetricsChoice = Annotated[
    Annotated[Printed, Tag("list")] | Annotated[Metrics, Tag("settings")], Discriminator(_find_form)
]
"""A list says what is printed, and nothing more is measured; a mapping is of `Metrics`."""


def check_metrics(choice: Printed | Metrics, family: str, *, is_streaming: bool) -> list[tuple[str, str]]:
    """What the metrics say against the rest of a recipe, as (key path, message)."""
    if isinstance(choice, list):
        return []
    found: list[tuple[str, str]] = []
    place = "evaluation.metrics"
    if family == "canine":
        for key in ("terms", "rare_words", "fragmentation"):
            if getattr(choice, key):
                text = "needs words, and a canine model reads characters; leave it out"
                found.append((f"{place}.{key}", text))
    elif choice.names:
        found.append((f"{place}.names", f"is for characters, not for family {family}; leave it out"))
    if choice.rare_words and is_streaming:
        text = "counts the training rows before training, and a stream has none yet; leave it out"
        found.append((f"{place}.rare_words", text))
    return found
