"""What a device does to a step, done to tensors without storage: autocast, and what it has fused.

Autocast has a list of operations for each device, and tensors on the meta device are under none, so the
list of CUDA is applied here. It is torch's (aten/src/ATen/autocast_mode.h), cut down to what encoders call.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

LOWER_PRECISION = frozenset(
    {
        "linear", "matmul", "rmatmul", "mm", "mv", "bmm", "addmm", "addmv", "addbmm", "baddbmm", "einsum",
        "chain_matmul", "conv1d", "conv2d", "conv3d", "conv_transpose1d", "prelu", "multi_dot", "vecdot",
        "scaled_dot_product_attention",
    }
)  # fmt: skip
"""Run in half precision."""
SINGLE_PRECISION = frozenset(
    {
        "layer_norm", "rms_norm", "group_norm", "softmax", "log_softmax", "logsumexp", "softplus", "nll_loss",
        "cross_entropy", "binary_cross_entropy_with_logits", "mse_loss", "l1_loss", "smooth_l1_loss",
        "kl_div", "cosine_similarity", "exp", "expm1", "log", "log2", "log10", "log1p", "pow", "rpow",
        "rsqrt", "reciprocal", "sum", "prod", "norm", "cumsum", "cumprod", "cdist", "dist", "acos", "asin",
        "cosh", "sinh", "tan",
    }
)  # fmt: skip
"""Run in fp32. cross_entropy is no operation of its own there; both that it consists of are."""
_MASK_ALIGNMENT = 8
"""Columns to which a bias of the fused attention is padded (sdp::preprocess_mask)."""


class DeviceRules(TorchFunctionMode):
    """Casts as CUDA's autocast does while it is on, and calls what the device has fused.

    Attributes:
        dtype: of autocast; None: it is off throughout.
        device: `cuda` or `cpu`.
        report_cast: is given each half copy of a weight, to be told apart from activations.
    """

    def __init__(self, dtype: torch.dtype | None, *, device: str, report_cast: Callable[[Tensor], None]):
        super().__init__()
        self.dtype, self.device, self.report_cast = dtype, device, report_cast
        self._is_on = False
        self._copies: dict[int, tuple[Tensor, Tensor]] = {}

    @contextmanager
    def autocast(self) -> Iterator[None]:
        """On within; the copies of weights live until the end, as those of torch do.

        Nested ones, which checkpointing starts to compute a layer again, keep copies of their own.
        """
        before, self._is_on = (self._is_on, self._copies), self.dtype is not None
        self._copies = {}
        try:
            yield
        finally:
            self._is_on, self._copies = before

    @contextmanager
    def again(self) -> Iterator[None]:
        """On within a backward, for what checkpointing computes again: torch sets modes aside there."""
        with self, self.autocast():
            yield

    @property
    def is_autocast(self) -> bool:
        """Whether autocast is on at the moment."""
        return self._is_on

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", "").strip("_")
        if self._is_on and name in LOWER_PRECISION:
            args, kwargs = self._cast((args, kwargs), self.dtype)
        elif self._is_on and name in SINGLE_PRECISION:
            args, kwargs = self._cast((args, kwargs), torch.float32)
        if self.device == "cuda" and func is functional.dropout:
            return _drop_out(*args, **kwargs)
        if name == "scaled_dot_product_attention":
            found = (_attend_on_gpu if self.device == "cuda" else _attend_on_cpu)(*args, **kwargs)
            return func(*args, **kwargs) if found is None else found
        return func(*args, **kwargs)

    def _cast(self, value: Any, dtype: torch.dtype | None) -> Any:
        if isinstance(value, (tuple, list)):
            return type(value)(self._cast(item, dtype) for item in value)
        if isinstance(value, dict):
            return {key: self._cast(item, dtype) for key, item in value.items()}
        if not isinstance(value, Tensor) or not value.is_floating_point() or value.dtype == torch.float64:
            return value
        if value.dtype == dtype:
            return value
        # Only leaves are remembered: an activation that three layers read is cast three times.
        is_kept = dtype != torch.float32 and value.requires_grad and value.is_leaf and not value._is_view()
        if is_kept and id(value) in self._copies:
            return self._copies[id(value)][1]
        copy = value.to(dtype)
        if dtype != torch.float32 and isinstance(
            value._base if value._is_view() else value, torch.nn.Parameter
        ):
            self.report_cast(copy)
        if is_kept:
            self._copies[id(value)] = (value, copy)
        return copy


def _drop_out(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Tensor:
    """As on CUDA: the mask is kept in one byte an element."""
    del inplace
    return torch.native_dropout(input, p, True)[0] if training and 0 < p < 1 else input


def _attend_on_gpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor:
    """The memory-efficient kernel, which CUDA takes wherever there is a bias: no [L, L] probabilities.

    Without a bias it takes the flash kernel, whose outputs have the same sizes.
    """
    bias = attn_mask
    if bias is not None:
        if bias.dtype == torch.bool:
            bias = torch.zeros_like(bias, dtype=query.dtype).masked_fill_(~bias, -torch.inf)
        missing = -bias.shape[-1] % _MASK_ALIGNMENT
        if missing:
            bias = functional.pad(bias, (0, missing))[..., : bias.shape[-1]]
        bias = bias.expand(*query.shape[:3], key.shape[2])
    kernel = torch.ops.aten._scaled_dot_product_efficient_attention
    is_training = any(tensor.requires_grad for tensor in (query, key, value))
    return kernel(query, key, value, bias, is_training, dropout_p, is_causal, scale=scale)[0]


def _attend_on_cpu(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    **_: Any,
) -> Tensor | None:
    """The fused kernel of a CPU; None where it takes none: with dropout, or a bias that wants a gradient."""
    if dropout_p > 0 or (attn_mask is not None and attn_mask.requires_grad):
        return None
    kernel = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
    return kernel(query, key, value, dropout_p, is_causal, attn_mask=attn_mask, scale=scale)[0]
