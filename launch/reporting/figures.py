"""The figures of evaluations by name: what they are called, how they are written, which way is better."""

import re
from collections.abc import Iterator, Sequence

from launch.events import Event, number
from launch.figure import show_number, show_share
from launch.record import YARDSTICKS, Record
from launch.reporting.table import Cell, Table

Groups = dict[str, dict[str, float]]

_LABELS = {
    "accuracy_top5": "among the first five",
    "exact": "whole spans right",
    "term_perplexity": "perplexity a term",
    "word_perplexity": "perplexity a word",
    "num_targets": "targets",
    "num_spans": "spans",
    "num_words": "words",
    "num_terms": "terms",
    "num_occurrences": "occurrences",
    "num_rows": "rows",
    "num_characters": "characters",
    "num_examples": "examples",
    "unigram_perplexity": "perplexity of the unigram table",
    "neighbours_perplexity": "perplexity of the neighbour table",
    "bits_per_character": "bits a character",
    "macro_f1": "macro F1",
    "majority_accuracy": "accuracy of the commonest class",
    "majority_macro_f1": "macro F1 of the commonest class",
    "pieces_per_word": "pieces a word",
    "pieces_per_term": "pieces a term",
    "terms_cut": "share of listed terms that are cut",
    "discriminator_auc": "discriminator AUC",
    "discriminator_loss": "discriminator log-loss",
    "discriminator_base_loss": "log-loss of the base rate",
}
_ORDER = ("perplexity", "term_perplexity", "word_perplexity", "loss", "accuracy", "accuracy_top5", "exact")
_SHARES = ("accuracy", "accuracy_top5", "exact", "terms_cut", "majority_accuracy")
_HIGHER = ("accuracy", "accuracy_top5", "exact", "macro_f1", "discriminator_auc")
_LOWER = ("perplexity", "term_perplexity", "word_perplexity", "loss", "discriminator_loss", "terms_cut")
_LOWER += ("pieces_per_word", "pieces_per_term", "bits_per_character")
_METRICS_NOTE = (
    "Yardsticks are count tables on the same targets; they have no other figures. Where no interval stands, "
    "none was logged."
)
_MARKS = ("unigram_perplexity", "neighbours_perplexity", "majority_accuracy", "majority_macro_f1")
_MARKS += ("discriminator_base_loss",)
_BOUNDS = ("_low", "_high")
_FLAT = ("loss", "perplexity", "perplexity_low", "perplexity_high", "accuracy", "num_targets")
# Families of groups: where they are, their heading, what the groups are, what to know.
_OF_MAIN = (
    ("main/terms", "Terms by category", "category", "each occurrence hidden whole; intervals over terms"),
    (
        "main/rare_words",
        "Words by frequency",
        "in the training rows",
        "how often the training rows hold the word of a target",
    ),
    ("main/names/place", "Names by place", "character", "counted from 1"),
    ("main/names/suffix", "Names by public suffix", "suffix", "the commonest; the rest is one group"),
    ("main/names/length", "Names by length", "characters", ""),
    ("main/names/span", "Gaps in names by length", "characters", "each gap hidden alone"),
    ("main/names/part", "Names by part", "part", "the dot before a suffix goes with it"),
    ("main/recovery", "Exact recovery by size", "pieces", "hidden spans of which every piece is put first"),
    ("main/probes", "Probes", "probe", "a linear classifier on the frozen encoder"),
)
FAMILIES = (
    *_OF_MAIN,
    *(
        (place.replace("main/", "general/"), f"{title}, general corpus", kind, note)
        for place, title, kind, note in _OF_MAIN
    ),
)


def read_groups(event: Event | None) -> Groups:
    """The figures of an evaluation by group; `main` are those of all targets, `main/terms/places` of some."""
    groups: Groups = {}
    for name in event or {}:
        value = number(event or {}, name)
        if value is None or name == "step":
            continue
        if name in _FLAT or name.startswith("discriminator_"):
            groups.setdefault("main", {})[name] = value
        elif name.startswith("eval/") and name.count("/") >= 2:
            group, _, figure = name.removeprefix("eval/").rpartition("/")
            groups.setdefault(group, {})[figure] = value
    return groups


