"""What a Hugging Face source may bring: JSON and safetensors. Its code and its pickles are never run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SAFE_CODE = {"trust_remote_code": False}
"""For every `from_pretrained`. Left out, transformers asks on the terminal, in the middle of a job."""
SAFE_WEIGHTS = {**SAFE_CODE, "use_safetensors": True}
"""The same for models."""

_PICKLE_ENDINGS = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))


def check_code(source: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse a source whose `config.json` names Python files of its own.

    Raises:
        ValueError: it does.
    """
    named = config.get("auto_map")
    if named:
        raise ValueError(
            f"{source} brings Python code of its own (auto_map in config.json: {named}), which is never run "
            "here: if transformers knows its model_type, remove auto_map in a copy of the folder; else take "
            "another model"
        )


def check_weights(folder: Path) -> None:
    """Refuse a folder whose weights are pickles, which can run anything when they are opened.

    A folder without any weights is left to the loader.

    Raises:
        ValueError: there are pickles and no safetensors, or the index of the safetensors names other files.
    """
    names = sorted(path.name for path in folder.iterdir() if path.is_file())
    if not any(name.endswith(".safetensors") for name in names):
        pickles = [name for name in names if Path(name).suffix in _PICKLE_ENDINGS]
        if pickles:
            raise ValueError(
                f"{folder} has its weights in pickles only ({', '.join(pickles[:3])}), which can run code "
                "when they are opened: give a folder with model.safetensors. Where you trust the file, load "
                "it with plain transformers and save_pretrained it into a new folder, which writes one"
            )
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        listed = set(json.loads(index.read_text(encoding="utf-8")).get("weight_map", {}).values())
        foreign = sorted(name for name in listed if not _is_own_safetensors(name))
        if foreign:
            raise ValueError(
                f"{index} names {', '.join(foreign[:3])}: its parts must be .safetensors files beside it"
            )


def _is_own_safetensors(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def explain_failure(source: str | Path, error: OSError) -> OSError:
    """The error of a loader in one line that says what to give."""
    first_line = str(error).strip().split("\n", maxsplit=1)[0]
    if Path(source).is_dir():
        return OSError(
            f"the folder {source} cannot be loaded ({first_line}): it lacks weights or they are damaged"
        )
    return OSError(
        f"{str(source)!r} is no folder here and could not be fetched from the hub ({first_line}): there is "
        "no network or the hub id is wrong; give a local folder, or fetch the model where there is a network"
    )
