"""Rules: what a step of cleaning is made of.

Shapes: D documents.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from data_pipes.documents import pc


class RuleError(ValueError):
    """A cleaning rule is not known or its arguments are wrong."""


@dataclass(frozen=True)
class Rule:
    """A step of cleaning.

    Attributes:
        reason: what the documents that it drops are counted under.
        change: rewrites texts [D]; a null means that a text cannot be rewritten, and drops the document.
        keep: which documents stay, by their changed texts, bool [D].
    """

    reason: str
    change: Callable[[pa.StringArray], pa.StringArray] | None = None
    keep: Callable[[pa.StringArray], pa.Array] | None = None


def change_where(
    texts: pa.StringArray, is_chosen: pa.Array, change: Callable[[pa.StringArray], pa.StringArray]
) -> pa.StringArray:
    """Change only the texts where is_chosen (bool [D]) is true."""
    num_chosen = int(np.count_nonzero(is_chosen.to_numpy(zero_copy_only=False)))
    if num_chosen == 0:
        return texts
    if num_chosen == len(texts):
        return change(texts)
    return pc.replace_with_mask(texts, is_chosen, change(texts.filter(is_chosen)))


def check_count(kind: str, name: str, value: object, least: int) -> None:
    """Raise RuleError unless the argument of a rule is a whole number that is large enough."""
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise RuleError(
            f"cleaning rule {kind!r}: {name} is {value!r}, wanted a whole number of at least {least}"
        )
