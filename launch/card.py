"""The model card of a run: README.md beside the weights, from what the run folder says and nothing else."""

import re
from pathlib import Path
from typing import Any

import yaml

from launch.events import Event, number
from launch.figure import show_fact, show_number, show_share
from launch.record import YARDSTICKS, Record, find_best, judge, judge_discriminator, read_record

_CARD = "README.md"
_FAMILIES = {"deberta": "DeBERTa", "canine": "CANINE"}
_HIDDEN = {
    "whole_word": "whole words are hidden, all pieces of a word together",
    "token": "single pieces are hidden",
    "span": "runs of whole words are hidden",
    "character": "single characters are hidden",
    "character_span": "runs of characters are hidden",
}
_UNITS = {
    "whole_word": "words",
    "span": "words",
    "token": "pieces",
    "character": "characters",
    "character_span": "characters",
}
_LOADING = {
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


def write_card(folder: Path, *, run_folder: Path, source: Path | None = None) -> Path:
    """Write the model card into a model folder; the card's path.

    Args:
        folder: gets README.md.
        run_folder: the run that made the model, whole or not; facts that it lacks are left out.
        source: the folder of the run that the weights are from (its name says at which step); None: `folder`.
    """
    record = read_record(run_folder)
    place = source or folder
    part = _find_part(record, place)
    step = _find_step(record, place.parent if part == "generator" else place)
    blocks = [
        _front_matter(record, part),
        f"# {record.name}",
        _text(record.recipe, "description"),
        _section("Model", _describe_model(record, step, part)),
        _section("Training data", _describe_data(record)),
        _section("Training", _describe_training(record)),
        _section(
            "Evaluation",
            [_evaluation_table(record, step), _verdict(record, step), judge_discriminator(record, step)],
            "\n\n",
        ),
        _section(
            "Use", [_LOADING.get("discriminator" if part == "discriminator" else _family(record), "")], "\n\n"
        ),
        _section("Limits", _describe_limits(record)),
        _section("Versions", _describe_versions(record)),
    ]
    path = folder / _CARD
    draft = folder / f".{_CARD}.partial"
    draft.write_text("\n\n".join(block for block in blocks if block) + "\n", encoding="utf-8")
    draft.replace(path)
    return path


def _find_part(record: Record, place: Path) -> str:
    """Which part of replaced-token detection a folder holds; empty for a model that is one."""
    if _text(_part(record.recipe, "objective"), "kind") != "rtd":
        return ""
    return "generator" if place.name == "generator" else "discriminator"


def _find_step(record: Record, source: Path) -> int | None:
    """The step of a model folder: of a checkpoint by name, of `best` by the metric, else the last."""
    named = re.fullmatch(r"checkpoint-(\d+)", source.name)
    if named:
        return int(named[1])
    if source.name != "best":
        return record.events.last_step or None
    return find_best(record)[1]


def _front_matter(record: Record, part: str) -> str:
    masking = _text(_part(record.recipe, "objective", "masking"), "kind")
    is_discriminator = part == "discriminator"
    objective = "replaced-token-detection" if is_discriminator else "masked-lm"
    tags = ["maskwright", objective, _family(record), masking.replace("_", "-")]
    facts: dict[str, Any] = {
        "library_name": "transformers",
        "pipeline_tag": "feature-extraction" if is_discriminator else "fill-mask",
        "tags": [tag for tag in tags if tag],
    }
    base = _text(_part(record.recipe, "model"), "source")
    # A folder of the machine that trained is no model of the hub.
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[\w.-]+", base) and not Path(base).exists():
        facts["base_model"] = base
    return "---\n" + yaml.safe_dump(facts, sort_keys=False, allow_unicode=True) + "---"


def _describe_model(record: Record, step: int | None, part: str) -> list[str]:
    model = _part(record.recipe, "model")
    source = _text(model, "source")
    masking = _part(record.recipe, "objective", "masking")
    kind, rate = _text(masking, "kind"), number(masking, "rate")
    weights = record.events.of("weights")
    num_parameters = number(weights[-1], "num_parameters") if weights else None
    lines = []
    if source:
        start = "trained from scratch" if source == "scratch" else f"trained on from {_code(source)}"
        # Of `family: auto` a recipe from scratch names the type, a checkpoint's own config does otherwise.
        named = _text(_part(record.recipe, "model", "config"), "model_type") or _family(record)
        family = {**_FAMILIES, "auto": "an encoder"}.get(named, named)
        what = f"the {part} of replaced-token detection" if part else "a masked language model"
        lines.append(f"- {family}, {what}, {start}")
    if num_parameters is not None:
        both = ", generator and discriminator together" if part else ""
        lines.append(f"- {num_parameters:,.0f} parameters{both}")
    if kind:
        share = "" if rate is None else f", {_percent(rate)} of the {_UNITS.get(kind, 'places')}"
        lines.append(f"- Objective: {_HIDDEN.get(kind, kind)}{share}")
    if step is not None:
        planned = "" if record.num_steps is None else f" of {record.num_steps:,}"
        lines.append(f"- Weights of step {step:,}{planned}")
    return lines


def _describe_data(record: Record) -> list[str]:
    lines = []
    sources = _part(record.recipe, "data").get("sources")
    for source in sources if isinstance(sources, list) else []:
        if not isinstance(source, dict):
            continue
        place = _text(source, "package") or _text(source, "path")
        parts = [f"{_text(source, 'kind')} {_code(place)}".strip()]
        if _text(source, "version"):
            parts[0] += f" {_text(source, 'version')}"
        if _text(source, "member"):
            parts.append(f"file {_code(_text(source, 'member'))}")
        if _text(source, "licence"):
            parts.append(f"licence: {_text(source, 'licence')}")
        if _text(source, "split") in ("train", "evaluation"):
            parts.append(f"{'training' if source['split'] == 'train' else 'evaluation'} only")
        lines.append("- " + "; ".join(parts))
    for event in record.events.of("data")[-1:]:
        for key, name in (
            ("num_documents", "documents"),
            ("num_rows", "rows"),
            ("num_pieces", "characters" if _family(record) == "canine" else "pieces"),
            ("num_evaluation_documents", "documents held out for evaluation"),
        ):
            value = number(event, key)
            lines += [f"- {value:,.0f} {name}"] if value is not None else []
        dropped = event.get("dropped")
        if isinstance(dropped, dict) and dropped:
            lines.append(f"- Dropped: {show_fact(dropped)}")
    return lines


def _describe_training(record: Record) -> list[str]:
    training, plan = _part(record.recipe, "training"), record.plan
    facts = [
        ("Steps", record.events.last_step or None),
        ("Global batch", training.get("global_batch"), "rows"),
        ("Row length", _part(record.recipe, "data").get("row_length")),
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


def _evaluation_table(record: Record, step: int | None) -> str:
    this = None if step is None else record.evaluation(step)
    start = record.evaluation(0)
    rows: list[tuple[str, Event]] = []
    if this is not None:
        rows.append((f"this model (step {this['step']:,})", this))
    if start is not None and start is not this:
        rows.append(("before training (step 0)", start))
    for event in record.events.of("yardstick"):
        name = str(event.get("name"))
        rows.append((YARDSTICKS.get(name, name), event))
    if not rows:
        return ""
    lines = ["| | perplexity | loss | accuracy | targets |", "| --- | ---: | ---: | ---: | ---: |"]
    for name, event in rows:
        perplexity, loss, accuracy, num_targets = (
            number(event, key) for key in ("perplexity", "loss", "accuracy", "num_targets")
        )
        cells = [
            "" if perplexity is None else show_number(perplexity),
            "" if loss is None else f"{loss:.4f}",
            "" if accuracy is None else show_share(accuracy),
            "" if num_targets is None else f"{num_targets:,.0f}",
        ]
        lines.append(f"| {name.replace('|', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _verdict(record: Record, step: int | None) -> str:
    return judge(record, step) if step is not None and record.evaluation(step) is not None else ""


def _describe_limits(record: Record) -> list[str]:
    masking = _part(record.recipe, "objective", "masking")
    kind = _text(masking, "kind")
    rate = number(_part(record.recipe, "evaluation"), "rate") or number(masking, "rate")
    lines = []
    if kind and rate is not None:
        hidden = f"{_percent(rate)} of the {_UNITS.get(kind, 'places')}"
        lines.append(
            f"- The perplexity is that of a masked model: {hidden} are hidden and guessed from the rest, on "
            "masks that never change. It cannot be compared with the perplexity of a model that writes from "
            "left to right, nor across vocabularies or mask rates."
        )
    sources = _part(record.recipe, "data").get("sources")
    listed = [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []
    if listed:
        lines.append(f"- It is measured on {_describe_split(listed)}. Other text can be harder.")
    lines.append("- The model repeats what its training text says, wrong and one-sided statements included.")
    return lines


def _describe_split(sources: list[dict[str, Any]]) -> str:
    """Which documents were held out."""
    whole = [source for source in sources if _text(source, "split") == "evaluation"]
    shared = [source for source in sources if _text(source, "split") not in ("train", "evaluation")]
    keys = sorted({_text(source, "group_key") for source in shared} - {""})
    parts = []
    if shared:
        how = f"by {', '.join(map(_code, keys))}, no group on both sides" if keys else "by hash"
        parts.append(f"held-out documents of the same sources, chosen {how}")
    if whole:
        parts.append(f"{len(whole)} source{'s' * (len(whole) > 1)} held out as a whole")
    return " and ".join(parts) or "documents that were not trained on"


def _describe_versions(record: Record) -> list[str]:
    environment = record.environment
    packages = _part(environment, "packages")
    named = [("python", environment.get("python")), *packages.items()]
    return [f"- {name} {version}" for name, version in named if version]


def _family(record: Record) -> str:
    return _text(_part(record.recipe, "model"), "family")


def _part(tree: dict[str, Any], *keys: str) -> dict[str, Any]:
    for key in keys:
        below = tree.get(key)
        tree = below if isinstance(below, dict) else {}
    return tree


def _text(part: dict[str, Any], key: str) -> str:
    value = part.get(key)
    return " ".join(value.split()) if isinstance(value, str) else ""


def _percent(rate: float) -> str:
    return f"{100 * rate:.4g} %"


def _code(text: str) -> str:
    return f"`{text.replace('`', ' ')}`" if text else ""


def _section(title: str, lines: list[str], between: str = "\n") -> str:
    kept = [line for line in lines if line]
    return f"## {title}\n\n{between.join(kept)}" if kept else ""
