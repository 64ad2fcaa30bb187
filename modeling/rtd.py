"""Replaced-token detection: a generator fills hidden pieces, a discriminator finds those that it got wrong.

ELECTRA (Clark et al. 2020) with the gradient-disentangled embedding sharing of DeBERTa-v3 (He et al. 2021,
arXiv:2111.09543): the discriminator's embedding is that of the generator, without its gradient, plus a
difference of its own that starts at zero. Ours differs in that neither special pieces nor padding are judged.

Shapes: B rows, L slots of a row, D hidden size, K targets of the batch, N pieces that are judged.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import DebertaV2Config, DebertaV2Model
from transformers.activations import ACT2FN
from transformers.models.deberta_v2.modeling_deberta_v2 import DebertaV2PreTrainedModel

from modeling.deberta import DebertaForMaskedLM
from modeling.draws import draw_classes, hash_targets, mix_bits
from modeling.encoding import DebertaEncoding
from modeling.heads import IGNORED_LABEL, MaskedLMOutput, find_targets

NUM_SCORE_BINS = 2**16
_SCORE_LIMIT = 16.0


@dataclass
class RtdOutput(MaskedLMOutput):
    """What both parts give for a batch: `loss`, `loss_sum` and so on are the generator's."""

    discriminator_loss_sum: Tensor | None = None
    """Sum over the judged pieces, fp32 (fp64 for a model in fp64)."""
    num_positions: Tensor | None = None
    """Pieces that were judged."""
    num_replaced: Tensor | None = None
    score_counts: Tensor | None = None
    """In eval mode int64 [2, bins]: of original and of replaced pieces, how many have a logit in each of
    `NUM_SCORE_BINS` bins from -16 to 16. Counts add up to the same on any number of ranks."""


class ReplacedHead(nn.Module):
    """One logit a piece, above 0 for "replaced": dense, activation, norm, output."""

    def __init__(self, config: DebertaV2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)
        self.activation = ACT2FN[config.hidden_act]
        self.LayerNorm = nn.LayerNorm(config.hidden_size, config.layer_norm_eps)
        self.classifier = nn.Linear(config.hidden_size, 1)

    def forward(self, hidden_D: Tensor) -> Tensor:
        """Logits [...] of hidden states [..., D]."""
        return self.classifier(self.LayerNorm(self.activation(self.dense(hidden_D)))).squeeze(-1)


class DebertaDiscriminator(DebertaEncoding, DebertaV2PreTrainedModel):
    """A DeBERTa encoder that tells replaced pieces from original ones.

    Within `RtdModel` its word embedding holds the difference to that of the generator.
    """

    def __init__(self, config: DebertaV2Config):
        super().__init__(config)
        self.deberta = DebertaV2Model(config)
        self.replaced_head = ReplacedHead(config)
        self.post_init()
        self.adapt_encoder()

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        document_ids: Tensor | None = None,
        inputs_embeds: Tensor | None = None,
    ) -> Tensor:
        """Logits [B, L] of pieces [B, L], or of their embeddings [B, L, D]."""
        options = {} if inputs_embeds is None else {"inputs_embeds": inputs_embeds}
        encoded = self.encode(input_ids, attention_mask, document_ids, options=options)
        return self.replaced_head(encoded.last_hidden_state)

    def save_pretrained(self, save_directory: str | PathLike[str], *args: Any, **kwargs: Any) -> None:
        """Hugging Face folder whose encoder loads with `AutoModel`; the head's weights lie beside it."""
        super().save_pretrained(save_directory, *args, **kwargs)
        self.config.architectures = ["DebertaV2Model"]
        self.config.save_pretrained(save_directory)


