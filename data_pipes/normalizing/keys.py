"""Keys: what a rule file may hold at a place, and what is said where it holds something else."""

import difflib
from collections.abc import Iterable
from typing import Any

from data_pipes.normalizing.changes import NormalizerError


def suggest(given: str, known: Iterable[str]) -> str:
    """A hint at the known name that is closest, or nothing."""
    close = difflib.get_close_matches(given, list(known), 1)
    return f" (did you mean {close[0]!r}?)" if close else ""


def take_mapping(value: Any, place: str) -> dict[str, Any]:
    """The value, which must be a mapping."""
    if not isinstance(value, dict):
        raise NormalizerError(f"{place}: wanted a mapping of names, found {_describe(value)}")
    return value


def take_keys(value: Any, place: str, known: tuple[str, ...]) -> dict[str, Any]:
    """The value, which must be a mapping of these keys, none of them needed."""
    for key in take_mapping(value, place):
        if key not in known:
            raise NormalizerError(
                f"{place}: the key {key!r} is not known{suggest(key, known)}; known are {', '.join(known)}"
            )
    return value


def take_list(value: Any, place: str) -> list[str]:
    """The value, which must be a list of words."""
    if not isinstance(value, list) or not all(isinstance(item, str) and item.strip() for item in value):
        raise NormalizerError(f"{place}: wanted a list of words, found {_describe(value)}")
    return value


def _describe(value: Any) -> str:
    if isinstance(value, list):
        odd = next((item for item in value if not isinstance(item, str) or not item.strip()), "")
        return f"a list with {odd!r} in it"
    return f"the {'mapping' if isinstance(value, dict) else 'text'} {str(value)[:40]!r}"
