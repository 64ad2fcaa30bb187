"""The evaluation in a card: its tables, and the verdict."""

from launch.cards.texts import get_text, show_code, show_plain
from launch.events import Event, number
from launch.figure import show_number, show_share
from launch.record import YARDSTICKS, Record, judge
from launch.reporting.figures import (
    is_count,
    list_headlines,
    name_metric,
    read_groups,
    show_figure,
    show_interval,
    sort_figures,
)


def tabulate_evaluation(record: Record, step: int | None) -> str:
    """The main figures of a step, of step 0 and of the yardsticks."""
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
        lines.append(f"| {show_plain(name).replace('|', ' ')} | {' | '.join(cells)} |")
    return "\n".join(lines)


def tell_verdict(record: Record, step: int | None) -> str:
    """The figures of a step in words, and of which rows they are."""
    if step is None or record.evaluation(step) is None:
        return ""
    return "\n\n".join(filter(None, (show_plain(judge(record, step)), tell_rows(record))))


def tell_rows(record: Record) -> str:
    """What tells the rows from others: the key of the data, and the hash of the tokenizer that cut them."""
    for event in record.events.of("data")[-1:]:
        key, digest = get_text(event, "key"), get_text(event, "tokenizer_sha256")
        cut = f", cut by the tokenizer whose `tokenizer.json` has the SHA-256 {show_code(digest)}"
        return f"The rows are those of the data {show_code(key)}{cut if digest else ''}." if key else ""
    return ""


def tabulate_further(record: Record, step: int | None) -> str:
    """The further metrics of a step beside those of step 0."""
    if step is None:
        return ""
    after, before = read_groups(record.evaluation(step)), read_groups(record.evaluation(0))
    lines = []
    for group in list_headlines(after):
        for figure in sort_figures(list(after[group])):
            if is_count(figure) or (group == "main" and figure in ("perplexity", "loss", "accuracy")):
                continue
            start = before.get(group, {}).get(figure)
            cells = [
                show_plain(name_metric(group, figure)).replace("|", " "),
                show_figure(figure, after[group][figure]),
                show_interval(after[group], figure),
                "" if start is None or step == 0 else show_figure(figure, start),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    head = ["| further metric | this model | 95% interval | step 0 |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*head, *lines]) if lines else ""
