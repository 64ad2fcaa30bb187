"""FLOPs of a batch: a pure function of the model's configuration and the shape of the batch.

Counted are products of matrices and convolutions, 2 for a multiply-add, as torch's counter does; left out
are look-ups, norms, activations, softmax, dropout, the loss and the optimizer. It lives here and not in
`modeling`, whose import takes seconds, because the plan needs it.

Symbols: B rows of the batch, L slots of a row, K targets of the batch, T places for the targets of a row, D
hidden size, A heads times head size, R rows of a position table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from launch.costing.flops_positions import count_reached
from launch.costing.sizes import DEFAULTS

Kernel = Literal["eager", "fast", "fused", "flash"]
"""`fast` is the operator on a CPU, `fused` what `--attention fast` is on a GPU. `flash` counts as `eager`:
what its package computes inside is not known here."""

QUERY_MULTIPLE = 8
"""Places of a sparse last layer come in eights, as in modeling/layers.py."""

_PARTS = (
    "embeddings",
    "projections",
    "attention",
    "relative_attention",
    "feed_forward",
    "convolutions",
    "head",
)


@dataclass(frozen=True)
class Flops:
    """FLOPs of a batch by part, forward and backward together; `recomputed` is gradient checkpointing's."""

    num_rows: int
    num_slots: int
    embeddings: int
    projections: int
    """Query, key, value and output of the attention."""
    attention: int
    """Scores and contexts."""
    relative_attention: int
    """Position tables and position scores."""
    feed_forward: int
    convolutions: int
    head: int
    recomputed: int

    @property
    def total(self) -> int:
        """All that is computed."""
        return self.model + self.recomputed

    @property
    def model(self) -> int:
        """All but the recomputation, which an MFU does not count."""
        return sum(getattr(self, part) for part in _PARTS)

    @property
    def per_row(self) -> float:
        """`total` for each row."""
        return self.total / self.num_rows

    @property
    def per_slot(self) -> float:
        """`total` for each slot: for each token where rows are full."""
        return self.per_row / self.num_slots


@dataclass
class _Tally:
    """Sums by part."""

    is_training: bool
    checkpointing: bool
    sums: dict[str, int] = field(default_factory=lambda: dict.fromkeys((*_PARTS, "recomputed"), 0))

    def add(self, part: str, forward: int, backward: int | None = None, *, in_layer: bool = False) -> None:
        """Add a product; its backward is two of the same size where nothing else is said."""
        self.sums[part] += forward
        if self.is_training:
            self.sums[part] += 2 * forward if backward is None else backward
            if self.checkpointing and in_layer:
                self.sums["recomputed"] += forward


@dataclass(frozen=True)
class _Batch:
    rows: int
    slots: int
    targets: int
    places: int
    kernel: Kernel


