"""The sections of a card: model, data, training, use, limits, versions."""

import re
from pathlib import Path
from typing import Any

from data_pipes.files import hash_stream
from launch.cards.texts import (
    UNITS,
    fence,
    find_family,
    get_part,
    get_text,
    show_code,
    show_percent,
    show_plain,
)
from launch.checkpoints.rotation import find_model_step
from launch.events import number
from launch.figure import show_fact
from launch.record import Record, find_best

_FAMILIES = {"deberta": "DeBERTa", "canine": "CANINE"}
_HIDDEN = {
    "whole_word": "whole words are hidden, all pieces of a word together",
    "token": "single pieces are hidden",
    "span": "runs of whole words are hidden",
    "character": "single characters are hidden",
    "character_span": "runs of characters are hidden",
}
LOADING = {
    "deberta": """\
The folder loads with transformers alone:

```python
from transformers import AutoModelForMaskedLM, AutoTokenizer

model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```""",
    "discriminator": """\
The encoder loads with transformers alone:

```python
from transformers import AutoModel, AutoTokenizer

model = AutoModel.from_pretrained("path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

The weights `replaced_head.*` are the head that tells replaced pieces from original ones; the package
`maskwright` reads them (`modeling.pair.load_discriminator`). Fine-tuning does not need them.""",
    "canine": """\
Transformers has no CANINE with a masked-character head; the package `maskwright` brings the class:

```python
import modeling  # from maskwright; registers the class
from transformers import AutoModelForMaskedLM

model = AutoModelForMaskedLM.from_pretrained("path/to/this/folder")
```

A row is U+E000, the code points of the text, U+E001; a hidden character is U+E003. Class `i + 1` of the head
is the code point `config.head_code_points[i]`, class 0 every other character.""",
}


def find_part(record: Record, place: Path) -> str:
    """Which part of replaced-token detection a folder holds; empty for a model that is one."""
    if get_text(get_part(record.recipe, "objective"), "kind") != "rtd":
        return ""
    return "generator" if place.name == "generator" else "discriminator"


def find_step(record: Record, source: Path) -> int | None:
    """The step of a model folder: of a checkpoint by name, of `best` by its manifest, else the last.

    Where a save failed, `best` is older than the metric says, which is asked where there is no manifest.
    """
    named = re.fullmatch(r"checkpoint-(\d+)", source.name)
    if named:
        return int(named[1])
    if source.name != "best":
        return record.events.last_step or None
    kept = find_model_step(source)
    return find_best(record)[1] if kept is None else kept


def describe_model(record: Record, step: int | None, part: str) -> list[str]:
    """What kind of model it is, how large, from which step."""
    model = get_part(record.recipe, "model")
    source = get_text(model, "source")
    masking = get_part(record.recipe, "objective", "masking")
    kind, rate = get_text(masking, "kind"), number(masking, "rate")
    weights = record.events.of("weights")
    num_parameters = number(weights[-1], "num_parameters") if weights else None
    lines = []
    if source:
        start = "trained from scratch" if source == "scratch" else f"trained on from {show_code(source)}"
        # Of `family: auto` a recipe from scratch names the type, a checkpoint's own config does otherwise.
        named = get_text(get_part(record.recipe, "model", "config"), "model_type") or find_family(record)
        family = {**_FAMILIES, "auto": "an encoder"}.get(named, show_plain(named))
        what = f"the {part} of replaced-token detection" if part else "a masked language model"
        lines.append(f"- {family}, {what}, {start}")
    if num_parameters is not None:
        both = ", generator and discriminator together" if part else ""
        lines.append(f"- {num_parameters:,.0f} parameters{both}")
    if kind:
        share = "" if rate is None else f", {show_percent(rate)} of the {UNITS.get(kind, 'places')}"
        lines.append(f"- Objective: {_HIDDEN.get(kind, show_plain(kind))}{share}")
    if step is not None:
        planned = "" if record.num_steps is None else f" of {record.num_steps:,}"
        lines.append(f"- Weights of step {step:,}{planned}")
    return lines


