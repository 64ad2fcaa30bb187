"""The files of offline runs of Weights & Biases: what reached them before the process ended.

They are written in blocks of 32 KiB; a process that is killed leaves the last one unwritten, some 60 logged
steps. The format is LevelDB's log (its doc/log_format.md) after a header of 7 bytes.
"""

import json
import struct
from collections.abc import Iterator
from pathlib import Path

_BLOCK_BYTES = 32 * 1024
_HEADER_BYTES = 7
_FULL, _LAST = 1, 4


def find_offline_steps(folder: Path, run_id: str) -> dict[str, int] | None:
    """The highest steps by kind in all offline sessions of a run; None: it had none."""
    from wandb.proto import wandb_internal_pb2  # pyright: ignore[reportMissingImports]

    found: dict[str, int] = {}
    paths = list(folder.glob(f"wandb/offline-run-*-{run_id}/*.wandb"))
    for path in paths:
        for data in read_records(path.read_bytes()):
            record = wandb_internal_pb2.Record.FromString(data)
            items = record.history.item if record.WhichOneof("record_type") == "history" else ()
            row = {".".join(item.nested_key) or item.key: item.value_json for item in items}
            for kind in ("train", "eval"):
                if f"{kind}/loss" in row:
                    found[kind] = max(found.get(kind, -1), json.loads(row["_step"]))
    return found if paths else None


def read_records(data: bytes) -> Iterator[bytes]:
    """The whole records of a file, in order; one that is cut short ends it."""
    offset, parts = _HEADER_BYTES, []
    while offset + _HEADER_BYTES <= len(data):
        left = _BLOCK_BYTES - offset % _BLOCK_BYTES
        if left < _HEADER_BYTES:  # filled up with zeros
            offset += left
            continue
        _, length, kind = struct.unpack("<IHB", data[offset : offset + _HEADER_BYTES])
        offset += _HEADER_BYTES + length
        if kind == 0 or offset > len(data):
            return
        parts.append(data[offset - length : offset])
        if kind in (_FULL, _LAST):
            yield b"".join(parts)
            parts = []
