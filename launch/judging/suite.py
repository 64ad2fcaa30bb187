"""The suite: all metrics that a recipe asks for, measured on one model and summed over the ranks."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import torch
from torch import nn

from data_pipes.rows import Rows
from launch.engine import sum_over_ranks
from launch.judging.counts import ClassMetric
from launch.judging.groups import Grouping
from launch.judging.metrics import SpanMetric, SummedMetric
from launch.judging.passes import FrozenPass, Runner, SpanPass, read_output
from launch.judging.probe import Examples, classify, encode_rows
from launch.judging.scored import Scored
from modeling.pair import list_parts


@dataclass(frozen=True)
class Section:
    """The targets of one corpus under frozen masks.

    Attributes:
        rows: all of them.
        groupings: what is measured.
    """

    rows: FrozenPass
    groupings: list[Grouping]

    def add(self, scored: Scored) -> None:
        """Add a sheet to every metric."""
        for grouping in self.groupings:
            grouping.add(scored)


@dataclass(frozen=True)
class SpanSection:
    """Hidden spans of a corpus.

    Attributes:
        prefix: of the figures' names.
        rows: copies of rows.
        clusters: int64 [spans], what each span is an occurrence of.
        metric: what adds up.
    """

    prefix: str
    rows: SpanPass
    clusters: np.ndarray
    metric: SpanMetric

    def add(self, scored: Scored) -> None:
        """Add the spans of a sheet, each of which lies in it in full."""
        spans, number = np.unique(scored.sheet.owners, return_inverse=True)
        num_pieces = np.bincount(number, minlength=len(spans))
        self.metric.add_batch(
            cluster=self.clusters[spans],
            loss=np.bincount(number, scored.losses, len(spans)),
            num_pieces=num_pieces,
            is_right=np.bincount(number, scored.ranks == 0, len(spans)) == num_pieces,
        )


@dataclass(frozen=True)
class ProbeSection:
    """A probe on labelled texts."""

    prefix: str
    rows: Rows
    examples: Examples
    metric: ClassMetric


@dataclass
class Suite:
    """What is measured beside the plain score.

    Attributes:
        runner: cuts rows into batches, as the evaluation does.
        main: the evaluation rows.
        others: further corpora.
        spans: of all of them.
        probes: on labelled texts.
        constants: figures that do not depend on the model.
    """

    runner: Runner
    main: Section
    others: list[Section] = field(default_factory=list)
    spans: list[SpanSection] = field(default_factory=list)
    probes: list[ProbeSection] = field(default_factory=list)
    constants: dict[str, float] = field(default_factory=dict)
    _is_seen: bool = field(default=False, init=False)

    def restart(self) -> None:
        """Forget what an evaluation that was cut short had observed."""
        self._is_seen = False
        for _, metric in self._list_metrics():
            metric.compute()

    def observe(self, number: int, labels: torch.Tensor, model: nn.Module, output: Any) -> None:
        """Read a batch of the evaluation on its way, which saves a pass.

        Args:
            number: of the batch.
            labels: [B, L].
            model: that was run.
            output: what it gave. Without logits (those of a generator with its discriminator, or of a loss in
                chunks) the rows are run again.
        """
        if output.get("logits") is not None:
            self._is_seen = True
            sheet = self.main.rows.load(self._rows_of_batch[number])
            self.main.add(read_output(model, sheet, labels, output))

    @cached_property
    def _rows_of_batch(self) -> Mapping[int, np.ndarray]:
        return dict(self.runner.deal(np.asarray(self.main.rows.lengths)))

    def measure(self, model: nn.Module, tick: Callable[[], None] | None = None) -> dict[str, float]:
        """All figures by name, `eval/<corpus>/<metric>`; what there is nothing to measure for is left out.

        Every rank calls it, after `observe` has seen its batches or none.

        Args:
            model: the bare one.
            tick: see `Runner`.
        """
        was_training, device = model.training, self.runner.device
        model.eval()
        try:
            self._run(model, replace(self.runner, tick=tick))
        finally:
            model.train(was_training)
        self._is_seen = False
        metrics = self._list_metrics()
        _exchange_states([metric for _, metric in metrics], device)
        found = dict(self.constants)
        for prefix, metric in metrics:
            found |= {f"eval/{prefix}{name}": value for name, value in metric.compute().items()}
        return found

    def _run(self, model: nn.Module, runner: Runner) -> None:
        """Fill this rank's metrics."""
        masked_lm = next(list_parts(model))
        # A rank without a batch has seen none, and must do as the others do.
        is_seen = sum_arrays(np.array([float(self._is_seen)]), runner.device)[0] > 0
        sections: list[Section | SpanSection] = [
            *([] if is_seen else [self.main]),
            *self.others,
            *self.spans,
        ]
        with keep_logits(masked_lm) as chunk:
            for section in sections:
                fitting = runner if chunk is None else _shrink(runner, section, chunk)
                for scored in fitting.score(masked_lm, section.rows):
                    section.add(scored)
        for probe in self.probes:
            ids, features = encode_rows(model, probe.rows, runner)
            classify(
                features, ids, probe.examples, probe.metric, lambda sums: sum_arrays(sums, runner.device)
            )

    def _list_metrics(self) -> list[tuple[str, SummedMetric]]:
        found: list[tuple[str, SummedMetric]] = [
            (grouping.prefix, grouping.metric)
            for section in (self.main, *self.others)
            for grouping in section.groupings
        ]
        return found + [(section.prefix, section.metric) for section in (*self.spans, *self.probes)]


@contextmanager
def keep_logits(model: nn.Module) -> Iterator[int | None]:
    """Have a model give the logits of all targets; how many it would have had at a time."""
    chunk = getattr(model, "loss_chunk", None)
    if chunk is not None:
        model.loss_chunk = None  # pyright: ignore[reportArgumentType]
    try:
        yield chunk
    finally:
        if chunk is not None:
            model.loss_chunk = chunk


def _shrink(runner: Runner, section: Section | SpanSection, chunk: int) -> Runner:
    """Fewer rows at once, so that about a chunk of targets has logits; rows with one span have few anyway."""
    if isinstance(section, SpanSection):
        return runner
    num_targets = int(section.rows.masking.rate * np.max(section.rows.lengths, initial=0)) + 1
    return replace(runner, micro_batch=max(1, min(runner.micro_batch, chunk // num_targets)))


def _exchange_states(metrics: list[SummedMetric], device: torch.device) -> None:
    """Replace the state of every metric by the sum over the ranks."""
    states = [metric.state for metric in metrics]
    values = [state[name].ravel() for state in states for name in state]
    flat = sum_arrays(np.concatenate([np.zeros(0), *values]), device)
    start = 0
    for state in states:
        for name, value in state.items():
            state[name] = flat[start : start + value.size].reshape(value.shape)
            start += value.size


def sum_arrays(sums: np.ndarray, device: torch.device) -> np.ndarray:
    """The sum over all ranks of a float64 array, on every rank."""
    return sum_over_ranks(torch.from_numpy(sums).to(device)).cpu().numpy()
