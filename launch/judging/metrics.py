"""The metrics: `evaluate.Metric`s that keep sums of arrays and no data.

Each takes arrays by the names of its features and adds them to `state`, float64 sums that are the same in any
order; ranks add their states. A metric computes on what it was given, in memory: nothing is fetched or
written.

Shapes: K targets, G groups, C clusters, E examples.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import evaluate
import numpy as np
from datasets import Features, Value

State = dict[str, np.ndarray]

# Of the normal distribution, both sides together 5 %.
Z = 1.959964


class SummedMetric(evaluate.Metric):
    """A metric that is a function of sums."""

    _features: Mapping[str, str] = {}
    _description = ""

    def __init__(self, **sizes: int):
        super().__init__(seed=0)
        self._sizes = sizes
        self.state: State = self._clear()

    def _info(self) -> evaluate.MetricInfo:
        features = Features({name: Value(dtype) for name, dtype in self._features.items()})
        return evaluate.MetricInfo(description=self._description, citation="", features=features)

    def _build_data_dir(self) -> str:
        """There are no files; the library would make a folder in the user's cache."""
        return ""

    def _clear(self) -> State:
        """Sums of nothing."""
        raise NotImplementedError

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        """Sums of some arrays."""
        raise NotImplementedError

    def add_batch(self, *, predictions: Any = None, references: Any = None, **arrays: Any) -> None:
        """Add arrays by the names of the features.

        Raises:
            ValueError: other names, or unequal lengths.
        """
        given = {"predictions": predictions, "references": references, **arrays}
        found = {name: np.asarray(values) for name, values in given.items() if values is not None}
        if set(found) != set(self._features) or len({len(values) for values in found.values()}) > 1:
            shapes = {name: values.shape for name, values in found.items()}
            raise ValueError(f"{type(self).__name__} was given {shapes}: wanted {list(self._features)} alike")
        for name, values in self._sum(found).items():
            self.state[name] = self.state[name] + values

    def compute(self, *, predictions: Any = None, references: Any = None, **arrays: Any) -> dict[str, Any]:
        """What the sums, with the arrays given now, say; then start anew. Empty where there is nothing."""
        given = {"predictions": predictions, "references": references, **arrays}
        if any(values is not None for values in given.values()):
            self.add_batch(predictions=predictions, references=references, **arrays)
        state, self.state = self.state, self._clear()
        return self._compute(**state)


