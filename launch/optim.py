"""The optimizer: AdamW, without decay on biases and norms, at a rate that is written to it each step."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor, nn
from torch.optim import AdamW, Optimizer

from launch.recipe import Training


def build_optimizer(
    model: nn.Module,
    training: Training,
    decays: Callable[[str, nn.Parameter], bool],
    *,
    is_offloaded: bool = False,
) -> AdamW:
    """AdamW over two groups of parameters, one with weight decay.

    Args:
        model: its frozen parameters are left out.
        training: betas, eps, decay.
        decays: says whether a parameter is decayed.
        is_offloaded: what it updates lies in CPU memory. One fused pass over it is 10 times faster there:
            26 ms for 20 million weights on one thread (measured); torch's loop takes 250, and DeepSpeed's own
            Adam, which has to be compiled first, 22.
    """
    trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    groups = [
        {"params": [p for n, p in trained if decays(n, p)], "weight_decay": training.weight_decay},
        {"params": [p for n, p in trained if not decays(n, p)], "weight_decay": 0.0},
    ]
    return AdamW(
        groups, lr=training.learning_rate, betas=training.betas, eps=training.eps, fused=is_offloaded or None
    )


def set_rate(optimizer: Optimizer, rate: float) -> None:
    """Write the learning rate of the next update.

    A scheduler object would be stepped once a process by Accelerate, and its state would have to be saved.
    """
    for group in optimizer.param_groups:
        group["lr"] = rate


def set_decays(optimizer: Optimizer, decays: Sequence[float]) -> None:
    """Write the weight decay of the next update, of each group of parameters."""
    for group, decay in zip(optimizer.param_groups, decays, strict=True):
        group["weight_decay"] = decay


@torch.no_grad()
def clip_gradients(parameters: Iterable[nn.Parameter], limit: float) -> Tensor:
    """Scale gradients down to a common norm of at most `limit`; the norm before, float64.

    torch sums the squares of an fp32 norm one by one on a CPU: off by 9e-6 for 256,000 gradients and by 1e-4
    for 2 million (measured), while DeepSpeed adds in float64. Clipped steps then differ between the two.
    """
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    norms = [torch.linalg.vector_norm(gradient, dtype=torch.float64) for gradient in gradients]
    norm = torch.linalg.vector_norm(torch.stack(norms))
    scale = limit / (norm + 1e-6)
    if scale < 1:
        for gradient in gradients:
            gradient.mul_(scale.to(gradient.dtype))
    return norm
