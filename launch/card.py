"""The model card of a run: README.md beside the weights, from what the run folder says and nothing else."""

from pathlib import Path

from launch.cards.evaluation import tabulate_evaluation, tabulate_further, tell_verdict
from launch.cards.metadata import write_metadata
from launch.cards.sections import (
    LOADING,
    describe_command,
    describe_data,
    describe_limits,
    describe_model,
    describe_training,
    describe_versions,
    describe_weights,
    find_part,
    find_step,
)
from launch.cards.texts import find_family, get_text, show_plain, write_section
from launch.record import judge_discriminator, read_record

_CARD = "README.md"


def write_card(folder: Path, *, run_folder: Path, source: Path | None = None) -> Path:
    """Write the model card into a model folder; the card's path.

    Args:
        folder: gets README.md; the hashes in it are of its weights.
        run_folder: the run that made the model, whole or not; facts that it lacks are left out.
        source: the folder of the run that the weights are from (its name says at which step); None: `folder`.
    """
    record = read_record(run_folder)
    place = source or folder
    part = find_part(record, place)
    step = find_step(record, place.parent if part == "generator" else place)
    loading = LOADING.get("discriminator" if part == "discriminator" else find_family(record), "")
    figures = [
        tabulate_evaluation(record, step),
        tell_verdict(record, step),
        judge_discriminator(record, step),
        tabulate_further(record, step),
    ]
    blocks = [
        write_metadata(record, part, step),
        f"# {show_plain(record.name)}",
        show_plain(get_text(record.recipe, "description")),
        write_section("Model", describe_model(record, step, part)),
        write_section("Training data", describe_data(record)),
        write_section("Training", describe_training(record)),
        write_section("Evaluation", figures, "\n\n"),
        write_section("Use", [loading], "\n\n"),
        write_section("Limits", describe_limits(record)),
        write_section("Making it again", describe_command(record), "\n\n"),
        write_section("Weights", describe_weights(folder)),
        write_section("Versions", describe_versions(record)),
    ]
    path = folder / _CARD
    draft = folder / f".{_CARD}.partial"
    text = "\n\n".join(block for block in blocks if block) + "\n"
    # A text may hold half a surrogate pair, which UTF-8 cannot.
    draft.write_bytes(text.encode("utf-8", errors="replace"))
    draft.replace(path)
    return path
