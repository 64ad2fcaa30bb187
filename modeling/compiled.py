"""torch.compile for DeBERTa, in one graph."""

from typing import Any

import torch

from modeling.deberta import DebertaForMaskedLM


def compile_model(model: DebertaForMaskedLM, **options: Any) -> Any:
    """The model as one compiled graph; `options` are those of torch.compile.

    The number of targets differs from batch to batch. Two switches of torch, which hold for the whole
    process, let it stay a symbol instead of breaking the graph; rows of another length are compiled anew.
    """
    torch._dynamo.config.capture_dynamic_output_shape_ops = True
    torch._dynamo.config.capture_scalar_outputs = True
    return torch.compile(model, fullgraph=True, **options)