def label(figure: str) -> str:
    """A figure in words."""
    return _LABELS.get(figure) or figure.replace("_", " ")


def name_metric(group: str, figure: str) -> str:
    """A figure of a group in words."""
    told = label(figure)
    place = group.removeprefix("main").strip("/").replace("_", " ").replace("/", ", ")
    return f"{told} ({place})" if place else told


def show_figure(figure: str, value: float) -> str:
    """A value as its kind is written: counts, shares in percent, the rest with three digits."""
    if figure.startswith("num_"):
        return f"{value:,.0f}"
    if figure.startswith("discriminator_") or figure == "loss":
        return f"{value:.4f}"
    return show_share(value) if figure in _SHARES else show_number(value)


def is_mark(figure: str) -> bool:
    """It is what the figures of a group are held against."""
    return figure in _MARKS


def is_bound(figure: str) -> bool:
    """It is an end of an interval."""
    return figure.endswith(_BOUNDS)


def is_count(figure: str) -> bool:
    """It says how much was measured, not how well."""
    return figure.startswith("num_")


def find_direction(figure: str) -> int:
    """1: higher is better, -1: lower is; 0: neither."""
    return 1 if figure in _HIGHER else -1 if figure in _LOWER else 0


def show_interval(figures: dict[str, float], figure: str) -> str:
    """The 95 % interval of a figure; empty where none was logged."""
    low, high = (figures.get(figure + bound) for bound in _BOUNDS)
    return "" if low is None or high is None else f"{show_figure(figure, low)} to {show_figure(figure, high)}"


def sort_figures(names: Iterator[str] | Sequence[str]) -> list[str]:
    """The figures that matter most first, counts last, ends of intervals left out."""
    known = [name for name in dict.fromkeys(names) if not is_bound(name)]
    place = {name: index for index, name in enumerate(_ORDER)}
    return sorted(known, key=lambda name: (is_count(name), place.get(name, len(place))))


def tabulate_metrics(record: Record) -> Table | None:
    """The figures of the whole evaluation, before and after training, beside the yardsticks."""
    last, start = record.evaluation(), record.evaluation(0)
    if last is None:
        return None
    after, before = read_groups(last), read_groups(start)
    marks = [(str(event.get("name")), event) for event in record.events.of("yardstick")]
    is_new = start is not None and start["step"] != last["step"]
    head = ["metric", *(["step 0"] if is_new else []), f"step {last['step']:,}", "95% interval"]
    head += [YARDSTICKS.get(name, name).removeprefix("the ") for name, _ in marks] + ["measured on"]
    rows: list[list[str | Cell]] = []
    for group in list_headlines(after):
        for figure in sort_figures(list(after[group])):
            if is_count(figure) or is_mark(figure):
                continue
            row: list[str | Cell] = [name_metric(group, figure)]
            if is_new:
                row.append(_show(before.get(group, {}), figure))
            row += [
                Cell(_show(after[group], figure), _tell_change(before, after, group, figure)),
                show_interval(after[group], figure),
            ]
            row += [_show_mark(name, event, after, group, figure) for name, event in marks]
            rows.append([*row, tell_size(after[group])])
    return Table("", head, rows, _METRICS_NOTE)


def list_headlines(groups: Groups) -> list[str]:
    """Groups that are no part of a family, but the family as a whole."""
    families = [place for place, *_ in FAMILIES]
    return [
        group
        for group in groups
        if not re.match("main/fragmentation(/|$)|general/fragmentation/", group)
        and not any(group.startswith(f"{place}/") for place in families)
    ]


def tell_size(figures: dict[str, float]) -> str:
    """How much a group was measured on."""
    counts = [f"{value:,.0f} {label(name)}" for name, value in figures.items() if is_count(name)]
    return ", ".join(counts[:2])