class RtdModel(nn.Module):
    """Generator and discriminator, trained together on batches that hide pieces."""

    special_ids: Tensor

    def __init__(
        self,
        generator: DebertaForMaskedLM,
        discriminator: DebertaDiscriminator,
        *,
        special_pieces: Sequence[int],
        num_pieces: int,
        temperature: float = 1.0,
        seed: int = 0,
    ):
        """Join two models; the discriminator's word embedding is taken for the difference.

        Args:
            generator: fills the hidden pieces.
            discriminator: of the same embedding width and vocabulary.
            special_pieces: neither judged nor ever put in.
            num_pieces: of the tokenizer; the spare rows of the embedding above it are never put in.
            temperature: of the draws, above 1 for more surprising ones.
            seed: of the draws.

        Raises:
            ValueError: the two have word embeddings of other shapes.
        """
        super().__init__()
        self.generator, self.discriminator = generator, discriminator
        shapes = [
            tuple(part.deberta.embeddings.word_embeddings.weight.shape) for part in (generator, discriminator)
        ]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the generator embeds {shapes[0]} and the discriminator {shapes[1]} (pieces, width): they "
                "share the embedding, give both the same"
            )
        generator.keeps_logits = generator.sparse_last_layer = True
        self.num_pieces, self.temperature, self.seed = num_pieces, temperature, seed
        self.register_buffer("special_ids", torch.tensor(sorted(special_pieces)), persistent=False)

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, labels: Tensor, document_ids: Tensor | None = None
    ) -> RtdOutput:
        """Losses and counts of both parts on a batch that hides pieces, as `DebertaForMaskedLM` takes it."""
        shown = {"attention_mask": attention_mask, "document_ids": document_ids}
        guessed = self.generator(input_ids=input_ids, labels=labels, **shown)
        filled_BL, is_replaced_BL = self._fill(input_ids, attention_mask, labels, guessed.logits)
        embeddings = self.generator.get_input_embeddings()
        with torch.no_grad():
            shared_BLD = embeddings(filled_BL)
        embedded_BLD = shared_BLD + self.discriminator.get_input_embeddings()(filled_BL)
        logits_BL = self.discriminator(inputs_embeds=embedded_BLD, **shown)
        is_judged_BL = find_positions(input_ids, attention_mask, labels, self.special_ids)
        scores_N = logits_BL[is_judged_BL]
        scores_N = scores_N if scores_N.dtype == torch.float64 else scores_N.float()
        replaced_N = is_replaced_BL[is_judged_BL]
        truth_N = replaced_N.to(scores_N.dtype)
        loss_sum = functional.binary_cross_entropy_with_logits(scores_N, truth_N, reduction="sum")
        return RtdOutput(
            loss=guessed.loss,
            loss_sum=guessed.loss_sum,
            num_targets=guessed.num_targets,
            num_correct=guessed.num_correct,
            discriminator_loss_sum=loss_sum,
            num_positions=is_judged_BL.sum(),
            num_replaced=replaced_N.sum(),
            score_counts=None if self.training else count_scores(scores_N, replaced_N),
        )

    @torch.no_grad()
    def _fill(
        self, input_ids_BL: Tensor, attention_mask_BL: Tensor, labels_BL: Tensor, logits_KV: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Rows with a draw of the generator at each target, and where that is not the original piece."""
        targets = find_targets(labels_BL)
        keys_K = hash_targets(input_ids_BL, labels_BL, attention_mask_BL > 0, targets.slots)
        is_drawn_V = torch.arange(logits_KV.shape[1], device=logits_KV.device) < self.num_pieces
        is_drawn_V[self.special_ids] = False
        seed = int(mix_bits(torch.tensor(self.seed)))
        drawn_K = draw_classes(logits_KV, is_drawn_V, keys_K + seed, self.temperature)
        filled = input_ids_BL.flatten().index_copy(0, targets.slots, drawn_K)
        is_replaced = torch.zeros_like(filled, dtype=torch.bool)
        is_replaced = is_replaced.index_copy(0, targets.slots, drawn_K != targets.labels)
        return filled.view_as(input_ids_BL), is_replaced.view_as(input_ids_BL)

    def count_positions(self, batch: Mapping[str, Tensor]) -> int:
        """Pieces of a batch, on the CPU, that the discriminator judges."""
        special_ids = self.special_ids.to(batch["input_ids"].device)
        input_ids, attention_mask, labels = (batch[n] for n in ("input_ids", "attention_mask", "labels"))
        return int(find_positions(input_ids, attention_mask, labels, special_ids).sum())

    def gradient_checkpointing_enable(self, *args: Any, **kwargs: Any) -> None:
        """Of both parts."""
        self.generator.gradient_checkpointing_enable(*args, **kwargs)
        self.discriminator.gradient_checkpointing_enable(*args, **kwargs)

    def tie_weights(self) -> None:
        """Of both parts."""
        self.generator.tie_weights()
        self.discriminator.tie_weights()


def find_positions(
    input_ids_BL: Tensor, attention_mask_BL: Tensor, labels_BL: Tensor, special_ids: Tensor
) -> Tensor:
    """Which slots are judged, bool [B, L]: pieces that are not special, hidden ones included."""
    is_ordinary_BL = ~torch.isin(input_ids_BL, special_ids)
    return (attention_mask_BL > 0) & (is_ordinary_BL | (labels_BL != IGNORED_LABEL))


def count_scores(scores_N: Tensor, replaced_N: Tensor) -> Tensor:
    """How many original and replaced pieces have a logit in each bin; int64 [2, bins]."""
    bins_N = (scores_N.double() + _SCORE_LIMIT) * (NUM_SCORE_BINS / (2 * _SCORE_LIMIT))
    bins_N = bins_N.long().clamp(0, NUM_SCORE_BINS - 1) + replaced_N.long() * NUM_SCORE_BINS
    return torch.bincount(bins_N, minlength=2 * NUM_SCORE_BINS).view(2, NUM_SCORE_BINS)
