"""The plan as a person sees it on the terminal."""

from typing import Any

from rich.markup import escape
from rich.table import Table

from launch.command import command_text
from launch.costing.timing import describe_hours
from launch.plan import Plan
from launch.recipe import Recipe
from launch.terminal import Console

_GIB = 2**30
_MIN_SHARE = 0.01


def print_plan(plan: Plan, recipe: Recipe) -> None:
    """The plan in words and figures; what cannot work in red at the end."""
    console = Console(highlight=False)
    console.print(
        f"[bold]{escape(recipe.name)}[/] on [bold]{plan.profile}[/]  {escape(recipe.description)}\n"
    )
    table = Table(box=None, show_header=False, pad_edge=False)
    table.add_column(style="dim", no_wrap=True)
    table.add_column()
    for name, text in _list_lines(plan, recipe):
        table.add_row(name, escape(text))
    console.print(table)
    if plan.ladder:
        console.print(f"\n[dim]ladder[/]  {escape(plan.ladder_reason)}")
        console.print(_draw_ladder(plan))
    console.print("\n[dim]command[/]")
    console.print(escape(command_text(plan)), soft_wrap=True)
    for warning in plan.warnings:
        console.print(f"\n[yellow]note[/]  {escape(warning)}")
    if plan.errors:
        count = "1 reason" if len(plan.errors) == 1 else f"{len(plan.errors)} reasons"
        console.print(f"\n[bold red]This cannot work[/], for {count}:")
        for error in plan.errors:
            console.print(f"[red]  - [/]{escape(error)}")


def _list_lines(plan: Plan, recipe: Recipe) -> list[tuple[str, str]]:
    ranks = f"{plan.world_size} process" + ("es" if plan.world_size > 1 else "")
    if plan.nodes > 1:
        ranks += f" on {plan.nodes} machines"
    batch = f"{plan.global_batch:,} rows a step"
    if plan.micro_batch:
        batch += f" = {plan.micro_batch:,} a micro-batch x {plan.accumulation:,} micro-batches x {ranks}"
    masking = recipe.objective.masking
    steps = f"{_count(plan.num_steps)}, of which {_count(plan.num_warmup_steps)} warmup"
    if plan.num_first_phase_steps:
        steps += f", after {plan.num_first_phase_steps:,} that train the rows of new pieces only"
    lines = [
        ("model", _describe_model(plan)),
        ("batch", batch),
        ("steps", steps),
        ("epochs", f"{plan.num_epochs:.2f}" if plan.num_epochs is not None else "unknown"),
        ("corpus", f"{_count(plan.num_rows)} rows ({plan.corpus_origin})"),
        (
            "tokens",
            f"{_count(plan.num_tokens)} in the run, {masking.rate:.0%} of them hidden ({masking.kind})",
        ),
        ("evaluations", f"{_count(plan.num_evaluations)}, and one at step 0"),
        ("saves", f"{_count(plan.num_saves)} (every {recipe.checkpoint.every})"),
        ("precision", plan.precision),
        ("sharding", _describe_layout(plan)),
        ("memory", _describe_memory(plan)),
        ("time", _describe_time(plan)),
    ]
    if plan.time.get("origin") == "assumed":
        lines.append(("a step", _describe_step(plan.time)))
    if plan.scaling:
        lines.append(("devices", _describe_scaling(plan.scaling)))
    return [*lines, ("run folder", plan.output)]


def _describe_model(plan: Plan) -> str:
    if plan.num_parameters is None:
        return "its sizes are not known before it is loaded"
    return f"{plan.num_parameters / 1e6:,.1f} M parameters (derived; sizes from {plan.sizes_origin})"


def _count(number: int | None) -> str:
    return "unknown" if number is None else f"{number:,}"


