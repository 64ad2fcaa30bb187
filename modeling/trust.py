"""What a Hugging Face source or a checkpoint may bring: JSON, safetensors, pickles of a few known names.

Its code is never run, and no pickle is opened whose names were not looked at first.
"""

import json
import os
import pickle
import stat
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

SAFE_CODE = {"trust_remote_code": False}
"""For every `from_pretrained`. Left out, transformers asks on the terminal, in the middle of a job."""
SAFE_WEIGHTS = {**SAFE_CODE, "use_safetensors": True}
"""The same for models."""

_PICKLE_ENDINGS = frozenset((".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"))
# Each has made transformers fetch or run code from a configuration alone: CVE-2026-4372 (a kernel of a hub
# named as an attention implementation), CVE-2026-5241 (trust_remote_code inside a nested configuration).
_CODE_KEYS = (
    "auto_map",
    "custom_pipelines",
    "trust_remote_code",
    "_attn_implementation_internal",
    "_experts_implementation_internal",
)
_KERNEL_KEYS = ("_attn_implementation", "attn_implementation", "_experts_implementation")
_SHARD_GLOBALS = frozenset(
    (
        "deepspeed.runtime.fp16.loss_scaler.DynamicLossScaler",
        "deepspeed.runtime.fp16.loss_scaler.LossScaler",
        "deepspeed.runtime.zero.config.ZeroStageEnum",
        "deepspeed.utils.tensor_fragment.fragment_address",
    )
)
"""All that the ZeRO-1, 2 and 3 files of DeepSpeed 0.19 name beyond what `weights_only` admits."""


def check_code(source: str | Path, config: Mapping[str, Any]) -> None:
    """Refuse a source whose `config.json` names code: Python files of its own, or kernels of a hub.

    Raises:
        ValueError: it does, at the top or in a configuration inside it.
    """
    for key, value in _walk_keys(config):
        is_kernel = key in _KERNEL_KEYS and isinstance(value, str) and ("/" in value or ":" in value)
        if (key in _CODE_KEYS and value) or is_kernel:
            what = "Python code of its own" if key == "auto_map" else "code from elsewhere"
            raise ValueError(
                f"{source} brings {what} ({key} in config.json: {str(value)[:200]!r}), which is never run "
                f"here: if transformers knows its model_type, remove {key} in a copy of the folder; else "
                "take another model"
            )


def _walk_keys(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield str(key), item
            yield from _walk_keys(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _walk_keys(item)


def check_weights(folder: Path) -> None:
    """Refuse a folder that names code, or whose weights are pickles, which can run anything when opened.

    A folder without any weights is left to the loader.

    Raises:
        ValueError: there are pickles and no safetensors, the index of the safetensors names other files, or
            see check_code.
    """
    config = folder / "config.json"
    if config.is_file():
        check_code(folder, _read_object(config))
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
        listed = set(_read_object(index).get("weight_map", {}).values())
        foreign = sorted(str(name) for name in listed if not _is_own_safetensors(name))
        if foreign:
            raise ValueError(
                f"{index} names {', '.join(foreign[:3])}: its parts must be .safetensors files beside it"
            )


def _read_object(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON ({type(error).__name__}): fetch it again") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds no JSON object: fetch it again")
    return value


def _is_own_safetensors(name: object) -> bool:
    return isinstance(name, str) and name.endswith(".safetensors") and Path(name).name == name


def check_shards(folder: Path) -> None:
    """Look at every pickle under a folder before DeepSpeed opens them, which it does without any care.

    Raises:
        ValueError: see check_pickle, and check_owner, which looks at the folders too.
    """
    check_owner(folder)
    for path in sorted(folder.rglob("*")):
        if path.is_dir():
            check_owner(path)  # rglob does not look behind a link to a folder, and DeepSpeed would
        elif path.suffix in _PICKLE_ENDINGS:
            check_owner(path)
            check_pickle(path)


def check_pickle(path: Path) -> None:
    """Refuse a torch file that would call anything but the few names that a ZeRO checkpoint needs.

    The file is looked at and not opened. There is no second try with less care.

    Raises:
        ValueError: it names something else, is no zip archive of torch, or cannot be read.
    """
    import torch

    try:
        with zipfile.ZipFile(path) as archive:
            inside = {name.rpartition("/")[2] for name in archive.namelist()}
        # An archive with these is handed to torch.jit.load, whatever its name.
        if inside & {"constants.pkl", "attributes.pkl"}:
            raise ValueError(f"{path} is a TorchScript archive and no checkpoint of ours: {_WHAT_TO_DO}")
        named = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except ValueError:
        raise
    except Exception as error:  # a damaged pickle can fail in any way, and is refused in all
        raise ValueError(
            f"{path} cannot be looked at ({type(error).__name__}: {error}): {_WHAT_TO_DO}"
        ) from error
    foreign = sorted(set(named) - _SHARD_GLOBALS)
    if foreign:
        raise ValueError(
            f"{path} would call {', '.join(foreign[:5])} when it is opened, which none of ours does: "
            f"{_WHAT_TO_DO}"
        )


def load_tensors(path: Path, allowed: Sequence[Any] = ()) -> dict[str, Any]:
    """A torch file of plain data and tensors, read with `weights_only` and never without.

    Args:
        path: the file; it is mapped, not read at once.
        allowed: classes that may stand in it too.

    Raises:
        ValueError: it holds anything else, or is damaged.
    """
    import torch

    try:
        with torch.serialization.safe_globals(list(allowed)):
            return torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        first_line = str(error).strip().split("\n", maxsplit=1)[0]
        raise ValueError(f"{path} is no file of plain tensors ({first_line}): {_WHAT_TO_DO}") from error


_WHAT_TO_DO = "it is not opened; resume from a checkpoint that you wrote, or export its model.safetensors"


def check_owner(path: Path) -> None:
    """Refuse a checkpoint that others may change: opening its shards can run code.

    Raises:
        ValueError: it is a link, everyone may write to it, or it belongs to another user than root and the
            one that asks; root may open anybody's.
    """
    state = path.lstat()
    if stat.S_ISLNK(state.st_mode):
        raise ValueError(f"{path} is a link, and a checkpoint has none: copy the file itself there")
    if state.st_mode & stat.S_IWOTH:
        raise ValueError(f"everyone may write to {path}, so that anyone could have changed it: chmod o-w it")
    # In a container the user who started it is often root, and their files outside another user's.
    if os.geteuid() != 0 and state.st_uid not in (0, os.geteuid()):
        raise ValueError(f"{path} belongs to another user: copy the checkpoint where it is yours")


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
