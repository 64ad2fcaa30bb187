"""Examples: rows of the evaluation with what the model puts in their hidden places, and its hardest words.

Shapes: N pieces of a row, K targets of a batch, V classes of the head.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipes.masking import FROZEN_EPOCH, Masking
from data_pipes.masks.units import find_words
from data_pipes.order import permute
from launch.blank import Characters, Words
from launch.build import build_layout, build_masking
from launch.judging.passes import FrozenPass, Runner, read_output
from launch.judging.scored import Scored, Sheet
from launch.judging.suite import keep_logits

if TYPE_CHECKING:
    from launch.build import Job
    from launch.watching.track import Tracker

# Of a large evaluation a part: some 5,000 targets, seconds on two cores.
_MAX_PIECES = 32_768
_NUM_EXAMPLES = 12
_NUM_FILLS = 5
_NUM_WORDS = 15
_ENOUGH_WORDS = 16
# A long row is shown in part: so many pieces, of which so many come before the first hidden one.
_MAX_SHOWN, _MAX_BEFORE = 64, 16
# A word that was hidden once says little; where few were hidden more often, rarer ones must do.
_LEAST_COUNTS = (10, 5, 3, 2, 1)


@dataclass(frozen=True)
class ChosenRows:
    """Some rows of a frozen pass, which are hidden as they are among all."""

    source: FrozenPass
    row_ids: np.ndarray

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each."""
        return np.asarray(self.source.lengths)[self.row_ids]

    def load(self, items: np.ndarray) -> Sheet:
        """The named ones."""
        return self.source.load(self.row_ids[items])


