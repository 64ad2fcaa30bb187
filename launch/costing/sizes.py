"""Sizes of models, known without transformers and without a network: what the plan counts FLOPs from."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

# The defaults of the configuration classes, as far as they matter here.
DEFAULTS: dict[str, dict[str, Any]] = {
    "deberta-v2": {
        "vocab_size": 128100, "hidden_size": 1536, "num_hidden_layers": 24, "num_attention_heads": 24,
        "intermediate_size": 6144, "max_position_embeddings": 512, "relative_attention": False,
        "max_relative_positions": -1, "pos_att_type": None, "legacy": True,
    },
    "canine": {
        "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
        "downsampling_rate": 4, "upsampling_kernel_size": 4, "local_transformer_stride": 128,
    },
    "bert": {
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072,
    },
    "modernbert": {
        "vocab_size": 50368, "hidden_size": 768, "num_hidden_layers": 22, "num_attention_heads": 12,
        "intermediate_size": 1152,
    },
}  # fmt: skip
# What a DeBERTa from scratch starts from (modeling/hf.py has the whole of it).
DEBERTA_STYLE: dict[str, Any] = {
    "relative_attention": True, "position_buckets": 256, "share_att_key": True, "legacy": False,
    "pos_att_type": ["p2c", "c2p"],
}  # fmt: skip
# config.json of well-known hub models, where it differs from the above.
_BASE = {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072}
_LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16, "intermediate_size": 4096}
_DEBERTA = {"model_type": "deberta-v2", **DEBERTA_STYLE}
HUB_MODELS: dict[str, dict[str, Any]] = {
    "microsoft/deberta-v3-small": {**_DEBERTA, **_BASE, "num_hidden_layers": 6},
    "microsoft/deberta-v3-base": {**_DEBERTA, **_BASE},
    "microsoft/deberta-v3-large": {**_DEBERTA, **_LARGE},
    "google/canine-c": {"model_type": "canine"},
    "google/canine-s": {"model_type": "canine"},
    "google-bert/bert-base-uncased": {"model_type": "bert"},
    "answerdotai/ModernBERT-base": {"model_type": "modernbert"},
}

MODEL_TYPES = {"deberta": "deberta-v2", "canine": "canine"}
"""Of the families that have code of their own."""


def find_origin(source: str) -> str:
    """Where the sizes of a model come from, in words."""
    if source == "scratch":
        return "the recipe"
    if (Path(source) / "config.json").is_file():
        return "the model's folder"
    return "a shipped table of public shapes" if source in HUB_MODELS else "unknown"


def count_pieces(source: str) -> int | None:
    """The pieces of a tokenizer's folder, added ones included; None: they cannot be read there."""
    try:
        found = json.loads((Path(source) / "tokenizer.json").read_text(encoding="utf-8"))
        added = [token["id"] + 1 for token in found.get("added_tokens") or []]
        return max([len(found["model"]["vocab"]), *added])
    except (OSError, ValueError, KeyError, TypeError):  # said when the data is prepared
        return None


def find_sizes(
    family: str, source: str, config: Mapping[str, Any], num_pieces: int | None = None
) -> dict[str, Any] | None:
    """A model's configuration as far as it is known before the model is built; None: it is not.

    Args:
        family: the recipe's.
        source: `scratch`, a folder, or a hub id.
        config: sizes for `scratch`.
        num_pieces: of the tokenizer, for `scratch`.
    """
    pieces = {} if num_pieces is None else {"vocab_size": num_pieces}
    if source == "scratch":
        style = DEBERTA_STYLE if family == "deberta" else {}
        model_type = MODEL_TYPES.get(family, config.get("model_type", family))
        found = {**style, **config, "model_type": model_type, **pieces}
    elif (Path(source) / "config.json").is_file():
        found = json.loads((Path(source) / "config.json").read_text(encoding="utf-8"))
    else:
        found = HUB_MODELS.get(source)
    return found if found is not None and found.get("model_type") in DEFAULTS else None
