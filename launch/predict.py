"""Filling hidden places: a model's best guesses for `[MASK]` (words) or `_` (characters).

Shapes: B texts of a batch, L slots of a row, T hidden places of the batch, V classes of the head.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from launch.blank import Characters, Row, Words
from launch.checkpoints.manifest import find_checkpoints

if TYPE_CHECKING:
    from rich.console import RenderableType

GENERATOR = "generator"  # the folder that modeling.pair makes; a name here, as looking for it needs no torch
# Logits of one batch: 2^27 numbers are 512 MB; 128,100 pieces at 512 slots are 65.6 million a row.
_MAX_LOGITS = 2**27


@dataclass(frozen=True)
class Candidate:
    """A piece or character and its probability, 0-1 over all classes."""

    piece: str
    probability: float


@dataclass(frozen=True)
class Place:
    """A hidden place: where it begins in the text (in characters) and what may stand there, best first."""

    position: int
    candidates: tuple[Candidate, ...]


@dataclass(frozen=True)
class Filled:
    """A text, its hidden places, and the text with the best candidate of each put in."""

    text: str
    places: tuple[Place, ...]
    completed: str


def fill(
    model_folder: str | Path, texts: Sequence[str], *, top: int = 5, device: str = "cpu"
) -> list[Filled]:
    """Fill texts with a saved model; several hidden places of a text are filled independently, in one pass.

    Args:
        model_folder: a Hugging Face folder, or a run folder (see `find_model`).
        texts: with `[MASK]` for a word model, with `_` for each hidden character of a character model.
        top: candidates for each place.
        device: where the model runs.

    Raises:
        ValueError: there is no model, a text hides nothing or is too long, `top` is below 1.
    """
    model, tokenizer = load_model(find_masked_lm(find_model(Path(model_folder))))
    return fill_texts(model, tokenizer, texts, top=top, device=device)


def find_model(folder: Path) -> Path:
    """The model of a folder: itself, or of a run `final`, else `best`, else the newest checkpoint.

    Raises:
        ValueError: there is none.
    """
    for place in (folder, folder / "final", folder / "best", *find_checkpoints(folder)):
        if (place / "config.json").is_file() and any(place.glob("model*.safetensors")):
            return place
    problem = "holds no model" if folder.is_dir() else "is not a folder"
    raise ValueError(
        f"{folder} {problem}: give a folder with config.json and model.safetensors, or a run folder with "
        "final, best or a checkpoint in it"
    )


def find_masked_lm(folder: Path) -> Path:
    """The masked language model of a model folder: itself, or the generator in a discriminator's folder."""
    inside = folder / GENERATOR
    return inside if (inside / "config.json").is_file() else folder


def load_model(folder: Path) -> tuple[Any, Any]:
    """A masked-LM and its tokenizer (None for a character model), from a Hugging Face folder.

    Raises:
        ValueError: the folder lacks weights of the model: they would be random.
    """
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    import modeling  # noqa: F401 - registers the classes
    from modeling.trust import SAFE_CODE, SAFE_WEIGHTS, check_weights

    disable_progress_bar()
    check_weights(folder)
    model, found = AutoModelForMaskedLM.from_pretrained(str(folder), output_loading_info=True, **SAFE_WEIGHTS)
    if found["missing_keys"]:
        raise ValueError(
            f"{folder} lacks the weights {sorted(found['missing_keys'])}, which would be random: give a "
            "folder that holds the encoder with its masked-LM head"
        )
    is_characters = model.config.model_type == "canine"
    tokenizer = None if is_characters else AutoTokenizer.from_pretrained(str(folder), **SAFE_CODE)
    return model, tokenizer


