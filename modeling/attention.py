"""DeBERTa's disentangled attention behind one signature, with a choice of kernels.

`eager` is Hugging Face's own code and the reference. `fast` is exact and portable: on a CPU the operator of
`attention_kernels`, elsewhere torch's fused attention, whose bias holds the position scores. `flash` is the
package disentangled-flash, on NVIDIA GPUs from compute capability 8.0. The sparse form, for the last layer,
has queries at the targets only and one implementation for every kernel.

Shapes: B rows of the batch, L slots of a row, T targets of the row that has most, H heads, E size of a head,
D = H * E, R rows of a position table.
"""

from typing import Any, Literal, NamedTuple, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers.models.deberta_v2.modeling_deberta_v2 import DisentangledSelfAttention

from modeling.attention_flash import FLASH_PACKAGE, FlashRows, attend_flash, find_flash_obstacle
from modeling.attention_kernels import disentangled_attention
from modeling.attention_positions import Positions

Kernel = Literal["eager", "fast", "flash"]
OPERATOR_DEVICES = ("cpu",)
"""Where the operator computes; other devices have a fused attention that gives its bias a gradient."""
KERNELS: tuple[str, ...] = get_args(Kernel)


class Tables(NamedTuple):
    """Position tables [R, D]: what queries meet (`key`) and what keys meet (`query`) at each distance."""

    key: Tensor | None
    query: Tensor | None