def log_examples(job: "Job", tracker: "Tracker", step: int) -> None:
    """Log a dozen evaluation rows with the model's fills, and the words with the highest and lowest loss.

    All ranks call it. Under ZeRO-3, where each has a part of the weights, all run the same batches; else the
    main process does alone. Of an evaluation with more than 32,768 pieces a random part is read.
    """
    if not job.accelerator.is_main_process and job.plan.zero_stage != 3:
        return
    masking = build_masking(job.recipe, job.tokenizer, job.store, is_frozen=True)
    seed = job.recipe.evaluation.seed
    rows = FrozenPass(job.store.evaluation, masking, seed)
    chosen = choose_rows(np.asarray(rows.lengths), seed)
    layout = build_layout(job.recipe, job.tokenizer, job.store)
    runner = Runner(layout, job.plan.evaluation_batch, job.accelerator.device)
    model = job.masked_lm
    names = Names(model.config, job.tokenizer)
    tally = Tally(names)
    with _judging(model) as chunk:
        if chunk is not None:
            most = int(masking.rate * np.max(rows.lengths, initial=0)) + 1
            runner = replace(runner, micro_batch=max(1, min(runner.micro_batch, chunk // most)))
        for scored, _ in _score(model, runner, ChosenRows(rows, chosen)):
            tally.add(scored)
        for scored, logits_KV in _score(model, runner, ChosenRows(rows, chosen[:_NUM_EXAMPLES])):
            for example in describe_rows(scored, names.rank_fills(logits_KV), names, masking):
                tracker.log("example", step, **example)
    tracker.log("words", step, num_rows=len(chosen), **tally.describe())


def choose_rows(lengths: np.ndarray, seed: int) -> np.ndarray:
    """Row numbers in a random order that the seed decides, as many as hold 32,768 pieces; int64."""
    if not len(lengths):
        return np.zeros(0, np.int64)
    order = permute(np.arange(len(lengths)), num_rows=len(lengths), seed=seed, epochs=FROZEN_EPOCH)
    num_before = np.append(0, np.cumsum(lengths[order], dtype=np.int64))[:-1]
    return order[num_before < _MAX_PIECES]


class Names:
    """How pieces and classes of the head are written."""

    def __init__(self, config: Any, tokenizer: Any):
        self.is_characters = config.model_type == "canine"
        self._tokenizer = tokenizer
        self._reader = Characters(config) if self.is_characters else Words(config, tokenizer)

    def rank_fills(self, logits_KV: Tensor) -> list[list[dict[str, Any]]]:
        """The most probable classes of each target, best first; special pieces are left out."""
        if not len(logits_KV):
            return []
        is_candidate_V = self._reader.is_candidate_V.to(logits_KV.device)
        scores_KV = logits_KV.double()
        log_sums_K1 = scores_KV.logsumexp(-1, keepdim=True)
        num_fills = min(_NUM_FILLS, int(is_candidate_V.sum()))
        values_KT, ids_KT = scores_KV.masked_fill(~is_candidate_V, -torch.inf).topk(num_fills, dim=-1)
        shares = (values_KT - log_sums_K1).exp().tolist()
        return [
            [
                {"piece": clean(self._reader.show(i)), "probability": p}
                for i, p in zip(own, values, strict=True)
            ]
            for own, values in zip(ids_KT.tolist(), shares, strict=True)
        ]

    def write(self, pieces: np.ndarray) -> str:
        """Pieces as text."""
        if self.is_characters:
            return clean("".join(map(chr, pieces.tolist())))
        return clean(str(self._tokenizer.decode(pieces.tolist(), clean_up_tokenization_spaces=False)))

    def write_each(self, pieces: np.ndarray) -> list[str]:
        """What each piece adds to the text of those before it, its space with it."""
        texts, before = [], ""
        for stop in range(1, len(pieces) + 1):
            text = self.write(pieces[:stop])
            is_longer = text.startswith(before)
            texts.append(text[len(before) :] if is_longer else f" {self.write(pieces[stop - 1 : stop])}")
            before = text
        return texts


class Tally:
    """Sums of losses by the word of the target, or by the character."""

    def __init__(self, names: Names):
        self._names = names
        self._texts: dict[bytes, str] = {}
        self._sums: dict[str, list[float]] = {}
        self._num_targets = 0

    def add(self, scored: Scored) -> None:
        """Add a sheet. Of a word in several pieces each hidden one counts."""
        rows, places = scored.sheet.rows, scored.sheet.places
        bounds = np.arange(len(rows.pieces) + 1) if self._names.is_characters else find_words(rows)
        number = np.searchsorted(bounds, places, side="right") - 1
        words, firsts, counts = np.unique(number, return_index=True, return_counts=True)
        losses = np.add.reduceat(scored.losses, firsts) if len(words) else np.zeros(0)
        for word, loss, count in zip(words.tolist(), losses.tolist(), counts.tolist(), strict=True):
            pieces = rows.pieces[bounds[word] : bounds[word + 1]]
            text = self._texts.get(key := pieces.tobytes())
            if text is None:
                text = self._texts[key] = self._names.write(pieces).strip() or self._names.write(pieces)
            sums = self._sums.setdefault(text, [0.0, 0, 0])
            sums[0] += loss
            sums[1] += count
            sums[2] += 1
        self._num_targets += len(places)

    def describe(self) -> dict[str, Any]:
        """The words with the highest and the lowest mean loss of a target, of those hidden often enough."""
        means = [
            {"text": text, "loss": loss / num_targets, "count": int(count)}
            for text, (loss, num_targets, count) in self._sums.items()
        ]
        least = next(
            (n for n in _LEAST_COUNTS if sum(one["count"] >= n for one in means) >= _ENOUGH_WORDS), 1
        )
        ordered = sorted(
            (one for one in means if one["count"] >= least), key=lambda w: (-w["loss"], w["text"])
        )
        half = min(_NUM_WORDS, (len(ordered) + 1) // 2)
        return {
            "unit": "character" if self._names.is_characters else "word",
            "num_targets": self._num_targets,
            "num_units": len(means),
            "least_count": least,
            "worst": ordered[:half],
            "best": ordered[half:][::-1][:_NUM_WORDS],
        }


def describe_rows(
    scored: Scored, fills: list[list[dict[str, Any]]], names: Names, masking: Masking
) -> Iterator[dict[str, Any]]:
    """Rows as plain data: parts of text, and of each hidden place the truth, what was shown, rank and fills.

    Args:
        scored: of some rows.
        fills: of each target.
        names: write pieces.
        masking: that hid them.
    """
    sheet = scored.sheet
    target_of = np.cumsum(sheet.hidden.is_target) - 1
    for row_id, start, stop in zip(sheet.row_ids, sheet.rows.offsets, sheet.rows.offsets[1:], strict=False):
        first, last = find_window(sheet, int(start), int(stop), masking.special_pieces)
        parts: list[dict[str, Any]] = []
        losses = []
        for place, text in enumerate(names.write_each(sheet.rows.pieces[first:last]), start=first):
            if not sheet.hidden.is_target[place]:
                _add_text(parts, text)
                continue
            target, given = int(target_of[place]), sheet.hidden.inputs[place]
            losses.append(float(scored.losses[target]))
            _add_text(parts, text[: len(text) - len(text.lstrip())] if not names.is_characters else "")
            parts.append(
                {
                    "hidden": text if names.is_characters else text.lstrip(),
                    "shown": _find_fate(given, sheet.rows.pieces[place], masking.mask_piece),
                    "rank": int(scored.ranks[target]) + 1,
                    "loss": losses[-1],
                    "fills": fills[target],
                }
            )
        if losses:
            yield {
                "row": int(row_id),
                "loss": sum(losses) / len(losses),
                "parts": parts,
            }


def find_window(sheet: Sheet, start: int, stop: int, special_pieces: np.ndarray) -> tuple[int, int]:
    """What is shown of the row from start to stop: of its text with most hidden, up to 64 pieces.

    Documents that are packed into a row stand between special pieces and have nothing to do with each other.
    """
    is_special = np.isin(sheet.rows.pieces[start:stop], special_pieces)
    edges = np.flatnonzero(np.diff(np.concatenate([[True], is_special, [True]]).astype(np.int8)))
    runs = [(start + first, start + last) for first, last in zip(edges[::2], edges[1::2], strict=True)]
    is_target = sheet.hidden.is_target
    if not runs:
        return start, start
    first, last = max(runs, key=lambda run: int(is_target[run[0] : run[1]].sum()))
    hidden = np.flatnonzero(is_target[first:last])
    if last - first > _MAX_SHOWN and len(hidden):
        first = max(first, min(first + int(hidden[0]) - _MAX_BEFORE, last - _MAX_SHOWN))
    return int(first), int(min(last, first + _MAX_SHOWN))


def clean(text: str) -> str:
    """A text that can be written as UTF-8."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _find_fate(given: int, piece: int, mask_piece: int) -> str:
    if given == mask_piece:
        return "masked"
    return "kept" if given == piece else "random"


def _add_text(parts: list[dict[str, Any]], text: str) -> None:
    if text and parts and "text" in parts[-1]:
        parts[-1]["text"] += text
    elif text:
        parts.append({"text": text})


@contextmanager
def _judging(model: nn.Module) -> Iterator[int | None]:
    """The model in the mode of an evaluation, giving all logits; how many it would have had at a time."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad(), keep_logits(model) as chunk:
            yield chunk
    finally:
        model.train(was_training)


def _score(model: nn.Module, runner: Runner, rows: ChosenRows) -> Iterator[tuple[Scored, Tensor]]:
    for sheet, batch, _ in runner.collate(rows):
        output = model(**batch)
        yield read_output(model, sheet, batch["labels"], output), output["logits"]
