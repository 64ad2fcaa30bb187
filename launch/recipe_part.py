"""What every section of a recipe is made of."""

from pydantic import BaseModel, ConfigDict


class Part(BaseModel):
    """A strict, frozen piece of a recipe; the text under a field is its description in the schema."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)
