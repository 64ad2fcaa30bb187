"""Models from a configuration or a Hugging Face folder, grown and saved."""

import difflib
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import (
    AutoConfig,
    CanineConfig,
    DebertaV2Config,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from modeling import general
from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM
from modeling.trust import SAFE_CODE, SAFE_WEIGHTS, check_code, check_weights, explain_failure

Family = Literal["deberta", "canine", "auto"]
"""`auto`: any other masked language model that transformers knows (see `modeling.general`)."""
Model = DebertaForMaskedLM | CanineForMaskedLM | PreTrainedModel

FAMILIES: dict[str, tuple[Any, Any]] = {
    "deberta": (DebertaV2Config, DebertaForMaskedLM),
    "canine": (CanineConfig, CanineForMaskedLM),
    "auto": (None, None),
}

# What modeling_deberta_v2.py reads with getattr, so that the configuration class does not list it.
UNLISTED_KEYS = {
    "deberta": {
        "position_buckets", "norm_rel_ebd", "share_att_key", "attention_head_size", "embedding_size",
        "conv_kernel_size", "conv_groups", "conv_act",
    },
    "canine": {"chunk_size_feed_forward"},
}  # fmt: skip

# Keys whose one home is an argument of `build` and `load`.
ARGUMENT_OF = {
    "vocab_size": "num_pieces",
    "head_code_points": "head_code_points",
    **dict.fromkeys(general.DROPOUT_KEYS, "dropout"),
}

DEBERTA_V3_STYLE = {
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "max_relative_positions": -1,
    "type_vocab_size": 0,
    "legacy": False,
}


@dataclass(frozen=True)
class LoadReport:
    """What `load` found in a folder, by parameter name."""

    loaded: list[str]
    new: list[str]
    """Parameters the folder lacks; they start at random."""
    unused: list[str]
    """Weights of the folder that the model has no place for."""
    expected_loss: float | None
    """Mean loss before the first step, where theory gives one; `reason` says why, or why not."""
    reason: str


def build(
    family: Family,
    *,
    config: Mapping[str, Any],
    num_pieces: int | None = None,
    dropout: float | None = None,
    head_code_points: Sequence[int] | None = None,
    seed: int,
) -> Model:
    """A model from scratch, the same for the same seed; the global generators are left as they were.

    DeBERTa takes `num_pieces` and starts from `DEBERTA_V3_STYLE`, CANINE takes `head_code_points`; `auto`
    takes `num_pieces`, and its configuration names a `model_type`.

    Raises:
        ValueError: an unknown family, a key that the family's configuration lacks, an argument missing or too
        many.
    """
    config_class, model_class = _find_family(family)
    _check_keys(family, config)
    _check_arguments(family, num_pieces=num_pieces, head_code_points=head_code_points)
    values = {**(DEBERTA_V3_STYLE if family == "deberta" else {}), **config}
    if family != "canine":
        if num_pieces is None:
            raise ValueError(
                "num_pieces is None: a model from scratch needs the size of its tokenizer's vocabulary"
            )
        values["vocab_size"] = num_pieces
    if family == "auto":
        return general.build(config, num_pieces=values["vocab_size"], dropout=dropout, seed=seed)
    built_config = config_class(**values)
    general.set_dropout(built_config, dropout)
    if head_code_points is not None:
        built_config.head_code_points = sorted(set(head_code_points))
    # The CPU generator alone is forked and seeded, and the weights are drawn on the CPU: torch.manual_seed
    # would reseed those of the accelerators too.
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return model_class(built_config)  # pyright: ignore[reportArgumentType]


def load(
    family: Family,
    source: str | Path,
    *,
    num_pieces: int | None = None,
    old_pieces: Mapping[int, Sequence[int]] | None = None,
    dropout: float | None = None,
    head_code_points: Sequence[int] | None = None,
) -> tuple[Model, LoadReport]:
    """A model in fp32 from a hub id or folder, grown to `num_pieces` or to the code points given.

    Of DeBERTa's two heads the one that the folder holds is taken, whatever `legacy` in its config says:
    microsoft/deberta-v3-base ships `lm_predictions.lm_head.*` and leaves `legacy` at its default, True.

    Raises:
        OSError: the source cannot be reached or holds no model.
        ValueError: it holds another kind of model, code of its own or pickled weights, or an argument does
        not suit the family.
    """
    _, model_class = _find_family(family)
    _check_arguments(family, num_pieces=num_pieces, head_code_points=head_code_points)
    if family == "auto":
        model, found = general.load(source, num_pieces=num_pieces, old_pieces=old_pieces, dropout=dropout)
        return model, _report(model, found)
    config = _read_config(family, source)
    general.set_dropout(config, dropout)
    if head_code_points is not None and not getattr(config, "head_code_points", None):
        config.head_code_points = sorted(set(head_code_points))
    model, found = _read_model(model_class, source, config)
    if family == "deberta" and _has_other_head(config.legacy, found):
        config.legacy = not config.legacy
        model, found = _read_model(model_class, source, config)
    if isinstance(model, CanineForMaskedLM) and head_code_points is not None:
        model.grow_code_points(head_code_points)
    if isinstance(model, DebertaForMaskedLM) and num_pieces is not None:
        grow_vocabulary(model, num_pieces, old_pieces)
    return model, _report(model, found)


def _report(model: Model, found: Mapping[str, Any]) -> LoadReport:
    new = sorted(found["missing_keys"])
    loaded = sorted(set(model.state_dict()) - set(new))
    return LoadReport(loaded, new, sorted(found["unexpected_keys"]), *_expect_loss(model, new))


def grow_vocabulary(
    model: DebertaForMaskedLM, num_pieces: int, old_pieces: Mapping[int, Sequence[int]] | None = None
) -> int:
    """Give a model at least `num_pieces` pieces; it never shrinks, and the output stays tied.

    Args:
        model: changed in place.
        num_pieces: pieces of the tokenizer. The model may have more rows: DeBERTa-v3 has 99 spare ones.
        old_pieces: {new piece: [old pieces]}: the new piece starts at the mean of the old ones, whether its
            row was spare or is added here. The other rows added start at the mean of all.

    Returns:
        The number of rows added.

    Raises:
        ValueError: `old_pieces` names a piece that the model lacks.
    """
    num_old = model.deberta.embeddings.word_embeddings.num_embeddings
    num_added = max(num_pieces - num_old, 0)
    if num_added:
        model.resize_token_embeddings(num_pieces)
    if old_pieces:
        model.average_pieces(old_pieces)
    return num_added


def save(
    model: PreTrainedModel,
    folder: str | Path,
    tokenizer: PreTrainedTokenizerBase | None = None,
    *,
    state_dict: Mapping[str, Tensor] | None = None,
) -> None:
    """Hugging Face folder with config, safetensors and tokenizer; making that atomic is up to the caller.

    `state_dict` replaces the model's own where its parameters are sharded over ranks.
    """
    model.save_pretrained(folder, state_dict=None if state_dict is None else dict(state_dict))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies: not to biases and norm weights."""
    is_bias = re.search(r"(^|[._])bias$", name) is not None
    is_norm = re.search(r"(^|[._])(layer_?norm|norm)\.weight$", name, re.IGNORECASE) is not None
    # ZeRO-3 leaves an empty tensor in place of the parameter and keeps its shape beside it.
    num_dimensions = len(getattr(parameter, "ds_shape", parameter.shape))
    return num_dimensions > 1 and not is_bias and not is_norm


def _find_family(family: str) -> tuple[type[DebertaV2Config] | type[CanineConfig], type[Model]]:
    if family not in FAMILIES:
        raise ValueError(f"model family {family!r} is unknown: the families are {', '.join(FAMILIES)}")
    return FAMILIES[family]


def _check_keys(family: str, config: Mapping[str, Any]) -> None:
    """Configuration classes of transformers take any key in silence, a misspelt one included."""
    if family == "auto":
        known = general.list_config_keys(general.find_config_class(config.get("model_type"))) | {"model_type"}
    else:
        known = set(vars(FAMILIES[family][0])["__annotations__"]) - {"model_type"} | UNLISTED_KEYS[family]
    known -= set(ARGUMENT_OF)
    for key in config:
        if key in ARGUMENT_OF:
            raise ValueError(
                f"model config key {key!r} has another home: give the argument {ARGUMENT_OF[key]}"
            )
        if key not in known:
            nearest = difflib.get_close_matches(key, sorted(known), n=1, cutoff=0.0)[0]
            raise ValueError(
                f"{family} has no config key {key!r}: did you mean {nearest!r}? Known: {sorted(known)}"
            )


def _check_arguments(family: str, *, num_pieces: int | None, head_code_points: Sequence[int] | None) -> None:
    if family == "canine" and num_pieces is not None:
        raise ValueError(
            f"num_pieces is {num_pieces}: CANINE reads code points and has no pieces, leave it out"
        )
    if family != "canine" and head_code_points is not None:
        raise ValueError("head_code_points were given: DeBERTa predicts pieces, leave them out")


def _read_config(family: str, source: str | Path) -> Any:
    folder = Path(source)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise FileNotFoundError(f"{folder} has no config.json: give a folder that save_pretrained wrote")
    try:
        check_code(source, PreTrainedConfig.get_config_dict(str(source))[0])
        config = AutoConfig.from_pretrained(str(source), **SAFE_CODE)
    except OSError as error:
        raise explain_failure(source, error) from error
    if folder.is_dir():
        check_weights(folder)
    config_class, _ = _find_family(family)
    if not isinstance(config, config_class):
        raise ValueError(
            f"{source} holds a model of type {config.model_type!r} and family {family!r} wants "
            f"{config_class.model_type!r}: give another source or family"
        )
    return config


def _read_model(model_class: Any, source: str | Path, config: Any) -> tuple[Any, dict[str, Any]]:
    """Model and loading info, in fp32: transformers 5 by itself keeps the precision of the file."""
    try:
        return model_class.from_pretrained(
            str(source), config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
        )
    except OSError as error:
        raise explain_failure(source, error) from error


def _has_other_head(legacy: bool, found: Mapping[str, Any]) -> bool:
    own, other = "cls.predictions.transform.dense.weight", "lm_predictions.lm_head.dense.weight"
    if not legacy:
        own, other = other, own
    return own in found["missing_keys"] and other in found["unexpected_keys"]


def _expect_loss(model: Model, new: Sequence[str]) -> tuple[float | None, str]:
    if isinstance(model, CanineForMaskedLM):
        num_classes, is_new = model.head.decoder.out_features, any(name.startswith("head.") for name in new)
    else:
        num_classes, is_new = model.config.vocab_size, bool(new)
    if any(name.startswith(f"{model.base_model_prefix}.") for name in new):
        return math.log(num_classes), f"part of the encoder is new: chance over {num_classes} classes"
    if not is_new:
        return None, "encoder and head were loaded: the loss at step 0 depends on the text"
    if isinstance(model, CanineForMaskedLM):
        return math.log(num_classes), f"the head is new: chance over {num_classes} classes"
    return (
        math.log(num_classes),
        f"the head is new: chance over {num_classes} pieces is the least to expect, and a new transform "
        "under a trained embedding starts above it (13.6 and 15.8 were seen at 11.8)",
    )
