"""The engine: an Accelerator that is what the plan says, and the sums over its ranks."""

import json
import logging
import os
import warnings
from datetime import timedelta
from importlib.util import find_spec
from typing import Any

import torch
from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
from accelerate.utils import DeepSpeedPlugin, GradientAccumulationPlugin
from torch import Tensor, nn

from launch.hardware import DS_CONFIGS, Profile
from launch.plan import Plan
from launch.recipe import Training
from launch.verdict import DEFECT, MACHINE, REQUEST, RunError
from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM
from modeling.encoding import DebertaEncoding
from modeling.pair import list_parts

_MIXED = {"fp32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(plan: Plan, profile: Profile, training: Training) -> Accelerator:
    """An Accelerator for the plan.

    On a CPU, DeepSpeed wants the gloo backend named and must not be given `cpu=True`: without the first
    every process believes to be alone, with the second DeepSpeed is dropped without a word.

    Raises:
        RunError: Accelerate came up as something else than planned.
    """
    on_cpu = profile.gpu is None
    arguments: dict[str, Any] = {
        "mixed_precision": _MIXED[plan.precision],
        "gradient_accumulation_plugin": GradientAccumulationPlugin(
            num_steps=plan.accumulation or 1, sync_with_dataloader=False
        ),
    }
    if plan.world_size > 1 or profile.ds_config is not None:
        backend = "gloo" if on_cpu else "nccl"
        arguments["kwargs_handlers"] = [
            InitProcessGroupKwargs(backend=backend, timeout=timedelta(minutes=10))
        ]
    if profile.ds_config is not None:
        if find_spec("deepspeed") is None:
            raise RunError(
                MACHINE,
                f"the profile {profile.name} wants DeepSpeed, which is not installed: pip install deepspeed",
            )
        # Its calls of deprecated torch functions are not for our users.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        arguments["deepspeed_plugin"] = DeepSpeedPlugin(
            hf_ds_config=_fill_ds_config(plan, profile.ds_config, training)
        )
    elif on_cpu:
        arguments["cpu"] = True
    accelerator = Accelerator(**arguments)
    _check(accelerator, plan, profile)
    return accelerator


def _fill_ds_config(plan: Plan, name: str, training: Training) -> dict[str, Any]:
    """The DeepSpeed file with every `auto` replaced by the plan's number."""
    config = json.loads((DS_CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    config["train_micro_batch_size_per_gpu"] = plan.micro_batch
    config["gradient_accumulation_steps"] = plan.accumulation
    # Accelerate would turn `auto` into 1.0; 0 is DeepSpeed's word for no clipping.
    config["gradient_clipping"] = training.max_grad_norm or 0.0
    config["fp16"] = {"enabled": plan.precision == "fp16"}
    config["bf16"] = {"enabled": plan.precision == "bf16"}
    config["steps_per_print"] = 2**31
    config["zero_allow_untested_optimizer"] = True
    config["zero_force_ds_cpu_optimizer"] = False
    return config


def _check(accelerator: Accelerator, plan: Plan, profile: Profile) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    found = f"{accelerator.num_processes} processes, {accelerator.distributed_type}"
    if accelerator.num_processes != launched or launched != plan.world_size:
        raise RunError(
            DEFECT, f"planned {plan.world_size} processes, started {launched}, Accelerate sees {found}"
        )
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if is_deepspeed != (profile.ds_config is not None):
        wanted = f"DeepSpeed with {profile.ds_config}" if profile.ds_config else "no DeepSpeed"
        raise RunError(DEFECT, f"planned {wanted}, Accelerate sees {found}")


def check_model(model: nn.Module, plan: Plan) -> None:
    """Stop when the prepared model is not what the plan says.

    Raises:
        RunError: DeepSpeed or DDP was planned and is not there, or the ZeRO stage is another.
    """
    kind = type(model).__name__
    stage = model.zero_optimization_stage() if kind == "DeepSpeedEngine" else None  # pyright: ignore[reportCallIssue]
    is_ddp = kind == "DistributedDataParallel"
    if stage != plan.zero_stage or is_ddp != (plan.zero_stage is None and plan.world_size > 1):
        raise RunError(
            DEFECT,
            f"planned ZeRO stage {plan.zero_stage} on {plan.world_size} processes, the model is a {kind} of "
            f"stage {stage}",
        )


def choose_attention(model: nn.Module, plan: Plan) -> str | None:
    """Turn on what leaves work out exactly, and set a DeBERTa's attention kernel, once it is on its device.

    Returns:
        The kernel and why it was chosen, in words; None for a model without a choice.

    Raises:
        RunError: the kernel that was asked for cannot be had here.
    """
    name = reason = None
    try:
        for part in list_parts(model):
            if isinstance(part, DebertaForMaskedLM | CanineForMaskedLM):
                part.sparse_last_layer = True
            if isinstance(part, DebertaEncoding):
                name, reason = part.set_attention(plan.attention)
    except ValueError as error:
        raise RunError(REQUEST, f"{error}") from error
    except ModuleNotFoundError as error:
        raise RunError(MACHINE, f"{error}") from error
    return f"{name} ({reason})" if name else None


def sum_over_ranks(values: Tensor) -> Tensor:
    """The sum over all ranks, on every rank; `values` is overwritten."""
    if torch.distributed.is_initialized():
        torch.distributed.all_reduce(values)
    return values


def describe_environment(accelerator: Accelerator) -> dict[str, Any]:
    """Where a run runs: versions, device, CPU capability. No names of machines or people."""
    import platform
    from importlib.metadata import PackageNotFoundError, version

    def find(package: str) -> str | None:
        try:
            return version(package)
        except PackageNotFoundError:
            return None

    packages = ("maskwright", "torch", "accelerate", "deepspeed", "transformers", "tokenizers", "numpy")
    cuda = torch.cuda.get_device_name() if accelerator.device.type == "cuda" else None
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: find(name) for name in packages},
        "device": cuda or "cpu",
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "num_threads": torch.get_num_threads(),
        "num_processes": accelerator.num_processes,
        "distributed": str(accelerator.distributed_type),
    }
