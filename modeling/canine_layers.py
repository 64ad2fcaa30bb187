"""CANINE's encoder at the targets only: the hidden states of `CanineModel`, with less work.

Nothing is left out that an output at a target reads. Left out are: query, output and feed-forward of the last
layer at other slots; its keys and values behind the last slot in use, whose weight is 0; the last molecule,
which CANINE drops, and the slots that feed nothing else; the [CLS] molecule after its last use as a key.

Shapes: B rows, L slots of a row, S of them that are read, R = S less those that only the convolution back to
characters reads, M molecules of several slots each, D hidden size, H heads, K targets of the batch, T a
little more than the targets of the row that has most.
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CanineModel
from transformers.models.canine.modeling_canine import CanineLayer

from modeling.layers import Queries

ALL_SLOTS = slice(None)
BEHIND_CLS = slice(1, None)


class Layer(CanineLayer):
    """A layer that can give its output at some slots only. Made of one that exists."""

    def forward(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        hidden_states: Any,
        attention_mask: Tensor | None = None,
        output_attentions: bool | None = False,
        queries: Queries | slice | None = None,
    ) -> tuple[Any, ...]:
        """Hugging Face's output; for `queries` [K, D] of these alone, for a slice that of its slots.

        With either of them the mask is that of `shut_out`.
        """
        if queries is None:
            return super().forward(hidden_states, attention_mask, output_attentions)
        assert attention_mask is not None
        attention = self.attention
        if isinstance(queries, slice):
            chosen = hidden_states[:, queries]
            contexts = self._attend_slots(chosen, hidden_states, attention_mask)
        else:
            chosen = hidden_states.flatten(0, 1).index_select(0, queries.slots)
            query_KD = attention.self.query(chosen)
            num_rows, num_places = queries.positions.shape
            # Each place is written at most once, so the gradient is a plain selection.
            filled = query_KD.new_zeros(num_rows * num_places, query_KD.shape[1])
            filled = filled.index_copy(0, queries.places, query_KD)
            contexts_BTD = attend(
                attention.self, filled.view(num_rows, num_places, -1), hidden_states, attention_mask
            )
            contexts = contexts_BTD.flatten(0, 1).index_select(0, queries.places)
        return (self.feed_forward_chunk(attention.output(contexts, chosen)),)

    def _attend_slots(self, chosen: Tensor, hidden_BLD: Tensor, mask: Tensor) -> Tensor:
        attention = self.attention
        width = attention.attend_to_chunk_width if attention.local else hidden_BLD.shape[1]
        if hidden_BLD.shape[1] <= width:
            return attend(attention.self, attention.self.query(chosen), hidden_BLD, mask)
        # The fused attention keeps the logarithm of a sum, in which a window of padding alone loses how many
        # slots share it: its gradients would be off by that factor.
        windows = zip(chosen.split(width, 1), hidden_BLD.split(width, 1), mask.split(width, -1), strict=True)
        return torch.cat([attention.self(*window)[0] for window in windows], 1)


class UpsamplingConvolution(nn.Conv1d):
    """The convolution back to characters on molecules that are not repeated yet. Made of one that exists.

    The slots of a molecule share its state, so the taps of the kernel that fall on the same molecule are
    added before they are applied: 7 products a molecule instead of 16 with CANINE's 4 taps and 4 slots.
    """

    def forward(self, chars: Tensor, molecules_BMD: Tensor | None = None) -> Tensor:  # pyright: ignore[reportIncompatibleMethodOverride]
        """`Conv1d` of [B, 2 D, L], or [B, R, D] of characters [B, S, D] and molecules."""
        if molecules_BMD is None:
            return super().forward(chars)
        num_rows, num_slots, hidden_size = chars.shape
        num_molecules = molecules_BMD.shape[1]
        rate, num_taps = num_slots // num_molecules, self.kernel_size[0]
        num_before = (num_taps - 1) // 2
        num_read = num_slots + num_before - (num_taps - 1)
        weight_of_chars, weight_of_molecules = self.weight.split(hidden_size, 1)
        padded = functional.pad(chars.transpose(1, 2), (num_before, 0))
        out = functional.conv1d(padded, weight_of_chars, self.bias).transpose(1, 2)
        upsampled: Any = 0
        # (phase in the molecule - slots before + tap) // rate says how many molecules further a tap falls.
        for shift in range(-num_before // rate, (rate - 1 - num_before + num_taps - 1) // rate + 1):
            taps = {
                phase: [tap for tap in range(num_taps) if (phase - num_before + tap) // rate == shift]
                for phase in range(rate)
            }
            phases = [phase for phase in range(rate) if taps[phase]]
            weight = torch.cat([weight_of_molecules[:, :, taps[phase]].sum(-1) for phase in phases])
            products = functional.linear(_shift(molecules_BMD, shift), weight)
            products = products.view(num_rows, num_molecules, len(phases), -1)
            upsampled = upsampled + functional.pad(products, (0, 0, phases[0], rate - 1 - phases[-1]))
        return out + upsampled.flatten(1, 2)[:, :num_read]


def _shift(molecules_BMD: Tensor, shift: int) -> Tensor:
    """Each molecule replaced by the one `shift` further, 0 beyond both ends."""
    if shift == 0:
        return molecules_BMD
    return functional.pad(molecules_BMD, (0, 0, -shift, shift))


def adapt_layers(canine: CanineModel) -> None:
    """Give the layers of an encoder and its last convolution our classes; parameters and names stay."""
    for encoder in (canine.initial_char_encoder, canine.encoder, canine.final_char_encoder):
        for layer in encoder.layer:
            layer.__class__ = Layer
    canine.projection.conv.__class__ = UpsamplingConvolution


def attend(attention: Any, query_BTD: Tensor, source_BLD: Tensor, mask: Tensor) -> Tensor:
    """Contexts [B, T, D] of projected queries over all slots of the source."""
    heads = (attention.num_attention_heads, attention.attention_head_size)
    query, key, value = (
        states.unflatten(-1, heads).transpose(1, 2)
        for states in (query_BTD, attention.key(source_BLD), attention.value(source_BLD))
    )
    contexts_BHTD = functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask.to(query.dtype),
        dropout_p=attention.dropout.p if attention.training else 0.0,
    )
    return contexts_BHTD.transpose(1, 2).flatten(2)


def shut_out(mask_BL: Tensor, dtype: torch.dtype) -> Tensor:
    """What to add to scores [B, H, T, L]: 0 where the mask is 1, else a number that swallows every score.

    Where a row or window has no slot in use, all its slots then share the attention, as in transformers.
    """
    kind = mask_BL.device.type
    if torch.is_autocast_enabled(kind):
        dtype = torch.get_autocast_dtype(kind)
    # The least number of fp32 becomes -inf in bf16, and a row without a slot in use NaN.
    least = torch.finfo(torch.float16 if dtype == torch.float16 else torch.bfloat16).min
    return torch.zeros_like(mask_BL, dtype=dtype).masked_fill(mask_BL == 0, least)[:, None, None, :]


def count_read_slots(config: Any, num_slots: int) -> tuple[int, int]:
    """S and R of rows that are as long as their slots in use ask for."""
    num_read = (num_slots // config.downsampling_rate - 1) * config.downsampling_rate
    num_taps = config.upsampling_kernel_size
    return num_read, num_read + (num_taps - 1) // 2 - (num_taps - 1)


def encode_queries(
    canine: CanineModel, input_ids: Tensor, mask_BL: Tensor, token_type_ids: Tensor | None, queries: Queries
) -> Tensor:
    """Last hidden states [K, D] at `queries`, which are slots of rows of R.

    Rows must have the slots that `row_slots` asks for.
    """
    config: Any = canine.config
    num_slots, window = input_ids.shape[1], config.local_transformer_stride
    num_read, num_outputs = count_read_slots(config, num_slots)
    # A window of padding alone is read as a whole.
    num_first = num_read if num_read <= window else min(num_slots, -(-num_read // window) * window)
    types = None if token_type_ids is None else token_type_ids[:, :num_first]
    embedded_BLD = canine.char_embeddings(input_ids=input_ids[:, :num_first], token_type_ids=types)
    dtype = embedded_BLD.dtype
    added = shut_out(mask_BL, dtype)
    (first,) = canine.initial_char_encoder.layer[0](embedded_BLD, added[..., :num_first], queries=ALL_SLOTS)
    chars_BSD = first[:, :num_read]
    molecules = downsample(canine.chars_to_molecules, chars_BSD)
    shown = mask_BL[:, : num_read + config.downsampling_rate].unflatten(1, (-1, config.downsampling_rate))
    added_molecules = shut_out(shown.amax(-1), dtype)
    last = len(canine.encoder.layer) - 1
    for number, layer in enumerate(canine.encoder.layer):
        chosen = BEHIND_CLS if number == last else ALL_SLOTS
        (molecules,) = layer(molecules, added_molecules, queries=chosen)
    projection = canine.projection
    hidden_BRD = projection.activation(projection.conv(chars_BSD, molecules))
    hidden_BRD = projection.dropout(projection.LayerNorm(hidden_BRD))
    (hidden_KD,) = canine.final_char_encoder.layer[0](hidden_BRD, added[..., :num_outputs], queries=queries)
    return hidden_KD


def downsample(module: Any, chars_BSD: Tensor) -> Tensor:
    """[CLS] and M molecules, [B, 1 + M, D], none dropped."""
    molecules = module.activation(module.conv(chars_BSD.transpose(1, 2))).transpose(1, 2)
    return module.LayerNorm(torch.cat([chars_BSD[:, :1], molecules], 1))