class SelfAttention(DisentangledSelfAttention):
    """Hugging Face's self-attention, with a kernel to choose and a sparse form.

    Made by `adapt_attention` of one that exists.
    """

    kernel: str = "eager"
    score_scale: float
    """What every score is divided by, rounded to fp32 as Hugging Face does, in double precision too."""
    flash_backend: str = "triton"
    flash_config: Any = None
    recompute: bool = False
    """Keep no probabilities for the backward of the `fast` kernel on a CPU, but compute them again:
    B * H * L * L numbers a layer less, for 2 % more FLOPs of a step."""

    def forward(
        self,
        hidden_states: Tensor,
        attention_mask: Tensor | FlashRows,
        output_attentions: bool = False,
        query_states: Tensor | None = None,
        relative_pos: Tensor | None = None,
        rel_embeddings: Tensor | None = None,
        positions: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """Contexts [B, L, D], and the probabilities where asked for, which only the eager kernel has.

        With `positions` [B, T] the queries are `query_states` [B, T, D], which stand at these slots, and the
        contexts are [B, T, D]. The mask is [B, 1, L, L], or what the `flash` kernel takes in its place.
        """
        if isinstance(attention_mask, FlashRows):
            return attend_flash(self, hidden_states, attention_mask, rel_embeddings), None
        if positions is not None:
            assert query_states is not None
            return self._attend_at(
                query_states, hidden_states, attention_mask, rel_embeddings, positions
            ), None
        if self.kernel != "fast" or output_attentions or query_states is not None:
            return super().forward(
                hidden_states, attention_mask, output_attentions, query_states, relative_pos, rel_embeddings
            )
        projections = self.query_proj, self.key_proj, self.value_proj
        query, key, value = (project(hidden_states) for project in projections)
        tables = self.project_tables(rel_embeddings)
        if hidden_states.device.type not in OPERATOR_DEVICES:
            return self._attend_fused((query, key, value), tables, attention_mask), None
        dropout = self._dropout_rate()
        # Drawn on the CPU, so that checkpointing, which restores the generator, draws it again.
        seed = torch.randint(2**62, (1,)) if dropout > 0 else None
        settings = [self.num_attention_heads, *self._positions(), self.score_scale, dropout, self.recompute]
        allowed = attention_mask.bool().squeeze(1)
        return disentangled_attention(query, key, value, *tables, allowed, seed, settings)[0], None

    def project_tables(self, rel_embeddings: Tensor | None) -> Tables:
        """Position tables of this layer, once for the batch."""
        if not self.relative_attention or rel_embeddings is None:
            return Tables(None, None)
        kinds = self.pos_att_type
        embeddings_RD = self.pos_dropout(rel_embeddings)[: self.pos_ebd_size * 2]
        if self.share_att_key:
            projections = self.key_proj, self.query_proj
        else:
            projections = getattr(self, "pos_key_proj", None), getattr(self, "pos_query_proj", None)
        return Tables(
            *(
                project(embeddings_RD) if kind in kinds and project is not None else None
                for kind, project in zip(("c2p", "p2c"), projections, strict=True)
            )
        )

    def _attend_fused(self, states: tuple[Tensor, ...], tables: Tables, attention_mask: Tensor) -> Tensor:
        query, key, value = (split_heads(tensor, self.num_attention_heads) for tensor in states)
        query = query / self.score_scale
        bias = torch.zeros((), dtype=query.dtype, device=query.device)
        for term in self._score_positions(query, key, tables):
            bias = bias + term
        least = torch.finfo(query.dtype).min
        bias = bias.masked_fill(~attention_mask.bool(), least)
        contexts = functional.scaled_dot_product_attention(
            query, key, value, attn_mask=bias, dropout_p=self._dropout_rate(), scale=1.0
        )
        return contexts.transpose(1, 2).flatten(2)

    def _score_positions(self, query: Tensor, key: Tensor, tables: Tables) -> list[Tensor]:
        """Position scores [B, H, L, L], read along the diagonals of products with every distance."""
        terms: list[Tensor] = []
        if tables == (None, None):
            return terms
        wide = self._widen(tables, query.shape[2], query.device)
        if wide.key is not None:
            products = multiply_table(query, split_heads(wide.key.flip(0), self.num_attention_heads))
            terms.append(read_diagonals(products))
        if wide.query is not None:
            table = split_heads(wide.query / self.score_scale, self.num_attention_heads)
            terms.append(read_diagonals(multiply_table(key, table)).transpose(-1, -2))
        return terms

    def _widen(self, tables: Tables, length: int, device: torch.device) -> Tables:
        """A row [2L - 1, D] for each distance, ascending, instead of each bucket.

        The product with 0s and 1s is exact. The gradient of an index_select would be an atomic sum on a GPU.
        """
        rows = self._positions().rows(length, device)
        chosen = functional.one_hot(rows, self.pos_ebd_size * 2)
        return Tables(*(None if table is None else chosen.to(table.dtype) @ table for table in tables))

    def _attend_at(
        self,
        query_states: Tensor,
        hidden_states: Tensor,
        attention_mask: Tensor,
        rel_embeddings: Tensor | None,
        positions_BT: Tensor,
    ) -> Tensor:
        heads, length = self.num_attention_heads, hidden_states.shape[1]
        query = split_heads(self.query_proj(query_states), heads) / self.score_scale
        key, value = (
            split_heads(project(hidden_states), heads) for project in (self.key_proj, self.value_proj)
        )
        scores_BHTL = query @ key.transpose(-1, -2)
        tables = self.project_tables(rel_embeddings)
        if tables != (None, None):
            slots = torch.arange(length, device=positions_BT.device)
            index_BTL = positions_BT[:, :, None] - slots + (length - 1)
            if hidden_states.device.type in OPERATOR_DEVICES:
                index_BTL = self._positions().rows(length)[index_BTL]
            else:
                # No slot twice for a query: the gradient of the gather adds nothing up, in whatever order.
                tables = self._widen(tables, length, hidden_states.device)
            scores_BHTL = add_scores_at(scores_BHTL, (query, key / self.score_scale), tables, index_BTL)
        rows_B1 = torch.arange(positions_BT.shape[0], device=positions_BT.device)[:, None]
        allowed_BTL = attention_mask.bool()[:, 0][rows_B1, positions_BT]
        scores_BHTL = scores_BHTL.masked_fill(~allowed_BTL[:, None], torch.finfo(query.dtype).min)
        probabilities = self.dropout(scores_BHTL.softmax(-1).to(value.dtype))
        return (probabilities @ value).transpose(1, 2).flatten(2)

    def _positions(self) -> Positions:
        if not self.relative_attention:
            return Positions(-1, 1)
        return Positions(self.position_buckets, self.max_relative_positions)

    def _dropout_rate(self) -> float:
        return self.dropout.p if self.training else 0.0


def adapt_attention(attention: DisentangledSelfAttention) -> None:
    """Give an attention our class; its parameters and names stay."""
    attention.__class__ = SelfAttention
    num_terms = 1 + sum(kind in attention.pos_att_type for kind in ("c2p", "p2c"))
    vars(attention)["score_scale"] = float(np.sqrt(np.float32(attention.attention_head_size * num_terms)))


def split_heads(states: Tensor, num_heads: int) -> Tensor:
    """[..., L, D] as [..., H, L, E]."""
    return states.unflatten(-1, (num_heads, -1)).transpose(-2, -3)


def multiply_table(states_BHLE: Tensor, table_HRE: Tensor) -> Tensor:
    """Products [B, H, L, R] with a table that all rows of the batch share, without a copy of it for each."""
    num_rows = states_BHLE.shape[0]
    folded = states_BHLE.transpose(0, 1).flatten(1, 2)
    return torch.bmm(folded, table_HRE.transpose(1, 2)).unflatten(1, (num_rows, -1)).transpose(0, 1)


def read_diagonals(products: Tensor) -> Tensor:
    """[B, H, L, L] of [B, H, L, 2L - 1]: element (i, j) is column j - i + L - 1, by views alone."""
    length = products.shape[2]
    if length == 1:
        return products
    flat = products.flatten(2)[..., length - 1 : length - 1 + length * (2 * length - 2)]
    return flat.unflatten(-1, (length, 2 * length - 2))[..., :length]


def add_scores_at(
    scores_BHTL: Tensor, states: tuple[Tensor, Tensor], tables: Tables, index_BTL: Tensor
) -> Tensor:
    """Scores and the position scores of queries that stand anywhere; `index` has the rows of the tables."""
    query_BHTE, key_BHLE = states
    num_heads = query_BHTE.shape[1]
    index_BHTL = index_BTL[:, None].expand(-1, num_heads, -1, -1)
    if tables.key is not None:
        products = multiply_table(query_BHTE, split_heads(tables.key, num_heads))
        scores_BHTL = scores_BHTL + products.gather(-1, index_BHTL)
    if tables.query is not None:
        products = multiply_table(key_BHLE, split_heads(tables.query, num_heads))
        scores_BHTL = scores_BHTL + products.gather(-1, index_BHTL.transpose(-1, -2)).transpose(-1, -2)
    return scores_BHTL


def choose_kernel(
    wanted: str,
    device: torch.device | str,
    compute_capability: tuple[int, int] | None = None,
    *,
    head_size: int | None = None,
) -> tuple[Kernel, str]:
    """The kernel for a device and the reason; `wanted` is a kernel or `auto`.

    The capability is asked of the device where it is not given; `head_size` is that of the model, if known.

    Raises:
        ValueError: no such kernel, or one that the device or the model cannot use.
        ModuleNotFoundError: `flash` without its package.
    """
    if wanted not in (*KERNELS, "auto"):
        raise ValueError(f"attention kernel {wanted!r} is unknown: give auto, {', '.join(KERNELS)}")
    if wanted == "eager":
        return "eager", "asked for: Hugging Face's own code, the reference"
    if wanted == "fast":
        return "fast", "asked for: exact, on any device"
    device = torch.device(device)
    if compute_capability is None and device.type == "cuda":
        compute_capability = torch.cuda.get_device_capability(device)
    obstacle = find_flash_obstacle(device, compute_capability, head_size)
    if obstacle is None:
        return "flash", f"{FLASH_PACKAGE} runs on this GPU"
    if wanted == "auto":
        return "fast", f"{FLASH_PACKAGE} is no choice: {obstacle}"
    message = f"attention kernel 'flash' cannot be used: {obstacle}; give auto or fast"
    raise ModuleNotFoundError(message) if "pip install" in obstacle else ValueError(message)
