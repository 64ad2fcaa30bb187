"""DeBERTa's encoder: Hugging Face's layers, with a choice of attention and a sparse last layer.

Shapes: B rows of the batch, L slots of a row, D hidden size, K targets of the batch, T a little more than
the targets of the row that has most.
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor
from transformers import DebertaV2Config
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2Encoder, DebertaV2Layer

from modeling.attention import adapt_attention
from modeling.attention_flash import FlashRows

QUERY_MULTIPLE = 8


class Queries(NamedTuple):
    """Targets of a batch as the queries of a layer: laid end to end, and in rows filled up to T."""

    slots: Tensor
    """[K] slot of each target in the rows laid end to end."""
    places: Tensor
    """[K] its place among B * T."""
    positions: Tensor
    """[B, T] its slot in its row; 0 where a row has no target left."""


def arrange_queries(slots_K: Tensor, num_rows: int, length: int) -> Queries:
    """Targets, ascending, as queries."""
    rows_K = slots_K // length
    counts_B = torch.zeros(num_rows, dtype=torch.long, device=slots_K.device)
    counts_B = counts_B.index_add(0, rows_K, torch.ones_like(rows_K))
    most = int(counts_B.max())
    torch._check(most >= 0)
    # Never 0 or 1, which torch.compile treats as cases of their own; a multiple of 8 suits tensor cores.
    num_places = (most // QUERY_MULTIPLE + 1) * QUERY_MULTIPLE
    starts_B = counts_B.cumsum(0) - counts_B
    ranks_K = torch.arange(slots_K.shape[0], device=slots_K.device) - starts_B[rows_K]
    places_K = rows_K * num_places + ranks_K
    positions = torch.zeros(num_rows * num_places, dtype=torch.long, device=slots_K.device)
    positions = positions.index_copy(0, places_K, slots_K % length)
    return Queries(slots_K, places_K, positions.view(num_rows, num_places))


class Layer(DebertaV2Layer):
    """A layer that can give its output at some slots only. Made of one that exists."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Any,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
        output_attentions: bool = False,
        queries: Queries | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Hugging Face's output, or [K, D] for `queries`: query, output and feed-forward run there only."""
        if queries is None:
            return super().forward(
                hidden_states, attention_mask, query_states, relative_pos, rel_embeddings, output_attentions
            )
        chosen_KD = hidden_states.flatten(0, 1).index_select(0, queries.slots)
        num_rows, num_places = queries.positions.shape
        # Each place is written at most once, so the gradient is a plain selection.
        filled = chosen_KD.new_zeros(num_rows * num_places, chosen_KD.shape[1])
        filled = filled.index_copy(0, queries.places, chosen_KD)
        contexts_BTD, _ = self.attention.self(
            hidden_states,
            attention_mask,
            query_states=filled.view(num_rows, num_places, -1),
            rel_embeddings=rel_embeddings,
            positions=queries.positions,
        )
        contexts_KD = contexts_BTD.flatten(0, 1).index_select(0, queries.places)
        attention_KD = self.attention.output(contexts_KD, chosen_KD)
        return self.output(self.intermediate(attention_KD), attention_KD), None


def list_layers(encoder: DebertaV2Encoder) -> list[Any]:
    """Layers from the first to the last."""
    return list(encoder.layer)


def list_attentions(encoder: DebertaV2Encoder) -> list[Any]:
    """Self-attention of each layer."""
    return [layer.attention.self for layer in list_layers(encoder)]


def adapt_layers(encoder: DebertaV2Encoder) -> None:
    """Give the layers of an encoder and their attention our classes; parameters and names stay."""
    for layer in list_layers(encoder):
        layer.__class__ = Layer
        adapt_attention(layer.attention.self)


def run_layers(
    encoder: DebertaV2Encoder,
    embedded_BLD: Tensor,
    mask: Tensor,
    *,
    rows: FlashRows | None = None,
    queries: Queries | None = None,
    output_hidden_states: bool = False,
) -> BaseModelOutput:
    """`DebertaV2Encoder.forward`, with the last layer at the `queries` only: last hidden state [K, D].

    `mask` is [B, L] or [B, L, L], `rows` the same for the `flash` kernel.
    """
    input_mask = mask if mask.dim() == 2 else mask.sum(-2) > 0
    allowed = encoder.get_attention_mask(mask).bool()
    shown: Any = allowed if rows is None else rows
    relative_pos = encoder.get_rel_pos(embedded_BLD)
    rel_embeddings = encoder.get_rel_embedding()
    hidden = embedded_BLD
    all_hidden = [hidden]
    last = len(encoder.layer) - 1
    for number, layer in enumerate(list_layers(encoder)):
        is_sparse = queries is not None and number == last
        output, _ = layer(
            hidden,
            allowed if is_sparse else shown,
            relative_pos=relative_pos,
            rel_embeddings=rel_embeddings,
            queries=queries if is_sparse else None,
        )
        if number == 0 and encoder.conv is not None:
            output = encoder.conv(embedded_BLD, output, input_mask)
        hidden = output
        all_hidden.append(hidden)
    return BaseModelOutput(
        last_hidden_state=hidden, hidden_states=tuple(all_hidden) if output_hidden_states else None
    )


def check_packing(config: DebertaV2Config) -> None:
    """Refuse configurations whose outputs would change when documents share a row.

    Raises:
        ValueError: absolute positions (`position_biased_input`) or a convolution across slots
        (`conv_kernel_size`).
    """
    for name, effect in (
        ("position_biased_input", "adds absolute positions, which restart in no packed document"),
        ("conv_kernel_size", "mixes neighbouring slots of two documents"),
    ):
        if value := getattr(config, name, None):
            raise ValueError(
                f"document_ids were given and {name} is {value}, which {effect}: give one document a row, "
                f"or use a model without {name}"
            )


def build_masks(
    given: Tensor, attention_mask: Tensor | None, document_ids: Tensor | None
) -> tuple[Tensor, Tensor]:
    """The mask [B, L] of the embedding and that of the encoder, [B, L] or block-diagonal [B, L, L].

    `DebertaV2Model` takes no 3-D mask, for its embedding multiplies by the mask; its encoder does.
    """
    if attention_mask is None:
        attention_mask = torch.ones(given.shape[:2], dtype=torch.long, device=given.device)
    if document_ids is None:
        return attention_mask, attention_mask
    owner_BL = document_ids * attention_mask.to(document_ids.dtype)
    # Padding attends to padding: no slot reads it, and kernels that give NaN where all is masked stay finite.
    return owner_BL > 0, owner_BL[:, :, None] == owner_BL[:, None, :]
