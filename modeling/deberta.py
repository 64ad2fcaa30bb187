"""DeBERTa-v2/v3 with a masked-language-model head at the targets only, and exact packing of documents.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch, V pieces.
"""

from collections.abc import Mapping, Sequence
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config, DebertaV2ForMaskedLM
from transformers.utils.generic import can_return_tuple

from modeling.encoding import DebertaEncoding, freeze_idle_parameters
from modeling.heads import MaskedLMOutput, check_labels, find_targets, score_hidden, score_targets
from modeling.layers import arrange_queries, check_packing

__all__ = ["DebertaForMaskedLM", "check_packing"]

HUGGING_FACE_CLASS = "DebertaV2ForMaskedLM"


class DebertaForMaskedLM(DebertaEncoding, DebertaV2ForMaskedLM):
    """Hugging Face's DeBERTa masked language model: the same parameters and logits, less work.

    `config.legacy` picks the head as there: `cls.predictions` (True) or DeBERTa-v3's `lm_predictions`
    (False). The output matrix is the embedding in both.

    `set_attention` chooses the attention kernel. `sparse_last_layer`, off at first, runs query, output and
    feed-forward of the last layer at the targets only: the same loss and gradients up to rounding.
    """

    sparse_last_layer: bool = False
    keeps_logits: bool = False
    """Give the logits [K, V] in training too, for whoever samples from them."""
    loss_chunk: int | None = None
    """Targets whose logits exist at a time (see `modeling.heads.score_targets`); None: all of a batch."""

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.adapt_encoder()

    @classmethod
    def from_pretrained(cls, *args: Any, **kwargs: Any) -> Any:
        """Hugging Face's loading, after which idle parameters ask for no gradient either."""
        found = super().from_pretrained(*args, **kwargs)
        freeze_idle_parameters(found[0] if isinstance(found, tuple) else found)
        return found

    @can_return_tuple
    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        position_ids: Tensor | None = None,
        labels: Tensor | None = None,
        document_ids: Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Logits [B, L, V] without labels; with them loss, counts and, it may be, logits [K, V].

        Those are given in eval mode without `loss_chunk`.

        All tensors are [B, L]. `document_ids` is 0 at padding and counts the documents of a row from 1: slots
        attend within their document only, and the outputs are those of the documents alone. `options` are
        `inputs_embeds` [B, L, D], `output_hidden_states` and `output_attentions`.

        Raises:
            ValueError: `document_ids` for a model that packing would change.
            TypeError: an option that is not one of the three.
        """
        embedding = {"token_type_ids": token_type_ids, "position_ids": position_ids}
        targets = queries = None
        if labels is not None and self._is_sparse(options):
            given = options.get("inputs_embeds") if input_ids is None else input_ids
            check_labels(labels, labels.shape if given is None else given.shape[:2])
            targets = find_targets(labels)
            queries = arrange_queries(targets.slots, *labels.shape)
        encoded = self.encode(
            input_ids, attention_mask, document_ids, embedding=embedding, options=options, queries=queries
        )
        hidden = encoded.last_hidden_state
        assert hidden is not None
        if labels is None:
            output = MaskedLMOutput(logits=self.decode(hidden))
        elif targets is None:
            output = score_targets(hidden, labels, self.decode, **self._scoring())
        else:
            output = score_hidden(hidden, targets.labels, self.decode, **self._scoring())
        output.hidden_states, output.attentions = encoded.hidden_states, encoded.attentions
        return output

    def _scoring(self) -> dict[str, Any]:
        keeps_logits = self.keeps_logits or (self.loss_chunk is None and not self.training)
        return {"keep_logits": keeps_logits, "chunk": self.loss_chunk}

    def _is_sparse(self, options: Mapping[str, Any]) -> bool:
        """Not where more than the targets is asked for, or where a convolution over all slots comes last."""
        asked = ("output_hidden_states", "output_attentions")
        wants_all = any(
            getattr(self.config, name) if options.get(name) is None else options[name] for name in asked
        )
        encoder = self.deberta.encoder
        is_mixed_last = encoder.conv is not None and len(encoder.layer) == 1
        return self.sparse_last_layer and not wants_all and not is_mixed_last

    def decode(self, hidden_D: Tensor) -> Tensor:
        """Logits [..., V] of hidden states [..., D]."""
        if self.legacy:
            return self.cls(hidden_D)
        return self.lm_predictions(hidden_D, self.deberta.embeddings.word_embeddings)

    def get_output_embeddings(self) -> nn.Linear | None:  # pyright: ignore[reportIncompatibleMethodOverride]
        """The output layer of the legacy head.

        None for the other head, whose matrix is the input embedding itself. Hugging Face names its [D, D]
        dense layer here, and a resize then breaks the model.
        """
        return self.cls.predictions.decoder if self.legacy else None

    def resize_token_embeddings(
        self,
        new_num_tokens: int | None = None,
        pad_to_multiple_of: int | None = None,
        mean_resizing: bool = True,
    ) -> nn.Embedding:
        """Grow embedding, output layer and output bias, new rows at the mean of the old.

        Raises:
            ValueError: fewer pieces than the model has, which would throw trained rows away.
        """
        embedding = self.deberta.embeddings.word_embeddings
        wanted = embedding.num_embeddings if new_num_tokens is None else new_num_tokens
        if pad_to_multiple_of is not None:
            wanted = -(-wanted // pad_to_multiple_of) * pad_to_multiple_of
        if wanted < embedding.num_embeddings:
            raise ValueError(
                f"the model has {embedding.num_embeddings} pieces and {wanted} were asked for: it only "
                "grows; spare rows at the end are harmless, leave them"
            )
        if wanted > embedding.num_embeddings:
            self._grow_rows(wanted)
        return self.deberta.embeddings.word_embeddings

    def _grow_rows(self, num_pieces: int) -> None:
        embeddings = self.deberta.embeddings
        old = embeddings.word_embeddings
        with torch.device(old.weight.device):
            grown = nn.Embedding(num_pieces, old.embedding_dim, old.padding_idx, dtype=old.weight.dtype)
        grown.weight = _append_mean(old.weight, num_pieces)
        embeddings.word_embeddings = grown
        if self.legacy:
            predictions = self.cls.predictions
            predictions.bias = _append_mean(predictions.bias, num_pieces)
            predictions.decoder.out_features = num_pieces
            predictions.decoder.weight = grown.weight
            predictions.decoder.bias = predictions.bias
        else:
            lm_head = self.lm_predictions.lm_head
            lm_head.bias = _append_mean(lm_head.bias, num_pieces)
        self.config.vocab_size = num_pieces

    def average_pieces(self, old_pieces: Mapping[int, Sequence[int]]) -> None:
        """Set the row and output bias of each piece `new` to the mean over the pieces `old_pieces[new]`.

        Means are of the values before the call, also where an old piece is itself set.

        Raises:
            ValueError: a piece that the model lacks, or a new piece with no old one.
        """
        embedding = self.deberta.embeddings.word_embeddings
        num_pieces = embedding.num_embeddings
        for new, old in old_pieces.items():
            if not len(old) or not all(0 <= piece < num_pieces for piece in (new, *old)):
                raise ValueError(
                    f"piece {new} is to start from the pieces {list(old)}: give at least one, all below "
                    f"{num_pieces}"
                )
        head = self.cls.predictions if self.legacy else self.lm_predictions.lm_head
        with torch.no_grad():
            for values in (embedding.weight, head.bias):
                means = [values[list(old)].mean(0) for old in old_pieces.values()]
                for new, mean in zip(old_pieces, means, strict=True):
                    values[new] = mean

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Hugging Face folder under the name of its own class, so that plain transformers loads it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.config.architectures = [HUGGING_FACE_CLASS]
        if kwargs.get("is_main_process", args[0] if args else True):
            self.config.save_pretrained(save_directory)


def _append_mean(old: Tensor, num_rows: int) -> nn.Parameter:
    values = old.detach()
    new_rows = values.mean(0, keepdim=True).expand(num_rows - values.shape[0], *values.shape[1:])
    return nn.Parameter(torch.cat([values, new_rows]), requires_grad=old.requires_grad)