def fill_texts(
    model: Any, tokenizer: Any, texts: Sequence[str], *, top: int = 5, device: Any = "cpu"
) -> list[Filled]:
    """Fill texts with a model in memory, which is left in the mode it was in.

    Args:
        model: `model(input_ids, attention_mask).logits` is [B, L, V].
        tokenizer: None for a character model.
        texts: as for `fill`.
        top: as for `fill`.
        device: where the model is, or is moved to.
    """
    if top < 1:
        raise ValueError(f"top is {top}: ask for at least 1 candidate")
    if isinstance(texts, str):
        raise ValueError(f"texts is one text, {texts!r}: give a list of them")
    is_characters = model.config.model_type == "canine"
    reader = Characters(model.config) if is_characters else Words(model.config, tokenizer)
    rows = [reader.read(text) for text in texts]
    model.to(device)
    batches = _split(rows, len(reader.is_candidate_V))
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            filled = [one for batch in batches for one in _fill_batch(model, batch, reader, top, device)]
    finally:
        model.train(was_training)
    return filled


def _split(rows: list[Row], num_classes: int) -> Iterator[list[Row]]:
    """Batches in the given order, none with more logits than fit."""
    batch: list[Row] = []
    for row in rows:
        longest = max(len(one.ids) for one in [*batch, row])
        if batch and (len(batch) + 1) * longest * num_classes > _MAX_LOGITS:
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _fill_batch(
    model: Any, batch: list[Row], reader: Words | Characters, top: int, device: Any
) -> list[Filled]:
    # CANINE rows need more slots than they use; the model adds those itself.
    ids_BL = torch.full((len(batch), max(len(row.ids) for row in batch)), reader.pad_id)
    mask_BL = torch.zeros_like(ids_BL)
    for index, row in enumerate(batch):
        ids_BL[index, : len(row.ids)] = torch.tensor(row.ids)
        mask_BL[index, : len(row.ids)] = 1
    logits_BLV = model(input_ids=ids_BL.to(device), attention_mask=mask_BL.to(device)).logits
    return [
        _fill_row(row, logits_LV[row.slots], reader, top)
        for row, logits_LV in zip(batch, logits_BLV, strict=True)
    ]


def _fill_row(row: Row, logits_TV: Tensor, reader: Words | Characters, top: int) -> Filled:
    probabilities_TV = logits_TV.double().cpu().softmax(-1)
    ranked_TV = probabilities_TV.masked_fill(~reader.is_candidate_V, -1.0)
    num_shown = min(top, int(reader.is_candidate_V.sum()))
    values, ids = ranked_TV.topk(num_shown, dim=-1)
    places = tuple(
        Place(
            start, tuple(Candidate(reader.show(i), p) for i, p in zip(place_ids, place_values, strict=True))
        )
        for (start, _), place_ids, place_values in zip(row.spans, ids.tolist(), values.tolist(), strict=True)
    )
    if isinstance(reader, Characters):
        ranked_TV[:, 0] = -1.0
    return Filled(row.text, places, reader.complete(row, ranked_TV.argmax(-1).tolist()))


def as_dict(filled: Filled) -> dict[str, Any]:
    """Plain data: text, places (position, candidates of piece and probability), completed."""
    return {
        "text": filled.text,
        "places": [
            {"position": place.position, "candidates": [asdict(one) for one in place.candidates]}
            for place in filled.places
        ],
        "completed": filled.completed,
    }


def render(filled: Sequence[Filled]) -> "RenderableType":
    """A small table for each text, for a terminal."""
    from rich.bar import Bar
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    parts: list[Any] = []
    for one in filled:
        title = Text.assemble((one.text, "bold"), ("  ->  ", "dim"), (one.completed, "bold green"))
        table = Table(box=None, show_header=False, padding=(0, 2, 0, 0))
        for number, place in enumerate(one.places, start=1):
            for rank, candidate in enumerate(place.candidates):
                label = f"place {number}" if len(one.places) > 1 and rank == 0 else ""
                share = f"{candidate.probability:.1%}"
                bar = Bar(size=1.0, begin=0.0, end=candidate.probability, width=24, color="cyan")
                table.add_row(Text(label, "dim"), Text(candidate.piece), Text(share, justify="right"), bar)
        parts += [title, table, Text()]
    return Group(*parts[:-1])
