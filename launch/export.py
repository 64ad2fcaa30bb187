"""Exporting a run's model: a Hugging Face folder with a model card, loaded again and compared."""

import shutil
from pathlib import Path

import torch

from launch.card import write_card
from launch.checkpoints.removal import remove_draft
from launch.predict import find_masked_lm, find_model, load_model
from modeling.pair import load_discriminator

__all__ = ["export", "write_card"]

# Weights of one file or several, configuration, and what the tokenizers of transformers write.
_KINDS = (
    "config.json",
    "generation_config.json",
    "model*.safetensors",
    "model.safetensors.index.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "identity.json",
    "vocab.*",
    "merges.txt",
    "spm.model",
    "sentencepiece*.model",
)


def export(run_folder: Path, out_folder: Path, part: str | None = None) -> Path:
    """Copy a run's model (`final`, else `best`, else the newest checkpoint) into a folder of its own.

    The folder appears whole or not at all. Its model is loaded and gives the logits of the source to the bit.

    Args:
        run_folder: a run, or a model folder.
        out_folder: a new or an empty folder.
        part: of replaced-token detection, `discriminator` (also if None) or `generator`.

    Raises:
        ValueError: the run has no model or not that part, the target is in use, or the copy differs.
    """
    found = find_model(run_folder)
    source = find_part(found, part)
    if out_folder.exists() and (not out_folder.is_dir() or any(out_folder.iterdir())):
        raise ValueError(f"{out_folder} is in use already: name a new or an empty folder to export to")
    out_folder.parent.mkdir(parents=True, exist_ok=True)
    draft = out_folder.with_name(f".{out_folder.name}.partial")
    remove_draft(draft)
    draft.mkdir()
    try:
        for path in sorted({path for kind in _KINDS for path in source.glob(kind) if path.is_file()}):
            shutil.copyfile(path, draft / path.name)
        write_card(draft, run_folder=run_folder if found != run_folder else found.parent, source=source)
        difference = compare_logits(source, draft, is_discriminator=find_masked_lm(source) != source)
        if difference != 0.0:
            raise ValueError(
                f"the copy of {source} gives other logits than the model itself (by up to {difference:.3g}): "
                "nothing was exported; its files may be changing now, try again when the run is done"
            )
        draft.replace(out_folder)
    finally:
        remove_draft(draft)
    return out_folder


def find_part(folder: Path, part: str | None) -> Path:
    """The folder of a part of a model folder; itself where no part is named.

    Raises:
        ValueError: the model is one of its own and has no parts.
    """
    generator = find_masked_lm(folder)
    if part is not None and generator == folder:
        raise ValueError(f"{folder} holds one model and no {part}: leave the part out")
    return generator if part == "generator" else folder


def compare_logits(source: Path, copy: Path, *, is_discriminator: bool = False) -> float:
    """The largest absolute difference of the logits of two model folders, on four seeded rows."""
    one, other = (
        load_discriminator(folder) if is_discriminator else load_model(folder)[0] for folder in (source, copy)
    )
    if one.config.model_type == "canine":
        num_ids = max(one.config.head_code_points) + 1
    else:
        num_ids = one.config.vocab_size
    generator = torch.Generator().manual_seed(0)
    num_slots = min(32, one.config.max_position_embeddings)
    ids_BL = torch.randint(1, num_ids, (4, num_slots), generator=generator)
    with torch.no_grad():
        first_BLV, second_BLV = (model.eval()(input_ids=ids_BL) for model in (one, other))
    if not is_discriminator:
        first_BLV, second_BLV = first_BLV.logits, second_BLV.logits
    if first_BLV.shape != second_BLV.shape:
        return float("inf")
    # NaN - NaN is NaN: such a model equals no other.
    return float((first_BLV - second_BLV).abs().max())