def tabulate_families(record: Record) -> list[Table]:
    """Groups of targets, a table for each family of them: terms, rare words, names, recovery, probes."""
    last, start = record.evaluation(), record.evaluation(0)
    after, before = read_groups(last), read_groups(start)
    tables = []
    for place, title, kind, note in FAMILIES:
        own = {
            group.removeprefix(f"{place}/"): figures
            for group, figures in after.items()
            if group.startswith(f"{place}/")
        }
        if not own:
            continue
        names = sort_figures([name for figures in own.values() for name in figures])
        head = [kind]
        for name in names:
            head += [f"{label(name)}, step 0"] if name == "perplexity" and start is not last else []
            head.append(label(name))
            head += ["95% interval"] if any(f"{name}_low" in figures for figures in own.values()) else []
        rows = [
            _list_row(group, figures, before.get(f"{place}/{group}", {}), head, names)
            for group, figures in own.items()
        ]
        tables.append(Table(title, head, rows, note))
    return tables


def _list_row(
    group: str, figures: dict[str, float], before: dict[str, float], head: Sequence[str], names: Sequence[str]
) -> list[str | Cell]:
    row: list[str | Cell] = [group]
    for name in names:
        if f"{label(name)}, step 0" in head:
            row.append(_show(before, name))
        row.append(_show(figures, name))
        if "95% interval" in head and head[len(row) : len(row) + 1] == ["95% interval"]:
            row.append(show_interval(figures, name))
    return row


def tabulate_fragmentation(record: Record) -> Table | None:
    """How words and terms are cut, by the tokenizer and by the one that it was made from."""
    groups = read_groups(record.evaluation())
    now, base = groups.get("main/fragmentation"), groups.get("main/fragmentation/base", {})
    if not now:
        return None
    head = ["", *(["base tokenizer"] if base else []), "this tokenizer"]
    rows: list[list[str | Cell]] = []
    for figure, value in now.items():
        row: list[str | Cell] = [label(figure)]
        row += [_show(base, figure)] if base else []
        former = base.get(figure)
        note = "" if former is None or is_count(figure) else compare(figure, former, value)[0]
        rows.append([*row, Cell(show_figure(figure, value), note)])
    return Table("", head, rows, "in the context of the evaluation rows")


def compare(figure: str, first: float, value: float) -> tuple[str, str]:
    """A value against the first, in words with a sign, and as a tone; empty where that says nothing.

    Rates of 0-1 differ in percentage points, the rest in percent.
    """
    direction = find_direction(figure)
    if figure in _SHARES or figure in ("macro_f1", "discriminator_auc"):
        change, unit = 100 * (value - first), " points"
    elif first:
        change, unit = 100 * (value / first - 1), "%"
    else:
        return "", ""
    if change != change or abs(change) == float("inf"):
        return "", ""
    if abs(change) < 0.05:
        return "= same", ""
    arrow = "\u25b2" if change > 0 else "\u25bc"
    text = f"{arrow} {change:+,.1f}{unit}"
    if not direction:
        return text, ""
    tone = "better" if change * direction > 0 else "worse"
    return f"{text}, {tone}", tone


def _show(figures: dict[str, float], figure: str) -> str:
    value = figures.get(figure)
    return "" if value is None else show_figure(figure, value)


def _tell_change(before: Groups, after: Groups, group: str, figure: str) -> str:
    first = before.get(group, {}).get(figure)
    if first is None or before.get(group) == after.get(group) or find_direction(figure) == 0:
        return ""
    return compare(figure, first, after[group][figure])[0]


def _show_mark(name: str, event: Event, groups: Groups, group: str, figure: str) -> str:
    """A yardstick's value: of all targets, or the one that was logged with a group."""
    value = number(event, figure) if group == "main" else groups[group].get(f"{name}_{figure}")
    return "" if value is None else show_figure(figure, value)
