"""The engine: an Accelerator that is what the plan says, and the sums over its ranks."""

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
from torch.optim import Optimizer

from launch.hardware import Profile
from launch.liveness import find_group_timeout
from launch.plan import Plan
from launch.recipe import Training
from launch.sharding import fill_config, read_sharding
from launch.verdict import DEFECT, MACHINE, REQUEST, RunError
from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM
from modeling.encoding import DebertaEncoding
from modeling.general import ARCHITECTURES, TargetScoring
from modeling.pair import list_parts
from modeling.rtd import RtdModel

_MIXED = {"fp32": "no", "tf32": "no", "bf16": "bf16", "fp16": "fp16"}


def build_accelerator(plan: Plan, profile: Profile, training: Training) -> Accelerator:
    """An Accelerator for the plan.

    On a CPU, DeepSpeed wants the gloo backend named and must not be given `cpu=True`: without the first
    every process believes to be alone, with the second DeepSpeed is dropped without a word.

    Raises:
        RunError: Accelerate came up as something else than planned.
    """
    set_products(plan.precision)
    set_determinism(training.deterministic)
    on_cpu = profile.gpu is None
    sharding = read_sharding(plan.sharding)
    arguments: dict[str, Any] = {
        "mixed_precision": _MIXED[plan.precision],
        "gradient_accumulation_plugin": GradientAccumulationPlugin(
            num_steps=plan.accumulation or 1, sync_with_dataloader=False
        ),
    }
    if plan.world_size > 1 or sharding.is_deepspeed:
        backend = "gloo" if on_cpu else "nccl"
        arguments["kwargs_handlers"] = [
            InitProcessGroupKwargs(backend=backend, timeout=timedelta(seconds=find_group_timeout()))
        ]
    if sharding.is_deepspeed:
        if find_spec("deepspeed") is None:
            raise RunError(
                MACHINE,
                f"sharding {sharding.name} wants DeepSpeed, which is not installed: pip install deepspeed",
            )
        # Its calls of deprecated torch functions are not for our users.
        warnings.filterwarnings("ignore", category=FutureWarning, module="torch.distributed")
        logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
        arguments["deepspeed_plugin"] = DeepSpeedPlugin(
            # Else transformers would draw and load weights in parts, from random numbers of another order.
            zero3_init_flag=False,
            hf_ds_config=fill_config(
                sharding,
                micro_batch=plan.micro_batch or 1,
                accumulation=plan.accumulation or 1,
                max_grad_norm=training.max_grad_norm,
                precision=plan.precision,
            ),
        )
    elif on_cpu:
        arguments["cpu"] = True
    accelerator = Accelerator(**arguments)
    _check(accelerator, plan)
    return accelerator


def set_products(precision: str) -> None:
    """Let a GPU round the factors of fp32 products to TF32 where the plan says so, and only there.

    torch allows it for convolutions unless told otherwise; fp32 is to be fp32.
    """
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = precision == "tf32"


def set_determinism(is_wanted: bool) -> None:
    """Let torch raise an error where it has no operation that gives the same bits each time.

    cuBLAS reads its variable when it is first used, which must not have been before.
    """
    if not is_wanted:
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def _check(accelerator: Accelerator, plan: Plan) -> None:
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    found = f"{accelerator.num_processes} processes, {accelerator.distributed_type}"
    if accelerator.num_processes != launched or launched != plan.world_size:
        raise RunError(
            DEFECT, f"planned {plan.world_size} processes, started {launched}, Accelerate sees {found}"
        )
    is_deepspeed = accelerator.distributed_type == DistributedType.DEEPSPEED
    if is_deepspeed != (plan.zero_stage is not None):
        wanted = "no DeepSpeed" if plan.zero_stage is None else f"DeepSpeed with {plan.sharding}"
        raise RunError(DEFECT, f"planned {wanted}, Accelerate sees {found}")


def prepare_model(
    accelerator: Accelerator, model: nn.Module, optimizer: Optimizer, plan: Plan
) -> tuple[nn.Module, Any]:
    """Model and optimizer as Accelerate gives them back, checked.

    Raises:
        RunError: the model is not what the plan says.
    """
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    check_model(prepared, plan)
    scaler = getattr(getattr(prepared, "optimizer", None), "loss_scaler", None)
    if scaler is not None and hasattr(scaler, "raise_error_at_min_scale"):
        scaler.raise_error_at_min_scale = False  # an Exception of no kind; skipped steps are counted anyway
    if plan.zero_stage == 3:
        register_shared_weights(model)
    return prepared, prepared_optimizer


def check_model(model: nn.Module, plan: Plan) -> None:
    """Stop when the prepared model is not what the plan says.

    Raises:
        RunError: DeepSpeed or DDP was planned and is not there, or the ZeRO stage is another.
    """
    kind = type(model).__name__
    stage = model.zero_optimization_stage() if kind == "DeepSpeedEngine" else None  # pyright: ignore[reportCallIssue]
    is_ddp = kind == "DistributedDataParallel"
    if plan.loss_chunk and plan.zero_stage == 3 and plan.world_size > 1:
        raise RunError(
            REQUEST,
            f"--loss-chunk {plan.loss_chunk} under ZeRO-3 on {plan.world_size} processes: the head is "
            "gathered once a chunk, and ranks have unequally many; set --loss-chunk off, or take ZeRO-2",
        )
    if stage != plan.zero_stage or is_ddp != (plan.zero_stage is None and plan.world_size > 1):
        raise RunError(
            DEFECT,
            f"planned ZeRO stage {plan.zero_stage} on {plan.world_size} processes, the model is a {kind} of "
            f"stage {stage}",
        )


def register_shared_weights(model: nn.Module) -> None:
    """Tell ZeRO-3 which modules read weights of others; it gathers a module's own, and those it knows of.

    It finds them by itself when the whole model runs, but not when a part of it does: the generator of a
    pair, which fills samples.
    """
    from deepspeed.runtime.zero import register_external_parameter

    for part in list_parts(model):
        if not isinstance(part, DebertaEncoding):
            continue
        if part.deberta.encoder.relative_attention:
            register_external_parameter(part, part.deberta.encoder.rel_embeddings.weight)
        head = getattr(part, "lm_predictions", None)
        if head is not None:
            register_external_parameter(head.lm_head, part.deberta.embeddings.word_embeddings.weight)


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


def set_loss_chunk(model: nn.Module, chunk: int | None) -> None:
    """Let the logits of so many targets exist at a time; None: of all targets of a micro-batch.

    Raises:
        RunError: the model needs the logits of all, or those of every slot.
    """
    obstacle = None
    if isinstance(model, RtdModel):
        obstacle = "replaced-token detection draws from the logits of all targets"
    elif isinstance(model, TargetScoring) and model.config.model_type not in ARCHITECTURES:  # pyright: ignore[reportAttributeAccessIssue]
        obstacle = f"of {model.config.model_type} the logits of every slot are computed"  # pyright: ignore[reportAttributeAccessIssue]
    if chunk is not None and obstacle:
        raise RunError(REQUEST, f"--loss-chunk {chunk}: {obstacle}; set --loss-chunk off")
    model.loss_chunk = chunk  # pyright: ignore[reportAttributeAccessIssue, reportArgumentType]


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
