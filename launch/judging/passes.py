"""Passes: rows with something hidden, batch by batch, and what a model makes of them.

Shapes: R rows of a batch, K targets, S spans, M copies of rows.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from data_pipes.collate import NOT_A_TARGET, Batch, Layout, collate
from data_pipes.feed import move_batch
from data_pipes.masking import FROZEN_EPOCH, Hidden, Masking, hide
from data_pipes.ordering.division import deal
from data_pipes.rows import RowSource
from launch.judging.scored import Scored, Sheet, map_classes, score_logits
from modeling.heads import find_targets

_TICK_EVERY = 8
"""Batches between two calls of a runner's tick."""


class Pass(Protocol):
    """Items, one row each, that can be loaded in any grouping."""

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each item, integers."""
        ...

    def load(self, items: np.ndarray) -> Sheet:
        """The rows of some items, with what is hidden."""
        ...


@dataclass(frozen=True)
class FrozenPass:
    """All rows of a source under masks that never change: the items are the rows."""

    source: RowSource
    masking: Masking
    seed: int

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each row."""
        return self.source.lengths

    def load(self, items: np.ndarray) -> Sheet:
        """The named rows."""
        rows = self.source.take(items)
        epochs = np.full(len(items), FROZEN_EPOCH)
        hidden = hide(rows, self.masking, row_ids=items, epochs=epochs, seed=self.seed)
        return Sheet(items, rows, hidden, np.zeros(0, np.int64))


@dataclass(frozen=True)
class Spans:
    """Runs of pieces of rows.

    Attributes:
        rows: int64 [S], which row of a source.
        firsts: int64 [S], place of the first piece in its row.
        lengths: int64 [S], pieces.
        documents: int64 [S], which document of the row.
    """

    rows: np.ndarray
    firsts: np.ndarray
    lengths: np.ndarray
    documents: np.ndarray

    @property
    def num_spans(self) -> int:
        """S."""
        return len(self.rows)

    def take(self, indices: np.ndarray) -> "Spans":
        """Some of them."""
        return Spans(*(values[indices] for values in self._columns))

    @property
    def _columns(self) -> tuple[np.ndarray, ...]:
        return self.rows, self.firsts, self.lengths, self.documents


@dataclass(frozen=True)
class SpanPass:
    """Copies of rows in which spans are hidden, all their pieces as mask pieces.

    Spans of one document never share a copy, unless `together`. Documents of a row do not see each other, so
    spans of different ones may: the model answers as if each were alone.
    """

    source: RowSource
    spans: Spans
    mask_piece: int
    together: bool = False
    _rows: np.ndarray = field(init=False, repr=False)
    _order: np.ndarray = field(init=False, repr=False)
    _bounds: np.ndarray = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Deal spans to copies."""
        spans = self.spans
        copies = np.zeros(spans.num_spans, np.int64) if self.together else _number_within(spans)
        order = np.lexsort((spans.firsts, copies, spans.rows))
        rows, copies = spans.rows[order], copies[order]
        is_new = np.append(True, (rows[1:] != rows[:-1]) | (copies[1:] != copies[:-1]))[: len(order)]
        firsts = is_new.nonzero()[0]
        object.__setattr__(self, "_rows", rows[firsts])
        object.__setattr__(self, "_order", order)
        object.__setattr__(self, "_bounds", np.append(firsts, len(order)))

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each copy."""
        return np.asarray(self.source.lengths)[self._rows]

    def load(self, items: np.ndarray) -> Sheet:
        """The named copies; owners are numbers of spans, the last one where spans overlap."""
        rows = self.source.take(self._rows[items])
        counts = self._bounds[items + 1] - self._bounds[items]
        chosen = self._order[_expand(self._bounds[items], counts)]
        lengths = self.spans.lengths[chosen]
        origins = rows.offsets[:-1].repeat(counts) + self.spans.firsts[chosen]
        places = _expand(origins, lengths)
        owners = np.full(len(rows.pieces), -1)
        owners[places] = chosen.repeat(lengths)
        is_target = owners >= 0
        inputs = np.where(is_target, np.uint32(self.mask_piece), rows.pieces)
        return Sheet(self._rows[items], rows, Hidden(inputs, is_target), owners[is_target])