def exponentiate(loss: float) -> float:
    """The perplexity of a mean loss; infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


class TargetMetric(SummedMetric):
    """Loss, perplexity and accuracy of targets by group; a target may be in no group (-1)."""

    _features = {"group": "int64", "loss": "float64", "rank": "int64"}
    _description = "Token-weighted loss, perplexity and top-1 and top-5 accuracy by group of targets."

    def __init__(
        self,
        groups: Sequence[str] = ("",),
        figures: Sequence[str] = ("perplexity", "accuracy", "num_targets"),
    ):
        """Name the groups ("": no name) and the figures that are wanted of each."""
        self.groups, self.figures = tuple(groups), tuple(figures)
        super().__init__()

    def _clear(self) -> State:
        names = ("loss", "top1", "top5", "num_targets")
        return {name: np.zeros(len(self.groups)) for name in names}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        is_in = arrays["group"] >= 0
        group, rank = arrays["group"][is_in], arrays["rank"][is_in]
        weights = {"loss": arrays["loss"][is_in], "top1": rank < 1, "top5": rank < 5, "num_targets": None}
        num_groups = len(self.groups)
        return {
            name: np.bincount(group, weight, num_groups).astype(np.float64)
            for name, weight in weights.items()
        }

    def _compute(self, **state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, group in enumerate(self.groups):
            loss_sum, top1, top5, count = (
                float(state[name][number]) for name in ("loss", "top1", "top5", "num_targets")
            )
            if not count:
                continue
            figures = {
                "loss": loss_sum / count,
                "perplexity": exponentiate(loss_sum / count),
                "accuracy": top1 / count,
                "accuracy_top5": top5 / count,
                "num_targets": int(count),
            }
            found |= {f"{group}/{name}" if group else name: figures[name] for name in self.figures}
        return found


class WordMetric(TargetMetric):
    """The same, and the perplexity a word: rare words are cut into more pieces, and easier ones."""

    _features = {**TargetMetric._features, "is_first": "bool"}

    def __init__(self, groups: Sequence[str]):
        """Name the groups."""
        super().__init__(groups)

    def _clear(self) -> State:
        return {**super()._clear(), "num_words": np.zeros(len(self.groups))}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        first = arrays["group"][arrays["is_first"] & (arrays["group"] >= 0)]
        return {**super()._sum(arrays), "num_words": np.bincount(first, minlength=len(self.groups)) * 1.0}

    def _compute(self, **state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for number, group in enumerate(self.groups):
            count = state["num_words"][number]
            if count:
                loss = float(state["loss"][number] / count)
                found |= {f"{group}/word_perplexity": exponentiate(loss), f"{group}/num_words": int(count)}
        return super()._compute(**state) | found


class RecoveryMetric(SummedMetric):
    """The share of hidden spans of which every piece is put first: of all, and by group."""

    _features = {"group": "int64", "is_right": "bool"}
    _description = "Exact recovery of hidden spans."

    def __init__(self, groups: Sequence[str]):
        """Name the groups."""
        self.groups = tuple(groups)
        super().__init__()

    def _clear(self) -> State:
        return {name: np.zeros(len(self.groups)) for name in ("right", "num_spans")}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        group, num_groups = arrays["group"], len(self.groups)
        return {
            "right": np.bincount(group, arrays["is_right"], num_groups),
            "num_spans": np.bincount(group, minlength=num_groups).astype(np.float64),
        }

    def _compute(self, **state: Any) -> dict[str, float]:
        totals = [("", state["right"].sum(), state["num_spans"].sum())]
        found: dict[str, float] = {}
        for group, right, count in [
            *totals,
            *zip(self.groups, state["right"], state["num_spans"], strict=True),
        ]:
            if count:
                prefix = f"{group}/" if group else ""
                found |= {f"{prefix}exact": float(right / count), f"{prefix}num_spans": int(count)}
        return found


class SpanMetric(SummedMetric):
    """Perplexity of spans (terms, names) with a confidence interval that knows that they come in clusters.

    Occurrences of one term, and pieces of one row, are alike, so that the interval is that of a ratio of sums
    over clusters (its linearisation, or delta method), taken on the loss. A cluster may be in several
    categories.
    """

    _features = {"cluster": "int64", "loss": "float64", "num_pieces": "int64", "is_right": "bool"}
    _description = "Perplexity of hidden spans, a piece and a span, with a 95 % interval over clusters."

    def __init__(self, membership: np.ndarray, categories: Sequence[str] = ("",)):
        """Name categories, and say which clusters each holds, bool [categories, C]."""
        self.categories, self.membership = tuple(categories), np.asarray(membership, bool)
        super().__init__()

    def _clear(self) -> State:
        num_clusters = self.membership.shape[1]
        return {name: np.zeros(num_clusters) for name in ("loss", "num_pieces", "num_spans", "right")}

    def _sum(self, arrays: Mapping[str, np.ndarray]) -> State:
        cluster, num_clusters = arrays["cluster"], self.membership.shape[1]
        weights = {"loss": "loss", "num_pieces": "num_pieces", "right": "is_right"}
        sums = {name: np.bincount(cluster, arrays[of], num_clusters) for name, of in weights.items()}
        return sums | {"num_spans": np.bincount(cluster, minlength=num_clusters).astype(np.float64)}

    def _compute(self, **state: Any) -> dict[str, float]:
        found: dict[str, float] = {}
        for category, is_member in zip(self.categories, self.membership, strict=True):
            sums = {name: values[is_member] for name, values in state.items()}
            prefix = f"{category}/" if category else ""
            found |= {f"{prefix}{name}": value for name, value in self._describe(sums).items()}
        return found

    def _describe(self, sums: State) -> dict[str, float]:
        is_met = sums["num_spans"] > 0
        if not is_met.any():
            return {}
        num_spans = float(sums["num_spans"].sum())
        return {
            **_bound_perplexity(sums["loss"][is_met], sums["num_pieces"][is_met]),
            "term_perplexity": exponentiate(float(sums["loss"].sum()) / num_spans),
            "exact": float(sums["right"].sum()) / num_spans,
            "num_targets": int(sums["num_pieces"].sum()),
            "num_occurrences": int(num_spans),
            "num_terms": int(is_met.sum()),
        }


class RowMetric(SpanMetric):
    """Pseudo-perplexity of whole rows, whose spans are each hidden alone; the clusters are rows."""

    _description = "Pseudo-perplexity of whole rows, and the share of rows of which every span is put first."

    def __init__(self, num_characters: np.ndarray):
        """Say how many characters the spans of each row have, integers [rows]."""
        self.num_characters = num_characters
        super().__init__(np.ones((1, len(num_characters)), bool))

    def _describe(self, sums: State) -> dict[str, float]:
        is_met = sums["num_spans"] > 0
        if not is_met.any():
            return {}
        counts, right = sums["num_spans"][is_met], sums["right"][is_met]
        return {
            **_bound_perplexity(sums["loss"][is_met], sums["num_pieces"][is_met]),
            # The same measure for every tokenizer, where a perplexity a piece is not.
            "bits_per_character": float(sums["loss"].sum() / math.log(2) / self.num_characters[is_met].sum()),
            "accuracy": float(right.sum() / counts.sum()),
            "exact": float((right == counts).mean()),
            "num_targets": int(sums["num_pieces"].sum()),
            "num_rows": len(counts),
            "num_characters": int(self.num_characters[is_met].sum()),
        }


def _bound_perplexity(losses: np.ndarray, sizes: np.ndarray) -> dict[str, float]:
    """Perplexity a piece; its interval where there are two clusters."""
    loss = float(losses.sum() / sizes.sum())
    found = {"perplexity": exponentiate(loss)}
    if len(losses) > 1:
        error = Z * estimate_error(losses, sizes)
        found |= {"perplexity_low": exponentiate(loss - error), "perplexity_high": exponentiate(loss + error)}
    return found


def estimate_error(sums: np.ndarray, sizes: np.ndarray) -> float:
    """Standard error of sum(sums) / sum(sizes) over at least two independent clusters, float64 [C] each."""
    residuals = sums - sizes * (sums.sum() / sizes.sum())
    num_clusters = len(sums)
    variance = num_clusters / (num_clusters - 1) * np.square(residuals).sum() / sizes.sum() ** 2
    return math.sqrt(variance)