def count_flops(
    config: Mapping[str, Any] | Any,
    *,
    num_rows: int,
    num_slots: int,
    num_targets: int | Sequence[int],
    kernel: Kernel = "eager",
    sparse_last_layer: bool = False,
    is_training: bool = True,
    checkpointing: bool = False,
) -> Flops:
    """FLOPs of one forward (and backward) of a masked language model.

    Args:
        config: a mapping with `model_type`, or a configuration of transformers. CANINE's head has the classes
            of `head_code_points`, or as many as `num_classes` says.
        num_rows: B.
        num_slots: L, padding included: it is computed like the rest.
        num_targets: over all rows, taken as evenly spread, or of each row. B * L for a head at every slot.
        kernel: of the attention.
        sparse_last_layer: the last layer runs at the targets only (CANINE: that of the final encoder).
        is_training: with the backward.
        checkpointing: the layers run forward twice.

    Raises:
        ValueError: a model type that is not counted.
    """
    values = _read(config)
    if isinstance(num_targets, int):
        most = -(-num_targets // num_rows)
    else:
        most, num_targets = max(num_targets), sum(num_targets)
    places = (most // QUERY_MULTIPLE + 1) * QUERY_MULTIPLE
    batch = _Batch(num_rows, num_slots, num_targets, places, kernel)
    tally = _Tally(is_training, checkpointing)
    _COUNTERS[values["model_type"]](values, batch, sparse_last_layer, tally)
    return Flops(num_rows=num_rows, num_slots=num_slots, **tally.sums)


def _read(config: Mapping[str, Any] | Any) -> dict[str, Any]:
    values = dict(config) if isinstance(config, Mapping) else config.to_dict()
    model_type = values.get("model_type", getattr(config, "model_type", None))
    if model_type not in DEFAULTS:
        raise ValueError(
            f"FLOPs of a model of type {model_type!r} are not counted, of {list(DEFAULTS)} they are"
        )
    values = {**DEFAULTS[model_type], **values, "model_type": model_type}
    size = values["hidden_size"] // values["num_attention_heads"]
    values.setdefault("attention_head_size", size)
    return values


def _multiply(*sizes: int) -> int:
    product = 2
    for size in sizes:
        product *= size
    return product


@dataclass(frozen=True)
class _Reach:
    """What a layer works on: keys of a row, its pairs of query and key; queries and outputs of the batch."""

    keys: int
    pairs: int
    queries: int
    outputs: int


def _reach_all(batch: _Batch, slots: int, window: int | None = None) -> _Reach:
    """Every slot, which attends to every other or to its window of so many."""
    pairs = slots**2
    if window is not None:
        whole, rest = divmod(slots, window)
        pairs = whole * window**2 + rest**2
    return _Reach(slots, pairs, batch.rows * slots, batch.rows * slots)


def _reach_targets(batch: _Batch, slots: int, queries: int) -> _Reach:
    """The targets as queries, in rows filled up to T before or after they are projected."""
    return _Reach(slots, batch.places * slots, queries, batch.targets)


def _count_layer(values: dict[str, Any], batch: _Batch, tally: _Tally, reach: _Reach) -> None:
    """A layer without positions."""
    hidden, inner = values["hidden_size"], values["num_attention_heads"] * values["attention_head_size"]
    projected = reach.queries + 2 * batch.rows * reach.keys + reach.outputs
    tally.add("projections", _multiply(projected, hidden, inner), in_layer=True)
    tally.add("attention", 2 * _multiply(batch.rows, reach.pairs, inner), in_layer=True)
    matrices = 3 if values["model_type"] == "modernbert" else 2  # a gate beside the way in
    inner = values["intermediate_size"]
    tally.add("feed_forward", matrices * _multiply(reach.outputs, hidden, inner), in_layer=True)


def _count_deberta(values: dict[str, Any], batch: _Batch, sparse: bool, tally: _Tally) -> None:
    hidden, num_layers = values["hidden_size"], values["num_hidden_layers"]
    embedding = values.get("embedding_size", hidden)
    num_slots = batch.rows * batch.slots
    if embedding != hidden:
        tally.add("embeddings", _multiply(num_slots, embedding, hidden))
    kernel_size = values.get("conv_kernel_size") or 0
    if kernel_size:
        groups = values.get("conv_groups", 1)
        tally.add("convolutions", _multiply(num_slots, hidden, hidden // groups, kernel_size))
    sparse = sparse and not (kernel_size and num_layers == 1)
    for number in range(num_layers):
        is_sparse = sparse and number == num_layers - 1
        places = batch.rows * batch.places
        reach = _reach_targets(batch, batch.slots, places) if is_sparse else _reach_all(batch, batch.slots)
        _count_layer(values, batch, tally, reach)
        if values["relative_attention"]:
            _count_positions(values, batch, tally, is_sparse)
    width = embedding if values["legacy"] else hidden
    _count_head(batch, tally, hidden, width, values["vocab_size"])


def _count_positions(values: dict[str, Any], batch: _Batch, tally: _Tally, is_sparse: bool) -> None:
    """Tables of a layer, projected once for the batch, and the products of slots with them."""
    hidden, inner = values["hidden_size"], values["num_attention_heads"] * values["attention_head_size"]
    buckets, longest = values.get("position_buckets", -1), values["max_relative_positions"]
    longest = longest if longest >= 1 else values["max_position_embeddings"]
    num_rows = 2 * (buckets if buckets > 0 else longest)
    kinds = [kind for kind in ("c2p", "p2c") if kind in (values["pos_att_type"] or [])]
    # Hugging Face's code projects both tables where they share their matrices, wanted or not.
    is_own = batch.kernel in ("eager", "flash") and not is_sparse
    num_projected = 2 if is_own and values.get("share_att_key") else len(kinds)
    table = _multiply(num_rows, hidden, inner)
    tally.add("relative_attention", num_projected * table, len(kinds) * 2 * table, in_layer=True)
    width = num_rows
    if batch.kernel == "fused":
        width = 2 * batch.slots - 1
        # A product with 0s and 1s, which need no gradient.
        widened = _multiply(width, num_rows, inner)
        tally.add("relative_attention", len(kinds) * widened, len(kinds) * widened, in_layer=True)
    for kind in kinds:
        pairs = (batch.places if is_sparse and kind == "c2p" else batch.slots) * width
        if batch.kernel == "fast" and not is_sparse:
            pairs = count_reached(batch.slots, buckets, longest, descending=kind == "c2p")
        tally.add("relative_attention", _multiply(batch.rows, pairs, inner), in_layer=True)


def _count_canine(values: dict[str, Any], batch: _Batch, sparse: bool, tally: _Tally) -> None:
    """A local layer, one step down to molecules, the deep layers, one step up again, and a last layer."""
    hidden, rate, taps = (values[k] for k in ("hidden_size", "downsampling_rate", "upsampling_kernel_size"))
    window, num_layers = values["local_transformer_stride"], values["num_hidden_layers"]
    num_molecules = batch.slots // rate
    if sparse:
        # As in modeling/canine_layers.py: S slots are read, R of them by the last layer.
        num_read = (num_molecules - 1) * rate
        num_outputs = num_read + (taps - 1) // 2 - (taps - 1)
        num_first = num_read if num_read <= window else min(batch.slots, -(-num_read // window) * window)
        # The last molecule is dropped; [CLS] has one of its own, which is no query of the last deep layer.
        behind_cls = num_molecules - 1
        num_deep = batch.rows * behind_cls
        last_deep = _Reach(num_molecules, num_molecules * behind_cls, num_deep, num_deep)
        num_down, up = behind_cls, num_outputs * taps + behind_cls * _count_phases(rate, taps)
        last = _reach_targets(batch, num_outputs, batch.targets)
    else:
        num_first, num_down, up = batch.slots, num_molecules, 2 * batch.slots * taps
        last_deep, last = _reach_all(batch, num_molecules), _reach_all(batch, batch.slots)
    _count_layer(values, batch, tally, _reach_all(batch, num_first, window))
    tally.add("convolutions", _multiply(batch.rows, num_down, hidden, hidden, rate))
    for number in range(num_layers):
        is_last = number == num_layers - 1
        _count_layer(values, batch, tally, last_deep if is_last else _reach_all(batch, num_molecules))
    tally.add("convolutions", _multiply(batch.rows, up, hidden, hidden))
    _count_layer(values, batch, tally, last)
    table = values.get("head_code_points")
    num_classes = 1 + len(table) if table else values.get("num_classes", 1)
    _count_head(batch, tally, hidden, hidden, num_classes)


def _count_phases(rate: int, taps: int) -> int:
    """Products of a molecule in the sparse step up: one for each of its slots and each molecule it reads."""
    before = (taps - 1) // 2
    return len({(phase, (phase - before + tap) // rate) for phase in range(rate) for tap in range(taps)})


def _count_plain(values: dict[str, Any], batch: _Batch, sparse: bool, tally: _Tally) -> None:
    """BERT and ModernBERT, whose window is a mask: it spares no product. Their last layer is never sparse."""
    del sparse
    for _ in range(values["num_hidden_layers"]):
        _count_layer(values, batch, tally, _reach_all(batch, batch.slots))
    _count_head(batch, tally, values["hidden_size"], values["hidden_size"], values["vocab_size"])


def _count_head(batch: _Batch, tally: _Tally, hidden: int, width: int, num_classes: int) -> None:
    """A dense layer and the output matrix, at the targets."""
    tally.add("head", _multiply(batch.targets, hidden, width) + _multiply(batch.targets, width, num_classes))


_COUNTERS = {
    "deberta-v2": _count_deberta,
    "canine": _count_canine,
    "bert": _count_plain,
    "modernbert": _count_plain,
}
