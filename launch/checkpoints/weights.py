"""The weights of a run on disk: one Hugging Face folder, or a discriminator's with its generator's inside."""

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from data_pipes.vocabulary.identity import write_identity
from launch.build import Job
from launch.checkpoints.partitions import gather_masters
from launch.verdict import RESUME, RunError
from modeling import hf
from modeling.pair import GENERATOR_FOLDER, join_pair, split_pair
from modeling.rtd import RtdModel

_DIFFERENCE = "embedding_difference.safetensors"


class NotFiniteError(RuntimeError):
    """Weights are no numbers any more: a folder with them must not pass for a checkpoint."""


def read_weights(job: Job, place: Path, training: Path) -> dict[str, Tensor]:
    """The weights of a checkpoint as the job's model names them; `training` is its folder of that name."""
    weights = load_file(place / "model.safetensors")
    if not isinstance(job.bare_model, RtdModel):
        return weights
    generator = load_file(place / GENERATOR_FOLDER / "model.safetensors")
    return join_pair(generator, weights, load_file(training / _DIFFERENCE)["weight"])


def load_weights(job: Job, weights: dict[str, Tensor]) -> None:
    """Put weights into the job's model.

    Raises:
        RunError: they are those of another model.
    """
    missing, unexpected = job.bare_model.load_state_dict(weights, strict=False)
    # A tied weight is written once, under one of its names.
    prefix = "generator." if isinstance(job.bare_model, RtdModel) else ""
    tied = {f"{prefix}{key}" for key in getattr(job.masked_lm, "all_tied_weights_keys", None) or {}}
    if set(missing) - tied or unexpected:
        raise RunError(
            RESUME, f"the checkpoint's weights do not fit: missing {missing}, unknown {unexpected}"
        )
    job.bare_model.tie_weights()


def collect_weights(job: Job) -> dict[str, Tensor]:
    """The weights of the model as it names them, whole on rank 0 and in fp32; all ranks call it.

    In bf16 and fp16 DeepSpeed computes with rounded weights and updates fp32 masters, which are given here.
    """
    is_main = job.accelerator.is_main_process
    weights: Any = job.accelerator.get_state_dict(job.model)
    if job.plan.zero_stage is None or job.plan.precision not in ("bf16", "fp16"):
        return weights if is_main else {}
    masters = gather_masters(job.bare_model, is_kept=is_main)
    return {name: masters.get(name, _widen(value)) for name, value in weights.items()} if is_main else {}


def _widen(value: Tensor) -> Tensor:
    return value.float() if value.is_floating_point() else value


def write_weights(job: Job, weights: dict[str, Tensor], place: Path, training: Path | None = None) -> None:
    """Write weights as a Hugging Face folder; rank 0 calls it, in any thread.

    Args:
        job: whose model it is.
        weights: as `collect_weights` gave them.
        place: the folder.
        training: gets what the folder alone could not give back to the bit.

    Raises:
        NotFiniteError: the weights are no numbers any more; nothing is written.
        OSError, RuntimeError, SafetensorError: they cannot be written.
    """
    _check_finite(job, weights)
    if isinstance(job.bare_model, RtdModel):
        generator, discriminator, difference = split_pair(weights)
        _save_part(job, job.bare_model.discriminator, place, discriminator)
        _save_part(job, job.bare_model.generator, place / GENERATOR_FOLDER, generator)
        if training is not None:
            save_file({"weight": difference.contiguous()}, training / _DIFFERENCE)
    else:
        _save_part(job, job.bare_model, place, weights)


def _check_finite(job: Job, weights: dict[str, Tensor]) -> None:
    """A sum is not finite if a part of it is not; it takes a hundredth of the time of writing."""
    names = {name for name, _ in job.bare_model.named_parameters()} & set(weights)
    lost = [name for name in sorted(names) if not torch.isfinite(weights[name].sum(dtype=torch.float64))]
    if lost:
        raise NotFiniteError(f"{len(lost):,} of {len(names):,} weights are not finite: {lost[0]}, ...")


def _save_part(job: Job, model: PreTrainedModel, place: Path, weights: dict[str, Tensor]) -> None:
    hf.save(model, place, job.tokenizer, state_dict=weights)
    _write_dtype(place / "config.json", weights)
    if job.tokenizer.is_fast:  # CANINE's has nothing that could differ
        write_identity(place, job.tokenizer)


def _write_dtype(path: Path, weights: dict[str, Tensor]) -> None:
    """Let a config.json name the precision of the weights beside it, not of those that are computed with."""
    dtypes = {
        str(value.dtype).removeprefix("torch.") for value in weights.values() if value.is_floating_point()
    }
    config = json.loads(path.read_text(encoding="utf-8"))
    if len(dtypes) == 1 and config.get("dtype") not in (None, *dtypes):
        config["dtype"] = dtypes.pop()
        path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
