"""torch.compile for both families, in one graph."""

from typing import Any

import torch

from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM

MAX_LENGTHS = 64


def compile_model(model: DebertaForMaskedLM | CanineForMaskedLM, **options: Any) -> Any:
    """The model as one compiled graph; `options` are those of torch.compile.

    The number of targets differs from batch to batch. Two switches of torch, which hold for the whole
    process, let it stay a symbol instead of breaking the graph; rows of another length are compiled anew, as
    often as a third one allows.

    A loss in chunks runs the head as often as the targets of a batch ask for, which no one graph does.

    Of a CANINE, which is given back itself, what a batch with labels runs is compiled (`compile_rows`).

    Raises:
        ValueError: the model has a `loss_chunk`.
    """
    if model.loss_chunk is not None:
        raise ValueError(
            f"loss_chunk is {model.loss_chunk}: a model in one graph takes the loss of all targets at once, "
            "set loss_chunk to None"
        )
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    torch._dynamo.config.capture_scalar_outputs = True
    # By itself 8, beyond which a whole graph is an error in the middle of a run.
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, MAX_LENGTHS)
    if isinstance(model, CanineForMaskedLM):
        model.compile_rows(**options)
        return model
    return torch.compile(model, fullgraph=True, **options)
