"""What the heads on a DeBERTa encoder share: the choice of attention kernel, and exact packing of documents.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from torch import Tensor
from transformers.modeling_outputs import BaseModelOutput

from modeling.attention import Kernel, choose_kernel
from modeling.attention_flash import describe_rows
from modeling.layers import Queries, adapt_layers, build_masks, check_packing, list_attentions, run_layers


class DebertaEncoding:
    """A mixin for Hugging Face models that hold a `DebertaV2Model` as `deberta`."""

    attention_kernel: Kernel = "eager"
    if TYPE_CHECKING:
        deberta: Any
        config: Any

    def adapt_encoder(self) -> None:
        """Give the encoder our layers and ask no gradient of its idle parameters; for a constructor."""
        self.attention_kernel = "eager"
        adapt_layers(self.deberta.encoder)
        freeze_idle_parameters(self)

    def set_attention(
        self, wanted: str, *, compute_capability: tuple[int, int] | None = None, recompute: bool = False
    ) -> tuple[Kernel, str]:
        """Choose the attention kernel for the device that the model is on; gives its name and the reason.

        Args:
            wanted: `eager`, `fast`, `flash` or `auto`.
            compute_capability: of the GPU, asked of it where it is not given.
            recompute: see `SelfAttention.recompute`.

        Raises:
            ValueError: no such kernel, or one that the device or the model cannot use.
            ModuleNotFoundError: `flash` without its package.
        """
        attentions = list_attentions(self.deberta.encoder)
        name, reason = choose_kernel(
            wanted, self.deberta.device, compute_capability, head_size=attentions[0].attention_head_size
        )
        for attention in attentions:
            attention.kernel, attention.recompute, attention.flash_config = name, recompute, self.config
        self.attention_kernel = name
        return name, reason

    def encode(
        self,
        input_ids: Tensor | None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        *,
        embedding: Mapping[str, Any] | None = None,
        options: Mapping[str, Any] | None = None,
        queries: Queries | None = None,
    ) -> BaseModelOutput:
        """Hidden states [B, L, D] of rows that hold one document each or, with `document_ids`, several.

        With `queries` those [K, D] of the targets alone.
        """
        options = dict(options or {})
        inputs_embeds = options.pop("inputs_embeds", None)
        given = input_ids if input_ids is not None else inputs_embeds
        if given is None or (input_ids is not None and inputs_embeds is not None):
            raise ValueError("give input_ids or inputs_embeds, one of the two")
        mask_BL, mask = build_masks(given, attention_mask, document_ids)
        if document_ids is not None:
            check_packing(self.config)
        embedded_BLD = self.deberta.embeddings(
            input_ids=input_ids, inputs_embeds=inputs_embeds, mask=mask_BL, **(embedding or {})
        )
        encoder_options = {
            name: bool(wanted if wanted is not None else getattr(self.config, name))
            for name, wanted in (
                ("output_hidden_states", options.pop("output_hidden_states", None)),
                ("output_attentions", options.pop("output_attentions", None)),
            )
        }
        if options:
            raise TypeError(
                f"forward got {', '.join(sorted(options))}: the options are inputs_embeds, "
                "output_hidden_states and output_attentions"
            )
        encoder = self.deberta.encoder
        if encoder_options["output_attentions"] or (queries is None and self.attention_kernel == "eager"):
            return encoder(embedded_BLD, mask, return_dict=True, **encoder_options)
        rows = None
        if self.attention_kernel == "flash":
            rows = describe_rows(mask_BL, document_ids)
        wants_hidden = encoder_options["output_hidden_states"]
        return run_layers(
            encoder, embedded_BLD, mask, rows=rows, queries=queries, output_hidden_states=wants_hidden
        )


def freeze_idle_parameters(model: Any) -> None:
    """Ask no gradient of what the configuration leaves unused: DDP would wait for it for ever."""
    encoder, config = model.deberta.encoder, model.config
    if encoder.relative_attention and not config.pos_att_type:
        encoder.rel_embeddings.requires_grad_(False)
    if "layer_norm" in encoder.norm_rel_ebd and not (encoder.relative_attention and config.pos_att_type):
        encoder.LayerNorm.requires_grad_(False)
