"""The objective of a recipe: what is hidden, and what the model learns from it."""

from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag, field_validator, model_validator

from launch.recipe_part import Part, Rate


class WeightedTerms(Part):
    """Listed words are hidden more often, or less, than others; never in the evaluation."""

    path: str
    """A list, one term a line; `_` for a space."""
    factor: float = Field(2.0, gt=0, le=100)
    """A listed word's weight in the draw, where other words have 1."""


class Masking(Part):
    """What is hidden from the model."""

    kind: Literal["whole_word", "token", "span", "character", "character_span"]
    """`span` hides runs of whole words, `character_span` runs of characters."""
    rate: Rate = 0.15
    """Share of the words (pieces, characters) that are hidden."""
    replace: tuple[float, float, float] = (0.8, 0.1, 0.1)
    """Of the hidden: the share that becomes the mask, a random piece, or stays as it is."""
    mean_span: float | None = Field(None, ge=1)
    """Spans: their mean length in words or characters (geometric); null: 3."""
    max_span: int | None = Field(None, ge=1)
    """Spans: the longest; null: 10."""
    public_suffix: Literal["any", "never", "always"] = "any"
    """Domain names: whether `.co.uk` and its kin are hidden like any character, never, or always."""
    terms: WeightedTerms | None = None

    @field_validator("replace")
    @classmethod
    def _check_shares(cls, replace: tuple[float, float, float]) -> tuple[float, float, float]:
        if any(share < 0 for share in replace) or abs(sum(replace) - 1) > 1e-9:
            raise ValueError(f"wanted three shares that sum to 1, given {list(replace)}")
        return replace

    @model_validator(mode="after")
    def _check_kind(self) -> "Masking":
        spans = self.kind in ("span", "character_span")
        if not spans and (self.mean_span is not None or self.max_span is not None):
            raise ValueError(f"mean_span and max_span are for spans, not for {self.kind}")
        if spans and (self.max_span or 10) < (self.mean_span or 3):
            raise ValueError(f"max_span {self.max_span or 10} is below mean_span {self.mean_span or 3}")
        if self.public_suffix != "any" and not self.kind.startswith("character"):
            raise ValueError(f"public_suffix is for domain names in characters, not for {self.kind}")
        if self.terms is not None and self.kind != "whole_word":
            raise ValueError(f"terms are for whole_word, not for {self.kind}")
        return self


class MaskedLM(Part):
    """The model fills in what was hidden."""

    kind: Literal["mlm"] = "mlm"
    masking: Masking


class Generator(Part):
    """The smaller model that fills in what was hidden; as wide as the discriminator, with fewer layers."""

    num_hidden_layers: int | None = Field(default=None, ge=1)
    share: float | None = Field(default=None, gt=0, le=1)
    """The same as a share of the model's layers, at least one of them; with neither, 0.5."""

    @model_validator(mode="after")
    def _check_size(self) -> "Generator":
        if self.num_hidden_layers is not None and self.share is not None:
            raise ValueError("num_hidden_layers and share say the same; leave one out")
        return self


class ReplacedTokens(Part):
    """A generator fills in what was hidden, and the model finds the pieces that are not the original ones."""

    kind: Literal["rtd"]
    masking: Masking
    generator: Generator = Field(default_factory=lambda: Generator())
    discriminator_weight: float = Field(50.0, gt=0)
    """Of the discriminator's mean loss a piece, where the generator's mean loss a target has 1."""
    temperature: float = Field(1.0, gt=0)
    """Of the generator's draws; above 1 they are more surprising."""


def _find_kind(value: Any) -> str:
    return value.get("kind", "mlm") if isinstance(value, dict) else getattr(value, "kind", "mlm")


Objective = Annotated[
    Annotated[MaskedLM, Tag("mlm")] | Annotated[ReplacedTokens, Tag("rtd")], Discriminator(_find_kind)
]
