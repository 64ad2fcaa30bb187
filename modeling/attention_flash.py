"""The optional attention of the package disentangled-flash, for NVIDIA GPUs from compute capability 8.0.

Its modules are given the projections of ours, so that parameters and names stay; what it caches are the
position plans, which depend on the length alone. Its kernel has not been run by us, for lack of such a GPU;
its other backend, in plain torch, has.

Shapes: B rows of the batch, L slots of a row, D hidden size, P documents of the batch, padding included.
"""

import importlib
import importlib.util
from typing import Any, NamedTuple

import torch
from torch import Tensor

FLASH_PACKAGE = "disentangled-flash"
FLASH_MODULE = "disentangled_flash"
FLASH_VERSION = "1.1.1"
FLASH_CAPABILITY = (8, 0)
FLASH_HEAD_SIZES = (32, 64, 128)
SHARED_MODULES = ("query_proj", "key_proj", "value_proj", "pos_key_proj", "pos_query_proj", "pos_dropout")


class FlashRows(NamedTuple):
    """What the kernel wants to know of a batch, in place of a mask [B, 1, L, L]."""

    mask: Tensor
    """bool [B, L], which slots hold text; used where each row holds one document."""
    packing: tuple[Tensor, Any] | None = None
    """Bounds of the documents in all rows laid end to end (int32 [P + 1]), and the package's description."""


def find_flash_obstacle(
    device: torch.device, compute_capability: tuple[int, int] | None, head_size: int | None
) -> str | None:
    """Why the kernel cannot be used there, or None."""
    if device.type != "cuda":
        return f"it needs an NVIDIA GPU and the device is {device.type}"
    if compute_capability is None or tuple(compute_capability) < FLASH_CAPABILITY:
        found = "unknown" if compute_capability is None else ".".join(map(str, compute_capability))
        return (
            f"the compute capability is {found}, and below {FLASH_CAPABILITY[0]}.0 Triton multiplies without "
            "tensor cores"
        )
    if head_size is not None and head_size not in FLASH_HEAD_SIZES:
        return f"heads have size {head_size} and it knows {', '.join(map(str, FLASH_HEAD_SIZES))}"
    if importlib.util.find_spec(FLASH_MODULE) is None:
        return f"it is not installed (pip install {FLASH_PACKAGE}=={FLASH_VERSION})"
    return None


def describe_rows(mask_BL: Tensor, document_ids: Tensor | None) -> FlashRows:
    """Rows for the kernel; `document_ids` [B, L] is 0 at padding, None where rows hold one document each."""
    if document_ids is None:
        return FlashRows(mask_BL.bool().contiguous())
    owner_BL = document_ids * mask_BL.to(document_ids.dtype)
    starts_BL = torch.ones_like(owner_BL, dtype=torch.bool)
    starts_BL[:, 1:] = owner_BL[:, 1:] != owner_BL[:, :-1]
    starts_P = starts_BL.flatten().nonzero().squeeze(1)
    bounds = torch.cat([starts_P, starts_P.new_tensor([owner_BL.numel()])]).to(torch.int32)
    packed = importlib.import_module(f"{FLASH_MODULE}.packed")
    return FlashRows(mask_BL.bool(), (bounds, packed.validate_cu_seqlens(bounds, owner_BL.numel())))


def attend_flash(
    attention: Any, hidden_BLD: Tensor, rows: FlashRows, rel_embeddings: Tensor | None
) -> Tensor:
    """Contexts [B, L, D] of one of our attention modules, by the package's."""
    kernel = make_kernel(attention)
    kernel.train(attention.training)
    if rows.packing is None:
        return kernel(hidden_BLD, rows.mask, rel_embeddings=rel_embeddings)[0]
    bounds, description = rows.packing
    contexts = kernel.forward_packed(
        hidden_BLD.flatten(0, 1), bounds, rel_embeddings=rel_embeddings, packed_info=description
    )[0]
    return contexts.view(hidden_BLD.shape)


def make_kernel(attention: Any) -> Any:
    """The package's module around the parameters of ours, kept with ours but not as a part of it."""
    kept = vars(attention).get("flash_kernel")
    if kept is None:
        module, name = "training.attention", "TritonTrainingDisentangledSelfAttention"
        if attention.flash_backend == "torch":
            module, name = "_torch", "TorchTrainingDisentangledSelfAttention"
        kernel_class = getattr(importlib.import_module(f"{FLASH_MODULE}.{module}"), name)
        kernel = kernel_class(attention.flash_config)
        # A tuple, for a module that is set as an attribute would come up in the state dict.
        vars(attention)["flash_kernel"] = kept = (kernel,)
    kernel = kept[0]
    for name in SHARED_MODULES:
        if (shared := getattr(attention, name, None)) is not None and getattr(
            kernel, name, None
        ) is not shared:
            setattr(kernel, name, shared)
    return kernel