def _describe_layout(plan: Plan) -> str:
    parts = [f"ZeRO-{plan.zero_stage}" if plan.zero_stage is not None else "none"]
    parts += [f"{plan.offload} in CPU memory"] if plan.offload else []
    parts += ["gradient checkpointing"] if plan.gradient_checkpointing else []
    parts += [f"loss in chunks of {plan.loss_chunk:,} targets"] if plan.loss_chunk else []
    return ", ".join(parts)


def _gib(num_bytes: float) -> str:
    return f"{num_bytes / _GIB:.1f}"


def _describe_terms(terms: dict[str, int], assumed: list[str]) -> str:
    """The large terms, the largest first; `~` before those that nothing here can know."""
    large = sorted(terms.items(), key=lambda item: -item[1])
    total = sum(terms.values())
    return ", ".join(
        f"{name} {'~' if name in assumed else ''}{_gib(size)}"
        for name, size in large
        if size >= _MIN_SHARE * total
    )


def _describe_memory(plan: Plan) -> str:
    found = plan.memory
    if found is None:
        return "not predicted"
    terms, assumed = found["terms"], found["assumed"]
    text = f"{_gib(found['cpu_bytes'])} GiB of CPU memory: {_describe_terms(terms['cpu'], assumed)}"
    if found["limit_bytes"]:
        on_card = f"{_gib(found['gpu_bytes'])} of {_gib(found['limit_bytes'])} GiB on the card: "
        text = f"{on_card}{_describe_terms(terms['gpu'], assumed)}; {text}"
    return f"{text} (predicted, {found['origin']}; ~ assumed)"


def _describe_time(plan: Plan) -> str:
    time = plan.time
    if not time:
        return "not predicted: --calibrate measures it here"
    whole = "" if plan.seconds is None else f"{describe_hours(plan.seconds)}: "
    text = f"{whole}{_count(plan.num_steps)} steps of {_milliseconds(time['step'])}"
    if time["origin"] == "assumed":
        text += f", evaluations {describe_hours(time['evaluations'])}, saves {describe_hours(time['saves'])}"
    share = "" if time["mfu"] is None else f" {time['mfu']:.0%} of the peak"
    return f"{text} ({time['origin']}{share})"


def _describe_step(time: dict[str, Any]) -> str:
    names = ("compute", "recompute", "optimizer", "offload", "communication")
    parts = [f"{name} {_milliseconds(time[name])}" for name in names if time[name] > 0]
    return f"{', '.join(parts)}; data is prepared beside it in {_milliseconds(time['feed'])}"


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:,.1f} ms" if seconds < 0.1 else f"{seconds:,.2f} s"


def _describe_scaling(scaling: dict[str, Any]) -> str:
    size = scaling["communication_bytes_per_step"]
    text = f"{scaling['rows_per_device']:,} rows each; each sends {size / 1e6:,.0f} MB a step"
    if "efficiency" in scaling:
        text += f" ({_milliseconds(scaling['communication_seconds_per_step'])}); "
        text += f"expected efficiency {scaling['efficiency']:.0%}"
    return text


def _draw_ladder(plan: Plan) -> Table:
    table = Table(box=None, header_style="dim", pad_edge=False)
    for name in ("", "way", "rows at once", "GiB card", "GiB CPU", "a step"):
        table.add_column(name, justify="left" if name in ("", "way") else "right", no_wrap=name != "way")
    taken = (plan.sharding, plan.gradient_checkpointing, plan.loss_chunk)
    for rung in plan.ladder:
        is_taken = rung["fits"] and (rung["sharding"], rung["checkpointing"], rung["loss_chunk"]) == taken
        mark = "[green]>[/]" if is_taken else " " if rung["fits"] else "[red]x[/]"
        seconds = rung["step_seconds"]
        table.add_row(
            mark,
            escape(rung["name"]),
            f"{rung['micro_batch']:,}",
            _gib(rung["gpu_bytes"]),
            _gib(rung["cpu_bytes"]),
            "" if seconds is None else _milliseconds(seconds),
        )
    return table
