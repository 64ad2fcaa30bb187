"""A probe: a linear classifier on frozen features, in closed form from sums.

Linear discriminant analysis: classes share one covariance, shrunk towards a multiple of the identity as far
as helps on folds of the training examples. Its sums (counts, class sums, second moments) add up over ranks,
and no step is random.

Shapes: E examples, D features, C classes.
"""

import csv
import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import reduce
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from data_pipes.collate import Batch
from data_pipes.masking import Hidden
from data_pipes.rows import Rows
from launch.judging.counts import ClassMetric
from launch.judging.passes import Runner
from launch.judging.scored import Sheet
from launch.recipe_metrics import Probe
from launch.verdict import REQUEST, RunError
from modeling.encoding import DebertaEncoding
from modeling.rtd import RtdModel

# Features on a grid of 2^-12 and below 2^7 have products whose sums over 2^15 examples are exact in float64.
_FEATURE_GRID, _FEATURE_LIMIT = 2.0**12, 127.0
# Shares of the mean variance; under the last one every answer is the most common class.
_NUM_FOLDS = 5
_SHRINKAGES = (1e-3, 1e-2, 1e-1, 1.0, 10.0, 1e6)

Exchange = Callable[[np.ndarray], np.ndarray]


@dataclass(frozen=True)
class Examples:
    """E labelled texts.

    Attributes:
        texts: in no meaning order.
        labels: int64 [E], classes.
        is_train: bool [E].
        classes: names.
    """

    texts: tuple[str, ...]
    labels: np.ndarray
    is_train: np.ndarray
    classes: tuple[str, ...]


@dataclass(frozen=True)
class Moments:
    """Sums over examples: counts [C], sums [C, D] and second moments [D, D], float64."""

    counts: np.ndarray
    sums: np.ndarray
    second: np.ndarray

    @classmethod
    def of(cls, features_ED: np.ndarray, labels: np.ndarray, num_classes: int) -> "Moments":
        """Add up some examples."""
        one_hot_EC = np.eye(num_classes)[labels]
        return cls(one_hot_EC.sum(0), one_hot_EC.T @ features_ED, features_ED.T @ features_ED)

    def exchange(self, add: Exchange) -> "Moments":
        """With those of the other ranks."""
        parts = (self.counts, self.sums, self.second)
        flat = add(np.concatenate([part.ravel() for part in parts]))
        ends = np.cumsum([part.size for part in parts])[:-1]
        return Moments(*(p.reshape(s.shape) for p, s in zip(np.split(flat, ends), parts, strict=True)))

    def add(self, other: "Moments", sign: int = 1) -> "Moments":
        """With the examples of another, or without them."""
        parts = zip(
            (self.counts, self.sums, self.second), (other.counts, other.sums, other.second), strict=True
        )
        return Moments(*(mine + sign * theirs for mine, theirs in parts))

    def fit(self, shrinkage: float) -> tuple[np.ndarray, np.ndarray]:
        """Weights [D, C] and offsets [C] of the classifier; a class without examples is never answered."""
        num_examples, num_features = self.counts.sum(), self.second.shape[0]
        means_CD = self.sums / np.maximum(self.counts, 1)[:, None]
        centre_D = self.sums.sum(0) / num_examples
        within_DD = (self.second - (means_CD * self.counts[:, None]).T @ means_CD) / num_examples
        scale = np.trace(within_DD) / num_features or 1.0
        weights_DC = np.linalg.solve(
            within_DD + shrinkage * scale * np.eye(num_features), (means_CD - centre_D).T
        )
        with np.errstate(divide="ignore"):
            priors = np.log(self.counts / num_examples)
        offsets = priors - 0.5 * ((means_CD + centre_D) * weights_DC.T).sum(1)
        return weights_DC, offsets


