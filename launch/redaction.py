"""What may be shown and kept: secrets are hidden, and control characters written as escapes.

A recipe with a secret in it is refused. Everything else that could carry one to a terminal, a log or a file
of a run (verdicts, tracebacks, command lines) goes through `show`.
"""

import json
import os
import re
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

HIDDEN = "[hidden]"
# Credentials that say by their form what they are.
_TOKENS = (
    ("a Hugging Face token", r"(?:hf|api_org)_[A-Za-z0-9]{16,}"),
    ("a GitHub token", r"(?:gh[pousr]_[A-Za-z0-9]{16,}|github_pat_[A-Za-z0-9_]{16,})"),
    ("an AWS key", r"(?:AKIA|ASIA)[A-Z0-9]{12,}"),
    ("a private key", r"-----BEGIN"),
    ("an API key", r"sk-(?:(?:proj|ant|or)-[A-Za-z0-9_-]{16,}|[A-Za-z0-9]{32,})"),
    ("a Slack token", r"xox[abposr]-[A-Za-z0-9-]{16,}"),
    ("a GitLab token", r"glpat-[A-Za-z0-9_-]{16,}"),
    ("a PyPI token", r"pypi-[A-Za-z0-9_-]{16,}"),
)
_PATTERNS = tuple((name, re.compile(rf"(?<![A-Za-z0-9]){pattern}")) for name, pattern in _TOKENS)
_USERINFO = re.compile(r"(?P<scheme>\b[A-Za-z][A-Za-z0-9+.-]*://)[^\s/@'\"]+@")
# A private key goes on over lines; to its end, or to that of the text.
_KEY_BLOCK = re.compile(r"-----BEGIN.*?(?:-----END[^-]*-----|\Z)", re.DOTALL)
# Assignments on a command line or in an error: the name tells.
_NAMED = re.compile(
    r"(?i)(?P<name>(?:token|secret|password|passwd|api[_-]?key|credentials?)['\"]?\s*[=:]\s*['\"]?)"
    r"(?P<value>(?=[^\s'\",;&]*[0-9])(?=[^\s'\",;&]*[a-z])[^\s'\",;&]{12,})"
)
_SECRET_NAME = re.compile(r"(?i)(token(?!s|izer)|secret|passw|api_?key|credential|private_?key|_auth$|_pat$)")
# The names of places and switches, not of secrets.
_PLAIN_NAME = re.compile(r"(?i)(parallelism|_file$|_path$|_dir$|disable|implicit)")
_MIN_SECRET = 8
# C0 but for newline and tab, DEL, C1, marks that turn the direction of text, line ends, lone surrogates.
CONTROLS = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_MAX_SHOWN = 60


def show(text: str) -> str:
    """A text for a terminal or a log: without secrets, with control characters as escapes."""
    return escape_controls(redact(text))


def show_value(value: Any) -> str:
    """A value of a recipe in a message: as JSON, shortened, without secrets."""
    text = show(json.dumps(value, ensure_ascii=False, default=str))
    return text if len(text) <= _MAX_SHOWN else text[: _MAX_SHOWN - 3] + "..."


def escape_controls(text: str) -> str:
    """Characters that steer a terminal or turn its text, written as escapes; newlines and tabs stay."""
    return CONTROLS.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def redact(text: str) -> str:
    """A text without what looks like a credential, and without the secrets of the environment."""
    for value in list_environment_secrets():
        text = text.replace(value, HIDDEN)
    text = _KEY_BLOCK.sub(HIDDEN, text)
    for _, pattern in _PATTERNS:
        text = pattern.sub(HIDDEN, text)
    text = _USERINFO.sub(rf"\g<scheme>{HIDDEN}@", text)
    return _NAMED.sub(rf"\g<name>{HIDDEN}", text)


def name_secret(text: str) -> str | None:
    """What kind of secret a text holds; None: none that can be told."""
    for name, pattern in _PATTERNS:
        if pattern.search(text):
            return name
    if _USERINFO.search(text):
        return "a URL with a user or a password in it"
    if any(value in text for value in list_environment_secrets()):
        return "the value of a secret in the environment"
    return None


def find_secrets(value: Any, path: tuple = ()) -> Iterator[tuple[tuple, str]]:
    """Where plain data holds secrets, as (key path, kind of secret); keys are looked at too."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if name_secret(str(key)):
                yield (*path, HIDDEN), f"a key that holds {name_secret(str(key))}"
            else:
                yield from find_secrets(item, (*path, key))
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            yield from find_secrets(item, (*path, index))
    elif isinstance(value, str) and (kind := name_secret(value)):
        yield path, kind


def list_environment_secrets() -> tuple[str, ...]:
    """The values of environment variables that are secrets by their name, the longest first."""
    named = {name: value for name, value in os.environ.items() if _SECRET_NAME.search(name)}
    return _choose_secrets(frozenset(named.items()))


@lru_cache(maxsize=1)
def _choose_secrets(named: frozenset[tuple[str, str]]) -> tuple[str, ...]:
    values = {value for name, value in named if len(value) >= _MIN_SECRET and not _PLAIN_NAME.search(name)}
    return tuple(sorted(values, key=len, reverse=True))
