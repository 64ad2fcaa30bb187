"""New rows: while it is on, a model learns the rows of its new pieces and nothing else.

Shapes: V pieces, D width of the embedding.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn


def list_piece_parameters(model: Any) -> list[nn.Parameter]:
    """The parameters of a masked language model that have one row, or one number, for each piece.

    Embedding, output matrix and output bias, each once, however they are tied.
    """
    embedding = model.get_input_embeddings().weight
    output = model.get_output_embeddings()
    if output is None:  # DeBERTa-v3's head, whose output matrix is the embedding itself
        head = model.lm_predictions.lm_head
        found = [embedding, head.bias]
    else:
        found = [embedding, output.weight, output.bias]
    return list({id(each): each for each in found if each is not None}.values())


class NewRows:
    """Gradients of a model that are 0, while `is_on`, everywhere but in the rows of new pieces.

    They are made so as each parameter gets its gradient: before DDP or ZeRO share it, before it is added to
    that of earlier micro-batches, and before any norm is taken. What is left out is replaced by zeros and not
    multiplied by them, for inf * 0 is NaN. An optimizer that has seen no other gradient and does not decay
    weights then leaves every other number as it is, to the bit.
    """

    def __init__(self, model: Any, pieces: Sequence[int]):
        """Watch a model.

        Args:
            model: with its parameters as they will be trained.
            pieces: numbers of the new ones.

        Raises:
            ValueError: none, or one that the model lacks.
        """
        num_pieces = model.config.vocab_size
        if not len(pieces) or not all(0 <= piece < num_pieces for piece in pieces):
            raise ValueError(
                f"the new pieces are {list(pieces)[:5]}: give at least one, all below {num_pieces}"
            )
        self.is_on = False
        self.pieces = sorted(pieces)
        self._rows = torch.tensor(self.pieces)
        with_rows = {id(parameter) for parameter in list_piece_parameters(model)}
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_hook(self._keep_rows if id(parameter) in with_rows else self._keep_none)

    def _keep_rows(self, gradient: Tensor) -> Tensor:
        if not self.is_on:
            return gradient
        self._rows = self._rows.to(gradient.device)
        return torch.zeros_like(gradient).index_copy_(0, self._rows, gradient.index_select(0, self._rows))

    def _keep_none(self, gradient: Tensor) -> Tensor:
        return torch.zeros_like(gradient) if self.is_on else gradient