def read_examples(settings: Probe, seed: int) -> Examples:
    """The examples of a probe, chosen by hash.

    Raises:
        RunError: the file cannot be used.
    """
    place = f"the probe {settings.name}: {settings.path}"
    chosen: dict[bool, list[tuple[int, str, str]]] = {True: [], False: []}
    try:
        for record in _read_records(Path(settings.path)):
            text, label = str(record[settings.text_key]), str(record[settings.label_key])
            digest = hashlib.blake2b(f"{seed}\t{text}".encode(), digest_size=16).digest()
            key, bucket = int.from_bytes(digest[:8], "big"), digest[8]
            split = record[settings.split_key] if settings.split_key else None
            chosen[bucket % 5 > 0 if split is None else split == "train"].append((key, text, label))
    except (OSError, ValueError, csv.Error) as error:
        raise RunError(REQUEST, f"{place} cannot be read: {error}") from error
    except KeyError as error:
        raise RunError(REQUEST, f"{place} has a record without the field {error}") from error
    train = sorted(set(chosen[True]))[: settings.num_examples]
    test = sorted(set(chosen[False]))[: settings.num_examples // 2]
    classes = sorted({label for _, _, label in train})
    if len(classes) < 2 or not test:
        raise RunError(
            REQUEST,
            f"{place} gives {len(classes)} classes and {len(test)} records to test on; wanted two classes in "
            "training, and records that are not for training",
        )
    number_of = {label: number for number, label in enumerate(classes)}
    known = [*train, *((key, text, label) for key, text, label in test if label in number_of)]
    is_train = np.arange(len(known)) < len(train)
    return Examples(
        texts=tuple(text for _, text, _ in known),
        labels=np.array([number_of[label] for _, _, label in known]),
        is_train=is_train,
        classes=tuple(classes),
    )


def _read_records(path: Path) -> Iterator[dict[str, Any]]:
    if path.suffix not in (".jsonl", ".tsv", ".csv"):
        raise ValueError("wanted a file .jsonl, .tsv or .csv")
    with path.open(encoding="utf-8-sig", newline="") as lines:
        if path.suffix == ".jsonl":
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _read_object(line, number)
        else:
            quoting = csv.QUOTE_NONE if path.suffix == ".tsv" else csv.QUOTE_MINIMAL
            delimiter = "\t" if path.suffix == ".tsv" else ","
            yield from csv.DictReader(lines, delimiter=delimiter, quoting=quoting)


def _read_object(line: str, number: int) -> dict[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"line {number:,} is no JSON ({error}); wanted one object a line") from error
    if not isinstance(record, dict):
        raise ValueError(f"line {number:,} is {line.strip()[:40]}; wanted a JSON object with named fields")
    return record


@dataclass(frozen=True)
class PlainPass:
    """Rows with nothing hidden."""

    rows: Rows

    @property
    def lengths(self) -> np.ndarray:
        """Pieces in each row."""
        return self.rows.lengths

    def load(self, items: np.ndarray) -> Sheet:
        """The named rows."""
        rows = self.rows.take(items)
        hidden = Hidden(rows.pieces, np.zeros(len(rows.pieces), bool))
        return Sheet(items, rows, hidden, np.zeros(0, np.int64))


def encode_rows(model: nn.Module, rows: Rows, runner: Runner) -> tuple[np.ndarray, np.ndarray]:
    """This rank's rows, int64 [E], and the mean of the encoder's last states in each, float64 [E, D]."""
    ids, features = [np.zeros(0, np.int64)], []
    for sheet, batch, is_counted in runner.collate(PlainPass(rows)):
        with torch.no_grad():
            hidden_BLD = encode_batch(model, batch)
        mask_BL1 = batch["attention_mask"][:, : hidden_BLD.shape[1], None]
        mean_BD = (hidden_BLD.double() * mask_BL1).sum(1) / mask_BL1.sum(1)
        if is_counted or not features:
            ids.append(sheet.row_ids if is_counted else ids[0])
            features.append(mean_BD.cpu().numpy()[: len(ids[-1])])
    rounded = np.rint(np.concatenate(features) * _FEATURE_GRID) / _FEATURE_GRID
    return np.concatenate(ids), rounded.clip(-_FEATURE_LIMIT, _FEATURE_LIMIT)


def encode_batch(model: Any, batch: Batch) -> Tensor:
    """The last states [B, L, D] of the encoder that a masked language model, or a discriminator, holds."""
    input_ids, mask = batch["input_ids"], batch["attention_mask"]
    if isinstance(model, RtdModel):
        # The discriminator's own embedding holds the difference to the generator's.
        shared, own = model.generator.get_input_embeddings(), model.discriminator.get_input_embeddings()
        options = {"inputs_embeds": shared(input_ids) + own(input_ids)}
        encoded = model.discriminator.encode(None, mask, options=options)
    elif isinstance(model, DebertaEncoding):
        encoded = model.encode(input_ids, mask, options={})
    else:
        encoded = model.base_model(input_ids=input_ids, attention_mask=mask)
    assert encoded.last_hidden_state is not None
    return encoded.last_hidden_state


def classify(
    features_ED: np.ndarray, ids: np.ndarray, examples: Examples, metric: ClassMetric, add: Exchange
) -> None:
    """Fit on the training examples of all ranks and put this rank's test examples into the metric.

    Args:
        features_ED: of this rank's examples.
        ids: which examples they are.
        examples: of all ranks.
        metric: gets labels and answers.
        add: sums float64 arrays over the ranks.
    """
    num_classes, labels = len(examples.classes), examples.labels[ids]
    is_train, folds = examples.is_train[ids], ids % _NUM_FOLDS
    chosen = [is_train & (folds == fold) for fold in range(_NUM_FOLDS)]
    parts = [Moments.of(features_ED[own], labels[own], num_classes).exchange(add) for own in chosen]
    whole = reduce(Moments.add, parts)
    num_right = np.zeros(len(_SHRINKAGES))
    for own, part in zip(chosen, parts, strict=True):
        rest = whole.add(part, -1)
        for number, shrinkage in enumerate(_SHRINKAGES):
            answers = _answer(rest.fit(shrinkage), features_ED[own])
            num_right[number] += (answers == labels[own]).sum()
    num_right = add(num_right)
    # Of equally good ones the strongest.
    best = len(_SHRINKAGES) - 1 - int(num_right[::-1].argmax())
    answers = _answer(whole.fit(_SHRINKAGES[best]), features_ED[~is_train])
    metric.add_batch(predictions=answers, references=labels[~is_train])


def _answer(classifier: tuple[np.ndarray, np.ndarray], features_ED: np.ndarray) -> np.ndarray:
    weights_DC, offsets = classifier
    return (features_ED @ weights_DC + offsets).argmax(1)
