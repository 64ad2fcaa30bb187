"""The weights of a run on disk: one Hugging Face folder, or a discriminator's with its generator's inside."""

from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from data_pipes.vocabulary.identity import write_identity
from launch.build import Job
from launch.verdict import RESUME, RunError
from modeling import hf
from modeling.pair import GENERATOR_FOLDER, join_pair, split_pair
from modeling.rtd import RtdModel

_DIFFERENCE = "embedding_difference.safetensors"


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


def write_weights(job: Job, place: Path, training: Path | None = None) -> None:
    """Write the model as a Hugging Face folder; all ranks call it.

    Args:
        job: whose model it is.
        place: the folder.
        training: gets what the folder alone could not give back to the bit.
    """
    weights: Any = job.accelerator.get_state_dict(job.model)
    if not job.accelerator.is_main_process:
        return
    if isinstance(job.bare_model, RtdModel):
        generator, discriminator, difference = split_pair(weights)
        _save_part(job, job.bare_model.discriminator, place, discriminator)
        _save_part(job, job.bare_model.generator, place / GENERATOR_FOLDER, generator)
        if training is not None:
            save_file({"weight": difference.contiguous()}, training / _DIFFERENCE)
    else:
        _save_part(job, job.bare_model, place, weights)


def _save_part(job: Job, model: PreTrainedModel, place: Path, weights: dict[str, Tensor]) -> None:
    hf.save(model, place, job.tokenizer, state_dict=weights)
    if job.tokenizer.is_fast:  # CANINE's has nothing that could differ
        write_identity(place, job.tokenizer)
