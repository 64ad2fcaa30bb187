"""CANINE with a masked-character head over the code points of the corpus.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch, V = 1 + code points in the table.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import CanineConfig, CanineModel
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.models.canine.modeling_canine import CaninePreTrainedModel
from transformers.utils.generic import can_return_tuple

from modeling.canine_layers import adapt_layers, count_read_slots, encode_queries
from modeling.heads import (
    IGNORED_LABEL,
    MaskedLMOutput,
    check_labels,
    find_targets,
    score_hidden,
    score_targets,
)
from modeling.layers import arrange_queries

PAD_CODE_POINT = 0
CLS_CODE_POINT = 0xE000
SEP_CODE_POINT = 0xE001
MASK_CODE_POINT = 0xE003
NUM_CODE_POINTS = 0x110000
OTHER_CLASS = 0
"""Class of every character that the table lacks."""


def row_slots(
    num_characters: int,
    *,
    downsampling_rate: int = 4,
    upsampling_kernel_size: int = 4,
    local_transformer_stride: int = 128,
) -> int:
    """Least row length at which CANINE's output no longer depends on the padding after the characters.

    `num_characters` counts the slots in use, [CLS] and [SEP] included. The convolution back to characters
    looks 2 slots past the last one, and the last block of 4 slots is dropped on the way to molecules: a
    shorter row is off by 3e-4 to 1.6. Where those 2 slots begin a fully padded window of the local attention
    (127 or 128 characters), that window must be whole, for masked slots share their attention over all of it.
    """
    num_ahead = upsampling_kernel_size - 1 - (upsampling_kernel_size - 1) // 2
    last_slot = num_characters + num_ahead - 1
    slots = (last_slot // downsampling_rate + 2) * downsampling_rate
    last_window = last_slot // local_transformer_stride
    if num_characters and last_window > (num_characters - 1) // local_transformer_stride:
        slots = max(slots, (last_window + 1) * local_transformer_stride)
    return slots


class CharacterHead(nn.Module):
    """Scores [..., V] of hidden states [..., D]: dense layer, activation, norm, output layer."""

    def __init__(self, config: CanineConfig, num_classes: int):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.decoder = nn.Linear(config.hidden_size, num_classes)

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Logits [..., V]."""
        return self.decoder(self.LayerNorm(self.activation(self.dense(hidden_D))))