def _number_within(spans: Spans) -> np.ndarray:
    """The number of each span among those of its document, int64 [S]."""
    order = np.lexsort((spans.firsts, spans.documents, spans.rows))
    rows, documents = spans.rows[order], spans.documents[order]
    is_new = np.append(True, (rows[1:] != rows[:-1]) | (documents[1:] != documents[:-1]))[: len(order)]
    starts = np.maximum.accumulate(np.where(is_new, np.arange(len(order)), 0))
    numbers = np.empty(len(order), np.int64)
    numbers[order] = np.arange(len(order)) - starts
    return numbers


def _expand(firsts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """All places of runs, run after run, int64."""
    ends = lengths.cumsum()
    return (firsts - ends + lengths).repeat(lengths) + np.arange(int(lengths.sum()))


@dataclass(frozen=True)
class Runner:
    """How passes are cut into batches and dealt to ranks.

    Attributes:
        layout: how rows become tensors.
        micro_batch: rows at once.
        device: where models are.
        rank: of this process.
        world_size: ranks; each runs the model equally often, as ranks must that share out its weights.
        tick: called every few batches, by all ranks at the same ones; what it raises ends the pass.
    """

    layout: Layout
    micro_batch: int
    device: torch.device
    rank: int = 0
    world_size: int = 1
    tick: Callable[[], None] | None = None

    def deal(self, lengths: np.ndarray) -> list[tuple[int, np.ndarray]]:
        """(number, items) of the batches of this rank; as `FrozenBatches` deals them."""
        return deal(lengths, micro_batch=self.micro_batch, rank=self.rank, world_size=self.world_size)

    def collate(self, rows: Pass) -> Iterator[tuple[Sheet, Batch, bool]]:
        """This rank's sheets as batches; those that only keep the ranks together do not count."""
        lengths = np.asarray(rows.lengths)
        own = [items for _, items in self.deal(lengths)]
        num_batches = -(-len(lengths) // self.micro_batch)
        num_idle = -(-num_batches // self.world_size) - len(own)
        idle = [np.array([lengths.argmin()])] * num_idle if num_idle else []
        for number, items in enumerate([*own, *idle]):
            if self.tick is not None and number % _TICK_EVERY == 0:
                self.tick()
            sheet, is_counted = rows.load(items), number < len(own)
            batch = move_batch(collate(sheet.rows, sheet.hidden, self.layout), self.device)
            if not is_counted:
                batch["labels"] = torch.full_like(batch["labels"], NOT_A_TARGET)
            yield sheet, batch, is_counted

    def score(self, model: nn.Module, rows: Pass) -> Iterator[Scored]:
        """What the model says at the targets of this rank's batches."""
        for sheet, batch, is_counted in self.collate(rows):
            with torch.no_grad():
                output = model(**batch)
            if is_counted:
                yield read_output(model, sheet, batch["labels"], output)


def read_output(model: nn.Module, sheet: Sheet, labels: Tensor, output: Any) -> Scored:
    """Scores of a batch that the model has seen.

    Raises:
        ValueError: the model gave no logits at the targets.
    """
    logits = output.get("logits")
    targets = find_targets(labels if logits is None else labels.to(logits.device))
    if logits is None or logits.shape[:1] != targets.labels.shape:
        raise ValueError(
            f"{type(model).__name__} gave no logits of its {len(targets.labels)} targets: "
            "put it into eval mode"
        )
    losses, ranks = score_logits(logits, map_classes(model, targets.labels))
    return Scored(sheet, losses, ranks)
