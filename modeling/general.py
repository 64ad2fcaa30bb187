"""Any masked language model over pieces that transformers knows, with the outputs that training wants.

The class of a model is replaced by one of the same name whose forward gives sums over the targets;
parameters, their names and what is saved stay those of transformers. Where the architecture is known (BERT,
RoBERTa, ModernBERT) the head runs at the targets only and several documents may share a row; elsewhere the
logits of every slot are computed, as in transformers, and one document takes a row.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch, V pieces.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import CONFIG_MAPPING, AutoConfig, AutoModelForMaskedLM, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_MASKED_LM_MAPPING_NAMES
from transformers.utils.generic import can_return_tuple

from modeling.heads import MaskedLMOutput, check_labels, find_targets, score_hidden, score_targets
from modeling.trust import SAFE_CODE, SAFE_WEIGHTS, check_code, check_weights, explain_failure

OWN_TYPES = {"deberta-v2": "deberta", "canine": "canine"}
"""Model types that have a family of their own, which does more for them."""
DROPOUT_KEYS = (
    "hidden_dropout_prob",
    "attention_probs_dropout_prob",
    "attention_dropout",
    "embedding_dropout",
    "mlp_dropout",
    "hidden_dropout",
    "dropout",
)
_SPECIAL_KEYS = ("pad_token_id", "bos_token_id", "eos_token_id", "cls_token_id", "sep_token_id")


@dataclass(frozen=True)
class Architecture:
    """What is known of a model type.

    Attributes:
        decode: logits [..., V] of hidden states [..., D].
        first_position: position of a document's first slot, for a configuration.
        has_windows: some layers attend to a window only, and take a mask of their own.
    """

    decode: Callable[[Any, Tensor], Tensor]
    first_position: Callable[[Any], int]
    has_windows: bool = False


ARCHITECTURES = {
    "bert": Architecture(lambda model, hidden: model.cls(hidden), lambda config: 0),
    "roberta": Architecture(
        lambda model, hidden: model.lm_head(hidden), lambda config: (config.pad_token_id or 0) + 1
    ),
    "modernbert": Architecture(
        lambda model, hidden: model.decoder(model.head(hidden)), lambda config: 0, has_windows=True
    ),
}


class TargetScoring:
    """A mixin in front of a masked language model of transformers."""

    loss_chunk: int | None = None
    """Targets whose logits exist at a time (see `modeling.heads.score_targets`); None: all of a batch. Of use
    where the architecture is known."""

    @can_return_tuple
    def forward(
        self: Any,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Logits [B, L, V] without labels; with them loss, counts and, it may be, logits [K, V].

        Those are given in eval mode without `loss_chunk`.

        All tensors are [B, L]. `document_ids` is 0 at padding and counts the documents of a row from 1: slots
        attend within their document only. `options` are those of the model in transformers.

        Raises:
            ValueError: `document_ids` for a model that packing would change.
        """
        if document_ids is not None:
            options |= arrange_documents(self, document_ids, attention_mask)
        else:
            options["attention_mask"] = attention_mask
        options["input_ids"] = input_ids
        known = ARCHITECTURES.get(self.config.model_type)
        if labels is None or known is None:
            plain = super().forward(**options)  # pyright: ignore[reportAttributeAccessIssue]
            if labels is None:
                return MaskedLMOutput(
                    logits=plain.logits, hidden_states=plain.hidden_states, attentions=plain.attentions
                )
            check_labels(labels, plain.logits.shape[:2])
            targets = find_targets(labels)
            chosen_KV = plain.logits.flatten(0, 1).index_select(0, targets.slots)
            return score_hidden(
                chosen_KV, targets.labels, lambda logits: logits, keep_logits=not self.training
            )
        encoded = self.base_model(**options)
        hidden_BLD = encoded.last_hidden_state
        output = score_targets(
            hidden_BLD,
            labels,
            lambda hidden: known.decode(self, hidden),
            keep_logits=self.loss_chunk is None and not self.training,
            chunk=self.loss_chunk,
        )
        output.hidden_states, output.attentions = encoded.hidden_states, encoded.attentions
        return output


@cache
def _adapt_class(model_class: type[PreTrainedModel]) -> type[PreTrainedModel]:
    """The class with our forward; its name is the same, for that is what config.json will say."""
    return type(model_class.__name__, (TargetScoring, model_class), {"__module__": __name__})


def adapt(model: Any) -> Any:
    """Give a masked language model of transformers our forward, in place."""
    if not isinstance(model, TargetScoring):
        model.__class__ = _adapt_class(type(model))
    return model


def build(
    config: Mapping[str, Any], *, num_pieces: int, dropout: float | None = None, seed: int
) -> PreTrainedModel:
    """A model from scratch; `config` names its `model_type` beside its sizes.

    Raises:
        ValueError: a type that has no masked language model, or a family of its own.
    """
    values = dict(config)
    config_class = find_config_class(values.pop("model_type", None))
    defaults = config_class()
    for key in _SPECIAL_KEYS:
        # The defaults are those of a published tokenizer, which may know more pieces.
        default = getattr(defaults, key, None)
        if key not in values and isinstance(default, int) and default >= num_pieces:
            values[key] = 0 if key == "pad_token_id" else None
    built = config_class(**values, vocab_size=num_pieces)
    set_dropout(built, dropout)
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        return adapt(AutoModelForMaskedLM.from_config(built, **SAFE_CODE))


