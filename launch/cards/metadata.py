"""The metadata of a card, as a hub reads them: tags, base model, licence, data sets and results."""

import math
import re
from pathlib import Path
from typing import Any

from launch.cards.texts import find_family, get_part, get_text
from launch.events import Event, number
from launch.record import YARDSTICKS, Record
from launch.reporting.figures import is_count, is_mark, list_headlines, name_metric, read_groups, sort_figures

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")
# Licences that the hub knows by these names; any other is `other`, with its name beside it.
_LICENCES = """
    apache-2.0 mit openrail bigscience-openrail-m creativeml-openrail-m afl-3.0 artistic-2.0 bsl-1.0 bsd
    bsd-2-clause bsd-3-clause bsd-3-clause-clear c-uda cc cc0-1.0 cc-by-2.0 cc-by-2.5 cc-by-3.0 cc-by-4.0
    cc-by-sa-3.0 cc-by-sa-4.0 cc-by-nc-2.0 cc-by-nc-3.0 cc-by-nc-4.0 cc-by-nd-4.0 cc-by-nc-nd-3.0
    cc-by-nc-nd-4.0 cc-by-nc-sa-2.0 cc-by-nc-sa-3.0 cc-by-nc-sa-4.0 cdla-sharing-1.0 cdla-permissive-1.0
    cdla-permissive-2.0 wtfpl ecl-2.0 epl-1.0 epl-2.0 etalab-2.0 eupl-1.1 eupl-1.2 agpl-3.0 gfdl gpl gpl-2.0
    gpl-3.0 lgpl lgpl-2.1 lgpl-3.0 isc ms-pl mpl-2.0 odc-by odbl osl-3.0 postgresql ofl-1.1 ncsa unlicense
    zlib pddl unknown other"""


def write_metadata(record: Record, part: str, step: int | None) -> str:
    """The front matter of a card, with the results of a step; nothing that the run does not say."""
    # Here: it takes a third of a second, and the planning half does without.
    from huggingface_hub import ModelCardData

    results = list_results(record, part, step)
    facts: dict[str, Any] = {"eval_results": results, "model_name": record.name} if results else {}
    data = ModelCardData(
        **read_licence(get_text(record.recipe, "licence")),
        base_model=_find_base(record),
        datasets=_list_datasets(record) or None,
        library_name="transformers",
        pipeline_tag="feature-extraction" if part == "discriminator" else "fill-mask",
        tags=_list_tags(record, part),
        **facts,
    )
    return f"---\n{data.to_yaml(line_break=chr(10)).strip()}\n---"


def read_licence(text: str) -> dict[str, str]:
    """A licence as the hub wants it named; empty where the recipe names none."""
    if not text:
        return {}
    name = re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")
    return (
        {"license": name}
        if name in _LICENCES.split()
        else {"license": "other", "license_name": name or "other"}
    )


def _list_tags(record: Record, part: str) -> list[str]:
    masking = get_text(get_part(record.recipe, "objective", "masking"), "kind")
    objective = "replaced-token-detection" if part == "discriminator" else "masked-lm"
    tags = ["maskwright", objective, find_family(record), masking.replace("_", "-")]
    return [tag for tag in tags if tag]


def _find_base(record: Record) -> str | None:
    """The hub model that the weights come from; a folder of the machine that trained is none."""
    base = get_text(get_part(record.recipe, "model"), "source")
    return base if _HUB_ID.fullmatch(base) and not Path(base).exists() else None


def _list_sources(data: dict[str, Any]) -> list[dict[str, Any]]:
    sources = data.get("sources")
    return [source for source in sources if isinstance(source, dict)] if isinstance(sources, list) else []


def _list_datasets(record: Record) -> list[str]:
    """Data sets of the hub."""
    named = [
        get_text(source, "path")
        for source in _list_sources(get_part(record.recipe, "data"))
        if source.get("kind") == "hub"
    ]
    return [name for name in dict.fromkeys(named) if _HUB_ID.fullmatch(name)]


def _name_data(sources: list[dict[str, Any]], rows: str) -> dict[str, str]:
    """A type and a name for what some rows were made of."""
    names, types = [], []
    for source in sources:
        package, path = get_text(source, "package"), get_text(source, "path")
        name = package or (path if source.get("kind") == "hub" else Path(path).name)
        types.append(name)
        names.append(" ".join(filter(None, (name, get_text(source, "version")))))
    named = list(dict.fromkeys(filter(None, types)))
    kind = named[0] if len(named) == 1 and re.fullmatch(r"[\w./-]+", named[0]) else "custom"
    listed = ", ".join(dict.fromkeys(filter(None, names))) or "unnamed"
    return {"dataset_type": kind, "dataset_name": f"{listed} ({rows})"}


def list_results(record: Record, part: str, step: int | None) -> list[Any]:
    """What the evaluation of a step found, and what it is held against, as results of a hub.

    Values that are no number are left out: they have no place in a model index.
    """
    from huggingface_hub import EvalResult

    event = None if step is None else record.evaluation(step)
    if event is None:
        return []
    masking = get_part(record.recipe, "objective", "masking")
    rate = number(get_part(record.recipe, "evaluation"), "rate") or number(masking, "rate")
    size = "num_positions" if part == "discriminator" else "num_targets"
    facts = {"masking": get_text(masking, "kind"), "rate": rate, size: event.get(size)}
    shared: dict[str, Any] = {
        "task_type": "token-classification" if part == "discriminator" else "fill-mask",
        "task_name": "Replaced token detection" if part == "discriminator" else "Masked language modelling",
        "dataset_split": "evaluation",
    }
    general = get_part(record.recipe, "evaluation", "metrics", "general")
    main: dict[str, Any] = _name_data(_list_sources(get_part(record.recipe, "data")), "held-out rows")
    main |= {"dataset_args": {key: value for key, value in facts.items() if value}}
    other: dict[str, Any] = _name_data(_list_sources(general), "a general corpus")
    return [
        EvalResult(
            **shared,
            **(other if group == "general" else main),
            metric_type=figure,
            metric_name=told,
            metric_value=round(value, 6),
        )
        for group, figure, told, value in _list_values(record, event, part)
        if math.isfinite(value)
    ]


def _list_values(record: Record, event: Event, part: str) -> list[tuple[str, str, str, float]]:
    """(group, figure, name, value): of the step, then at step 0, then of the yardsticks."""
    groups, before = read_groups(event), read_groups(record.evaluation(0) if event["step"] else None)
    wanted = [
        (group, figure, _title(name_metric(group, figure)))
        for group in list_headlines(groups)
        for figure in sort_figures(list(groups[group]))
        if not is_count(figure) and figure.startswith("discriminator_") == (part == "discriminator")
    ]
    values = [(group, figure, told, groups[group][figure]) for group, figure, told in wanted]
    values += [
        (group, figure, f"{told}, before training (step 0)", before[group][figure])
        for group, figure, told in wanted
        if figure in before.get(group, {}) and not is_mark(figure)
    ]
    for yardstick in record.events.of("yardstick") if part != "discriminator" else []:
        name, value = str(yardstick.get("name")), number(yardstick, "perplexity")
        if value is not None:
            told = f"Perplexity of {YARDSTICKS.get(name, name)}, a baseline"
            values.append(("main", "perplexity", told, value))
    return values


def _title(text: str) -> str:
    return text[:1].upper() + text[1:]