def describe_data(record: Record) -> list[str]:
    """The sources, with their licences, and what was made of them."""
    lines = []
    sources = get_part(record.recipe, "data").get("sources")
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict):
            continue
        place = get_text(source, "package") or get_text(source, "path")
        parts = [f"{show_plain(get_text(source, 'kind'))} {show_code(place)}".strip()]
        if get_text(source, "version"):
            parts[0] += f" {show_plain(get_text(source, 'version'))}"
        if get_text(source, "member"):
            parts.append(f"file {show_code(get_text(source, 'member'))}")
        if get_text(source, "licence"):
            parts.append(f"licence: {show_plain(get_text(source, 'licence'))}")
        if get_text(source, "split") in ("train", "evaluation"):
            parts.append(f"{'training' if source['split'] == 'train' else 'evaluation'} only")
        lines.append("- " + "; ".join(parts))
    for event in record.events.of("data")[-1:]:
        for key, name in (
            ("num_documents", "documents"),
            ("num_rows", "rows"),
            ("num_pieces", "characters" if find_family(record) == "canine" else "pieces"),
            ("num_evaluation_documents", "documents held out for evaluation"),
        ):
            value = number(event, key)
            lines += [f"- {value:,.0f} {name}"] if value is not None else []
        dropped = event.get("dropped")
        if isinstance(dropped, dict) and dropped:
            lines.append(f"- Dropped: {show_fact(dropped)}")
    return lines


def describe_training(record: Record) -> list[str]:
    """The settings of the training."""
    training, plan = get_part(record.recipe, "training"), record.plan
    facts = [
        ("Steps", record.events.last_step or None),
        ("Global batch", training.get("global_batch"), "rows"),
        ("Row length", get_part(record.recipe, "data").get("row_length")),
        ("Epochs", plan.get("num_epochs")),
        ("Learning rate", training.get("learning_rate")),
        ("Schedule", training.get("schedule")),
        ("Warmup steps", plan.get("num_warmup_steps")),
        ("Weight decay", training.get("weight_decay")),
        ("Seed", training.get("seed")),
        ("Precision", plan.get("precision")),
    ]
    return [
        f"- {name}: {show_fact(value)}{''.join(f' {unit}' for unit in units)}"
        for name, value, *units in facts
        if value is not None
    ]


def describe_limits(record: Record) -> list[str]:
    """What the figures do not say."""
    masking = get_part(record.recipe, "objective", "masking")
    kind = get_text(masking, "kind")
    rate = number(get_part(record.recipe, "evaluation"), "rate") or number(masking, "rate")
    lines = []
    if kind and rate is not None:
        hidden = f"{show_percent(rate)} of the {UNITS.get(kind, 'places')}"
        lines.append(
            f"- The perplexity is that of a masked model: {hidden} are hidden and guessed from the rest, on "
            "masks that never change. It cannot be compared with the perplexity of a model that writes from "
            "left to right, nor across vocabularies or mask rates."
        )
    sources = get_part(record.recipe, "data").get("sources")
    listed = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    if listed:
        lines.append(f"- It is measured on {describe_split(listed)}. Other text can be harder.")
    lines.append("- The model repeats what its training text says, wrong and one-sided statements included.")
    if not get_text(record.recipe, "licence"):
        lines.append("- The recipe names no licence for the weights; mind those of the training data.")
    return lines


def describe_split(sources: list[dict[str, Any]]) -> str:
    """Which documents were held out."""
    whole = [source for source in sources if get_text(source, "split") == "evaluation"]
    shared = [source for source in sources if get_text(source, "split") not in ("train", "evaluation")]
    keys = sorted({get_text(source, "group_key") for source in shared} - {""})
    parts = []
    if shared:
        how = f"by {', '.join(map(show_code, keys))}, no group on both sides" if keys else "by hash"
        parts.append(f"held-out documents of the same sources, chosen {how}")
    if whole:
        parts.append(f"{len(whole)} source{'s' * (len(whole) > 1)} held out as a whole")
    return " and ".join(parts) or "documents that were not trained on"


def describe_versions(record: Record) -> list[str]:
    """The packages that it was trained with."""
    environment = record.environment
    packages = get_part(environment, "packages")
    named = [("python", environment.get("python")), *packages.items()]
    return [f"- {name} {version}" for name, version in named if version]


def describe_weights(folder: Path) -> list[str]:
    """The weights of a folder with their hashes."""
    lines = []
    for path in sorted(folder.glob("model*.safetensors")):
        with path.open("rb") as file:
            digest = hash_stream(file)
        lines.append(f"| `{path.name}` | {path.stat().st_size:,} | `{digest}` |")
    return ["| file | bytes | sha256 |", "| --- | ---: | --- |", *lines] if lines else []


def describe_command(record: Record) -> list[str]:
    """How to make the model again: the command, and the recipe with every default."""
    blocks = []
    if record.command:
        blocks.append(fence(record.command, "sh"))
    if record.recipe_text:
        blocks.append(f"The recipe, with every default:\n\n{fence(record.recipe_text, 'yaml')}")
    return blocks