class CanineForMaskedLM(CaninePreTrainedModel):
    """CANINE encoder and a head over `config.head_code_points`.

    Class i + 1 is the code point `head_code_points[i]`, class 0 every other character. The encoder has no
    pooler, which would get no gradient.

    `sparse_last_layer`, off at first, makes a batch with labels compute what its targets read and no more
    (see `modeling.canine_layers`): the same loss and gradients up to rounding.

    Raises:
        ValueError: no table of code points, or one that is not strictly ascending.
    """

    sparse_last_layer: bool = False
    loss_chunk: int | None = None
    """Targets whose logits exist at a time (see `modeling.heads.score_targets`); None: all of a batch."""
    _compiled_score: Callable[..., MaskedLMOutput] | None = None

    def __init__(self, config: CanineConfig, head_code_points: Sequence[int] | None = None):
        if head_code_points is not None:
            config.head_code_points = list(head_code_points)
        super().__init__(config)
        table = check_code_points(getattr(config, "head_code_points", None))
        self.canine = CanineModel(config, add_pooling_layer=False)
        adapt_layers(self.canine)
        self.head = CharacterHead(config, 1 + len(table))
        # Not persistent: the table's one home is the config.
        self.register_buffer("code_points", torch.tensor(table), persistent=False)
        self.post_init()

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        # from_pretrained builds on the meta device, where a buffer that is in no file comes out as noise.
        if module is self:
            init.copy_(self.code_points, torch.tensor(self.config.head_code_points))

    @can_return_tuple
    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        token_type_ids: Tensor | None = None,
        labels: Tensor | None = None,
        **options: Any,
    ) -> MaskedLMOutput:
        """Logits [B, L, V] without labels; with them loss, counts and, it may be, logits [K, V].

        Those are given in eval mode without `loss_chunk`.

        All tensors are [B, L]; `labels` are code points, or -100. Rows shorter than `row_slots` asks for are
        padded here, so any length gives the right output, for the slots that were given. `options` go to
        `CanineModel`.

        Raises:
            ValueError: rows longer than `max_position_embeddings`, or labels of another shape.
        """
        num_slots = input_ids.shape[1]
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        if labels is not None:
            check_labels(labels, input_ids.shape)
        needed, has_stray = self._inspect(attention_mask, labels)
        missing = min(needed, self.config.max_position_embeddings) - num_slots
        padded_labels = labels
        if missing > 0:
            # After the last slot in use every slot is padding, so its position is the one it would have in a
            # long row.
            input_ids = functional.pad(
                input_ids, (0, missing), value=self.config.pad_token_id or PAD_CODE_POINT
            )
            attention_mask = functional.pad(attention_mask, (0, missing))
            token_type_ids = None if token_type_ids is None else functional.pad(token_type_ids, (0, missing))
            if labels is not None:
                padded_labels = functional.pad(labels, (0, missing), value=IGNORED_LABEL)
        is_whole = needed <= self.config.max_position_embeddings and not has_stray
        if padded_labels is not None and is_whole and self._is_sparse(options):
            return self._run_sparse(input_ids, attention_mask, token_type_ids, padded_labels)
        encoded = self.canine(
            input_ids,
            attention_mask=attention_mask,
            token_type_ids=token_type_ids,
            return_dict=True,
            **options,
        )
        hidden_BLD = encoded.last_hidden_state[:, :num_slots]
        if labels is None:
            output = MaskedLMOutput(logits=self.head(hidden_BLD))
        else:
            output = score_targets(hidden_BLD, self.map_labels(labels), self.head, **self._scoring())
        output.hidden_states, output.attentions = encoded.hidden_states, encoded.attentions
        return output

    def compile_rows(self, **options: Any) -> None:
        """Compile what a batch with labels runs, from code points to loss; needs `sparse_last_layer`.

        One graph for each length of row, whatever the number of rows and targets: give rows a handful of
        lengths, say 16, 24, 32, 48, 64, 96 and 128. `options` are those of torch.compile.
        """
        self._compiled_score = torch.compile(CanineForMaskedLM._score_rows, fullgraph=True, **options)

    def _run_sparse(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None, labels: Tensor
    ) -> MaskedLMOutput:
        if self._compiled_score is None:
            return self._score_rows(input_ids, attention_mask, token_type_ids, labels)
        for tensor in (input_ids, attention_mask, token_type_ids, labels):
            if tensor is not None:
                torch._dynamo.maybe_mark_dynamic(tensor, 0)
                torch._dynamo.mark_static(tensor, 1)
        return self._compiled_score(self, input_ids, attention_mask, token_type_ids, labels)

    def _score_rows(
        self, input_ids: Tensor, attention_mask: Tensor, token_type_ids: Tensor | None, labels: Tensor
    ) -> MaskedLMOutput:
        """Losses of rows that have the slots they need."""
        _, num_outputs = count_read_slots(self.config, input_ids.shape[1])
        targets = find_targets(self.map_labels(labels[:, :num_outputs]))
        queries = arrange_queries(targets.slots, input_ids.shape[0], num_outputs)
        hidden_KD = encode_queries(self.canine, input_ids, attention_mask, token_type_ids, queries)
        return score_hidden(hidden_KD, targets.labels, self.head, **self._scoring())

    def _scoring(self) -> dict[str, Any]:
        is_whole = self.loss_chunk is None
        return {"keep_logits": is_whole and not self.training, "chunk": self.loss_chunk}

    def _is_sparse(self, options: Mapping[str, Any]) -> bool:
        """Not where more than the targets is asked for, or other input than code points is given."""
        config = self.config
        asked = ("output_hidden_states", "output_attentions")
        wants_all = any(
            getattr(config, name) if options.get(name) is None else options[name] for name in asked
        )
        is_plain = not any(value is not None for name, value in options.items() if name not in asked)
        return self.sparse_last_layer and is_plain and not wants_all and config.num_hidden_layers > 0

    def map_labels(self, labels: Tensor) -> Tensor:
        """Classes of code points, for any integer; -100 stays what it is."""
        table_V = self.code_points
        rank = torch.searchsorted(table_V, labels.long().contiguous()).clamp_(max=len(table_V) - 1)
        classes = torch.where(table_V[rank] == labels, rank + 1, OTHER_CLASS)
        return torch.where(labels == IGNORED_LABEL, IGNORED_LABEL, classes)

    def grow_code_points(self, code_points: Sequence[int]) -> list[int]:
        """Add classes for code points that the table lacks, each starting from the class of other characters.

        Returns:
            The code points added, ascending.
        """
        old = self.code_points.tolist()
        added = sorted(set(code_points) - set(old))
        if added:
            table = check_code_points(sorted({*old, *added}))
            row_of = {code_point: row for row, code_point in enumerate(old, start=1)}
            rows = [OTHER_CLASS, *(row_of.get(code_point, OTHER_CLASS) for code_point in table)]
            decoder = self.head.decoder
            decoder.weight = nn.Parameter(decoder.weight.detach()[rows])
            decoder.bias = nn.Parameter(decoder.bias.detach()[rows])
            decoder.out_features = len(rows)
            self.code_points = torch.tensor(table, device=self.code_points.device)
            self.config.head_code_points = table
        return added

    def _inspect(self, mask_BL: Tensor, labels_BL: Tensor | None) -> tuple[int, bool]:
        """Longest row that a row of the batch needs, and whether a label lies behind the slots in use.

        Rows of the same length cost nothing more. One transfer from the device.
        """
        config, num_slots = self.config, mask_BL.shape[1]
        if num_slots > config.max_position_embeddings:
            raise ValueError(
                f"rows have {num_slots} slots and the model {config.max_position_embeddings} positions: "
                "cut the rows"
            )
        ends_L = torch.arange(1, num_slots + 1, device=mask_BL.device)
        found = (mask_BL.bool() * ends_L).amax(1)
        if labels_BL is not None:
            has_stray = ((labels_BL != IGNORED_LABEL) * ends_L).amax(1).gt(found).any()
            found = torch.cat([found, has_stray[None].long()])
        *lengths, flag = found.tolist() if labels_BL is not None else [*found.tolist(), 0]
        needed = max(
            row_slots(
                length,
                downsampling_rate=config.downsampling_rate,
                upsampling_kernel_size=config.upsampling_kernel_size,
                local_transformer_stride=config.local_transformer_stride,
            )
            for length in set(lengths)
        )
        return needed, bool(flag)


def check_code_points(table: object) -> list[int]:
    """The table of a head, if it is one.

    Raises:
        ValueError: it is missing, empty, not strictly ascending, or holds more than Unicode does.
    """
    is_table = (
        isinstance(table, (list, tuple)) and len(table) > 0 and all(type(point) is int for point in table)
    )
    if not is_table:
        raise ValueError(
            f"head_code_points is {table!r}: give the code points of the corpus as a list of integers, "
            "for example head_code_points=sorted(set(map(ord, text)))"
        )
    points = list(table)  # pyright: ignore[reportArgumentType]
    if points != sorted(set(points)) or points[0] < 0 or points[-1] >= NUM_CODE_POINTS:
        raise ValueError(
            f"head_code_points must be strictly ascending and within 0..{NUM_CODE_POINTS - 1:#x}, and begins "
            f"with {points[:5]} and ends with {points[-5:]}: sort it and drop what occurs twice"
        )
    return points
