"""Identity: the version and the hash of a tokenizer, the same before and after it is saved."""

import hashlib
import json
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from data_pipes.tokenize import TokenizerError
from data_pipes.tokens.words import load_tokenizer

# Kept by save_pretrained in tokenizer_config.json: transformers keeps every argument that it does not know.
VERSION_KEY = "vocabulary_version"
NO_VERSION = "0"
FILE_NAME = "identity.json"
# Set by calls and libraries; they do not change which pieces a text has.
_SETTINGS = {"version", "truncation", "padding"}


class Identity(TypedDict):
    """`version` as its maker gave it ("0": never extended) and `sha256` of what the tokenizer does."""

    version: str
    sha256: str


def find_backend(tokenizer: PreTrainedTokenizerBase) -> Tokenizer:
    """The `tokenizers` object of a fast tokenizer.

    Raises:
        TokenizerError: it is not a fast one.
    """
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        raise TokenizerError(f"{type(tokenizer).__name__} is not a fast tokenizer; give one with pieces")
    return backend


def identify_tokenizer(tokenizer: PreTrainedTokenizerBase | Path | str) -> Identity:
    """Tell which tokenizer this is: a loaded one, or the one in a folder.

    The hash covers pieces, scores (in single precision), special pieces and every rule of the text's way; not
    names of files, padding or truncation.

    Raises:
        TokenizerError: the folder holds no tokenizer.
    """
    if not isinstance(tokenizer, PreTrainedTokenizerBase):
        tokenizer = load_tokenizer(Path(tokenizer))
    behaviour = json.dumps(_describe(tokenizer), sort_keys=True, ensure_ascii=True)
    return Identity(
        version=str(tokenizer.init_kwargs.get(VERSION_KEY, NO_VERSION)),
        sha256=hashlib.sha256(behaviour.encode()).hexdigest(),
    )


def write_identity(folder: Path | str, tokenizer: PreTrainedTokenizerBase) -> Identity:
    """Leave a tokenizer's identity in a model folder, beside its files."""
    identity = identify_tokenizer(tokenizer)
    (Path(folder) / FILE_NAME).write_text(json.dumps(identity, indent=2) + "\n", encoding="utf-8")
    return identity


def read_identity(folder: Path | str) -> Identity | None:
    """The identity left in a folder, None if there is none; the tokenizer itself is not looked at.

    Raises:
        TokenizerError: the file is not one that `write_identity` wrote.
    """
    path = Path(folder) / FILE_NAME
    if not path.exists():
        return None
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        return Identity(version=found["version"], sha256=found["sha256"])
    except (ValueError, KeyError, TypeError) as error:
        raise TokenizerError(
            f"{path} is no identity of a tokenizer ({error!r}); wanted version and sha256: restore it, or "
            "remove it and write it again"
        ) from error


def check_identity(folder: Path | str) -> Identity:
    """The identity of the tokenizer in a folder, compared with the one left there.

    Raises:
        TokenizerError: they differ, so the tokenizer was changed after the model was saved.
    """
    found, noted = identify_tokenizer(folder), read_identity(folder)
    if noted is not None and noted != found:
        raise TokenizerError(
            f"the tokenizer in {folder} is version {found['version']} ({found['sha256'][:12]}), and "
            f"{FILE_NAME} names version {noted['version']} ({noted['sha256'][:12]}): put back the tokenizer "
            "that the model was trained with"
        )
    return found


def next_version(version: str) -> str:
    """The version after this one: its last number counted up ("1" -> "2", "paleo" -> "paleo-2")."""
    head = version.rstrip("0123456789")
    number = version[len(head) :]
    return f"{head}{int(number) + 1}" if number else f"{version}-2"


def _describe(tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    backend: Any = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return {"class": type(tokenizer).__name__, "special": special}
    state = {key: value for key, value in json.loads(backend.to_str()).items() if key not in _SETTINGS}
    model = state["model"]
    if isinstance(model["vocab"], list):
        pieces, scores = zip(*model["vocab"], strict=True)
        # Loading a file moves about one score in eight by its last bit.
        state["model"] = model | {"vocab": [list(pieces), np.array(scores, np.float32).tolist()]}
    return {"backend": _drop_nulls(state), "special": special}


def _drop_nulls(state: Any) -> Any:
    """Newer libraries add keys that are null until somebody sets them."""
    if isinstance(state, dict):
        return {key: _drop_nulls(value) for key, value in state.items() if value is not None}
    return state
