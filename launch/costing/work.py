"""The work of a step: which models read how many slots for how many targets, before anything is built."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from launch.costing.flops import Flops, count_flops
from launch.costing.sizes import DEFAULTS, count_pieces, find_sizes
from launch.recipe import Recipe

_MOLECULE, _WINDOW = 4, 128
_NUM_SPECIAL = 2


@dataclass(frozen=True)
class Work:
    """One optimizer step of a recipe.

    Attributes:
        parts: configuration of the masked language model, then that of a discriminator, if there is one.
        num_rows: of the step, over all devices.
        num_slots: of a row, padding included.
        num_targets: hidden slots of the step.
        is_sparse: whether the last layer of the first part runs at the targets only.
        is_bound: whether every row is counted as the longest, as the mean length is not known.
    """

    parts: tuple[Mapping[str, Any], ...]
    num_rows: int
    num_slots: int
    num_targets: int
    is_sparse: bool
    is_bound: bool = False

    @classmethod
    def of(cls, recipe: Recipe, tokens_per_row: float | None) -> "Work | None":
        """Of a recipe; None: the sizes of its model are not known before it is loaded.

        Rows of words count as full; names as long as `tokens_per_row` says, else as the longest.
        """
        model, tokenizer = recipe.model, recipe.tokenizer
        num_pieces = None
        if tokenizer is not None and model.source == "scratch":
            num_pieces = tokenizer.vocab_size or count_pieces(tokenizer.source)
        sizes = find_sizes(model.family, model.source, model.config, num_pieces)
        if sizes is None:
            return None
        num_rows, num_slots = recipe.training.global_batch, recipe.data.row_length
        num_used, is_characters = num_slots, sizes["model_type"] == "canine"
        if is_characters:
            if tokens_per_row is not None:
                num_used = min(num_used, round(tokens_per_row) + _NUM_SPECIAL)
            num_slots = _character_slots(num_used)
        return cls(
            parts=_find_parts(recipe, sizes),
            num_rows=num_rows,
            num_slots=num_slots,
            num_targets=round(recipe.objective.masking.rate * num_rows * num_used),
            is_sparse=model.family in ("deberta", "canine"),
            is_bound=is_characters and tokens_per_row is None,
        )

    def longest(self, row_length: int) -> "Work":
        """The same with every row as long as a row may be: what memory has to hold."""
        if self.parts[0]["model_type"] != "canine":
            return self
        share = self.num_targets / (self.num_rows * self.num_slots)
        # A row that ends at a window's edge may need more slots than a longer one.
        slots = max(_character_slots(length + _NUM_SPECIAL) for length in range(row_length + 1))
        return replace(self, num_slots=slots, num_targets=round(share * self.num_rows * slots), is_bound=True)

    @property
    def num_layers(self) -> int:
        """Of all parts together."""
        return sum(_read(sizes, "num_hidden_layers") for sizes in self.parts)

    @property
    def num_parameters(self) -> int:
        """Of all parts, derived from their sizes: matrices and embeddings, without biases and norms."""
        return sum(map(count_parameters, self.parts))

    def flops(self, *, checkpointing: bool = False, is_training: bool = True) -> float:
        """All that is computed in a step, what checkpointing computes again included."""
        counted = count_parts(
            self.parts,
            self.num_rows,
            self.num_slots,
            self.num_targets,
            is_sparse=self.is_sparse,
            checkpointing=checkpointing,
            is_training=is_training,
        )
        return float(sum(flops.total for flops in counted))

    def head_flops(self) -> float:
        """Of the vocabulary head, forward only: what a chunked loss computes again."""
        masked = self.parts[0]
        return float(
            count_flops(
                masked,
                num_rows=self.num_rows,
                num_slots=self.num_slots,
                num_targets=self.num_targets,
                is_training=False,
            ).head
        )


def count_parts(
    parts: Sequence[Mapping[str, Any]],
    num_rows: int,
    num_slots: int,
    num_targets: int,
    *,
    is_sparse: bool,
    checkpointing: bool = False,
    is_training: bool = True,
) -> list[Flops]:
    """FLOPs of a masked language model and, where there is a second part, of its discriminator."""
    shape: dict[str, Any] = {"checkpointing": checkpointing, "is_training": is_training}
    rows: dict[str, Any] = {"num_rows": num_rows, "num_slots": num_slots}
    masked, *judges = parts
    counted = [count_flops(masked, num_targets=num_targets, sparse_last_layer=is_sparse, **rows, **shape)]
    for sizes in judges:
        # Its head has one output and judges every slot.
        judge = {**sizes, "vocab_size": 1, "legacy": False}
        counted.append(count_flops(judge, num_targets=num_rows * num_slots, **rows, **shape))
    return counted


def count_parameters(sizes: Mapping[str, Any]) -> int:
    """Parameters of a model, derived from its sizes; within 2 % of the built one for the shipped shapes."""
    hidden, inner = _read(sizes, "hidden_size"), _read(sizes, "intermediate_size")
    matrices = 3 if sizes["model_type"] == "modernbert" else 2
    layer = 4 * hidden**2 + matrices * hidden * inner
    total = _read(sizes, "num_hidden_layers") * layer + hidden**2
    if sizes["model_type"] == "canine":
        # Hash tables and positions have as many rows; two more layers, of attention; two convolutions.
        tables = 2 * sizes.get("num_hash_buckets", 16_384)
        kernel = _read(sizes, "upsampling_kernel_size")
        return total + tables * hidden + 2 * layer + (_MOLECULE + 2 * kernel) * hidden**2
    return total + _read(sizes, "vocab_size") * sizes.get("embedding_size", hidden)


def _read(sizes: Mapping[str, Any], key: str) -> int:
    return sizes.get(key, DEFAULTS[sizes["model_type"]][key])


def _character_slots(num_used: int) -> int:
    """Slots of a row with so many in use, as row_slots in modeling/canine.py gives them."""
    last_used, last_reached = num_used - 1, num_used + 1
    slots = (last_reached // _MOLECULE + 2) * _MOLECULE
    if last_reached // _WINDOW > last_used // _WINDOW:
        slots = max(slots, (last_reached // _WINDOW + 1) * _WINDOW)
    return slots


def _find_parts(recipe: Recipe, sizes: dict[str, Any]) -> tuple[Mapping[str, Any], ...]:
    if recipe.objective.kind != "rtd":
        return (sizes,)
    generator = recipe.objective.generator
    few = generator.num_hidden_layers
    few = few or max(1, round((generator.share or 0.5) * _read(sizes, "num_hidden_layers")))
    return ({**sizes, "num_hidden_layers": few}, sizes)