def load(
    source: str | Path,
    *,
    num_pieces: int | None = None,
    old_pieces: Mapping[int, Sequence[int]] | None = None,
    dropout: float | None = None,
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """A model in fp32 from a hub id or folder, grown to `num_pieces`, and transformers' loading info.

    Raises:
        OSError: the source cannot be reached or holds no model.
        ValueError: code of its own, pickled weights, a type without a masked language model.
    """
    try:
        check_code(source, PreTrainedConfig.get_config_dict(str(source))[0])
        config = AutoConfig.from_pretrained(str(source), **SAFE_CODE)
        find_config_class(config.model_type)
        if Path(source).is_dir():
            check_weights(Path(source))
        set_dropout(config, dropout)
        loaded: Any = AutoModelForMaskedLM.from_pretrained(
            str(source), config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
        )
    except OSError as error:
        raise explain_failure(source, error) from error
    model, found = loaded
    adapt(model)
    if num_pieces is not None:
        grow(model, num_pieces, old_pieces or {})
    return model, found


def grow(model: Any, num_pieces: int, old_pieces: Mapping[int, Sequence[int]]) -> None:
    """Give a model at least `num_pieces` pieces, as `hf.grow_vocabulary` does for DeBERTa."""
    num_old = model.get_input_embeddings().num_embeddings
    if num_pieces > num_old:
        model.resize_token_embeddings(num_pieces, mean_resizing=False)
    output = model.get_output_embeddings()
    tensors = {
        id(t): t for t in (model.get_input_embeddings().weight, output.weight, output.bias) if t is not None
    }
    with torch.no_grad():
        for values in tensors.values():
            values[num_old:] = values[:num_old].mean(0)
            means = {new: values[list(old)].mean(0) for new, old in old_pieces.items()}
            for new, mean in means.items():
                values[new] = mean


def find_config_class(model_type: str | None) -> Any:
    """The configuration class of a type that has a masked language model.

    Raises:
        ValueError: it has none, or a family of its own.
    """
    if model_type in OWN_TYPES:
        raise ValueError(
            f"model_type {model_type!r} has a family of its own, which does more for it: "
            f"family: {OWN_TYPES[model_type]}"
        )
    if model_type not in MODEL_FOR_MASKED_LM_MAPPING_NAMES:
        raise ValueError(
            f"model_type is {model_type!r}: family auto wants one that transformers has a masked language "
            "model for, bert, roberta or modernbert for instance"
        )
    return CONFIG_MAPPING[model_type]


def list_config_keys(config_class: Any) -> set[str]:
    """Keys that a configuration class declares."""
    keys: set[str] = set()
    for one in config_class.__mro__:
        if one is PreTrainedConfig:
            break
        keys |= set(vars(one).get("__annotations__", {}))
    return keys


def set_dropout(config: Any, dropout: float | None) -> None:
    """Set every dropout rate of a configuration but that of a classifier; None leaves them."""
    if dropout is None:
        return
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"dropout is {dropout}: give a rate of at least 0 and below 1")
    for key in DROPOUT_KEYS:
        if hasattr(config, key):
            setattr(config, key, dropout)


def find_packing_obstacle(model: Any) -> str | None:
    """Why documents cannot share a row of a model; None where they can."""
    model_type, kind = model.config.model_type, model.config._attn_implementation
    if model_type not in ARCHITECTURES:
        return f"nobody checked what {model_type} does with several documents in a row"
    if kind not in ("eager", "sdpa"):
        return f"attention {kind!r} takes no mask that keeps the documents of a row apart"
    return None


def count_positions(config: Any) -> int | None:
    """Longest row that a model reads; None where its configuration names none."""
    most = getattr(config, "max_position_embeddings", None)
    known = ARCHITECTURES.get(config.model_type)
    return most if most is None or known is None else most - known.first_position(config)


def arrange_documents(model: Any, document_ids: Tensor, attention_mask: Tensor | None) -> dict[str, Any]:
    """Masks [B, 1, L, L] that keep documents apart, and positions [B, L] that start anew in each.

    Raises:
        ValueError: the model would not keep them apart.
    """
    obstacle = find_packing_obstacle(model)
    if obstacle is not None:
        raise ValueError(f"document_ids were given, and {obstacle}: give one document a row")
    config, known = model.config, ARCHITECTURES[model.config.model_type]
    owner_BL = (
        document_ids if attention_mask is None else document_ids * attention_mask.to(document_ids.dtype)
    )
    slots_L = torch.arange(owner_BL.shape[1], device=owner_BL.device)
    is_first_BL = torch.ones_like(owner_BL, dtype=torch.bool)
    is_first_BL[:, 1:] = owner_BL[:, 1:] != owner_BL[:, :-1]
    starts_BL = torch.where(is_first_BL, slots_L, 0).cummax(1).values
    positions_BL = slots_L - starts_BL
    # Padding attends to padding: no slot reads it, and a softmax over nothing would be NaN.
    is_own = (owner_BL[:, :, None] == owner_BL[:, None, :])[:, None]
    options: dict[str, Any] = {"position_ids": positions_BL + known.first_position(config)}
    if not known.has_windows:
        return {**options, "attention_mask": _write_mask(is_own, model)}
    is_near_LL = (slots_L[:, None] - slots_L).abs() <= config.sliding_window
    masks = {"full_attention": is_own, "sliding_attention": is_own & is_near_LL}
    return {**options, "attention_mask": {name: _write_mask(mask, model) for name, mask in masks.items()}}


def _write_mask(is_seen: Tensor, model: Any) -> Tensor:
    """As the attention of the model takes it: bool, or what is added to the scores."""
    if model.config._attn_implementation == "sdpa":
        return is_seen
    dtype = model.dtype
    return torch.zeros_like(is_seen, dtype=dtype).masked_fill(~is_seen, torch.finfo(dtype).min)
