"""Build: a recipe's settings become objects. The only place where configuration turns into things."""

from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.optim import Optimizer
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.integrations.deepspeed import unset_hf_deepspeed_config

from data_pipes.collate import MASK_CHARACTER, Layout
from data_pipes.feed import Feed, FrozenBatches, StepBatch, count_workers
from data_pipes.masking import Masking
from data_pipes.masks.weights import TermWeights
from data_pipes.order import Order, PlainOrder
from data_pipes.ordering.mixture import Mixture
from data_pipes.ordering.shapes import choose_shapes
from data_pipes.ordering.stream_order import StreamOrder
from data_pipes.store import Store
from data_pipes.stream import WriterError
from data_pipes.tokenize import PieceEncoder
from launch import optim
from launch.costing.accounting import StepCounter
from launch.engine import build_accelerator, choose_attention, prepare_model, set_loss_chunk
from launch.hardware import Profile
from launch.judging.passes import Runner
from launch.new_rows import FirstPhase, build_first_phase, find_old_pieces
from launch.objective import Term, is_pair, list_terms, make_pair, read_pair
from launch.plan import Plan
from launch.recipe import Recipe
from launch.row_check import check_rows
from launch.stop import StopFlag
from launch.verdict import MACHINE, REQUEST, RunError
from launch.vocabulary import read_terms
from modeling import hf
from modeling.pair import list_parts
from modeling.rtd import RtdModel
from modeling.trust import SAFE_CODE

if TYPE_CHECKING:
    from launch.judging.suite import Suite


@dataclass
class Job:
    """Everything that a run works with.

    Attributes:
        model: as prepared by Accelerate (DDP, a DeepSpeed engine, or itself).
        bare_model: the Hugging Face model inside it, or the pair of them.
        terms: of a step's loss.
        load_report: what a loaded checkpoint brought; None from scratch.
        kernel: DeBERTa's attention kernel and why it was chosen, in words.
        counter: of model FLOPs; None where they are not known.
        first_phase: in which only the rows of new pieces are trained; None: the recipe has none.
        suite: what is measured beside the score; None: nothing.
        stop: whether a signal asked to stop.
        origin: how the checkpoint that it goes on from was written, where that was elsewhere, in words.
    """

    recipe: Recipe
    plan: Plan
    store: Store
    accelerator: Accelerator
    model: torch.nn.Module
    bare_model: PreTrainedModel | RtdModel
    terms: tuple[Term, ...]
    optimizer: Optimizer
    tokenizer: PreTrainedTokenizerBase
    feed: Feed
    frozen: FrozenBatches
    load_report: hf.LoadReport | None
    kernel: str | None = None
    counter: StepCounter | None = None
    first_phase: FirstPhase | None = None
    suite: "Suite | None" = None
    stop: StopFlag = field(default_factory=StopFlag)
    origin: str | None = None

    @property
    def masked_lm(self) -> PreTrainedModel:
        """The model that fills hidden places."""
        return next(list_parts(self.bare_model))

    def steps(self, first: int, stop: int) -> Generator[StepBatch, None, None]:
        """This rank's batches of steps first to stop - 1, prepared ahead."""
        is_cuda = self.accelerator.device.type == "cuda"
        num_workers = count_workers(self.plan.devices)
        with closing(self.feed.steps(first, stop, num_workers=num_workers, pin=is_cuda)) as batches:
            try:
                for batch in batches:  # noqa: UP028 - `yield from` would wait for the threads first
                    yield batch
            except WriterError as error:
                raise RunError(MACHINE, f"the data cannot be prepared: {error}") from error
            finally:
                # Before the threads are waited for: they may be waiting for a stream.
                self.store.train.close()


def build_job(recipe: Recipe, plan: Plan, profile: Profile, store: Store) -> Job:
    """Build a run on this rank. Model weights depend on the seed only, not on the rank."""
    assert plan.micro_batch is not None
    accelerator = build_accelerator(plan, profile, recipe.training)
    # Under ZeRO-3 transformers would shard a model as it loads it, and no row can be added to empty weights.
    unset_hf_deepspeed_config()
    tokenizer = build_tokenizer(recipe, store)
    model, load_report = build_model(recipe, store, tokenizer)
    if plan.gradient_checkpointing:
        for part in list_parts(model):
            # The newer name came within transformers 5; the older one warns there.
            enable = getattr(part, "activation_checkpointing_enable", part.gradient_checkpointing_enable)
            enable({"use_reentrant": False})
    optimizer = optim.build_optimizer(
        model, recipe.training, hf.decays, is_offloaded=plan.offload is not None
    )
    prepared, prepared_optimizer = prepare_model(accelerator, model, optimizer, plan)
    kernel = choose_attention(model, plan)
    set_loss_chunk(model, plan.loss_chunk)
    # From here on the generators serve dropout only; ranks must not drop the same units.
    torch.manual_seed(recipe.training.seed + accelerator.process_index)
    layout = build_layout(recipe, tokenizer, store, is_cut=(plan.accumulation or 1) > 1)
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    shared = {"layout": layout, **ranks}
    return Job(
        recipe=recipe,
        plan=plan,
        store=store,
        accelerator=accelerator,
        model=prepared,
        bare_model=cast(PreTrainedModel | RtdModel, accelerator.unwrap_model(prepared)),
        terms=list_terms(recipe, model),
        optimizer=prepared_optimizer,
        tokenizer=tokenizer,
        feed=Feed(
            store.train,
            order=build_order(recipe, store),
            masking=build_masking(recipe, tokenizer, store),
            seed=recipe.training.seed,
            global_batch=plan.global_batch,
            micro_batch=plan.micro_batch,
            **shared,
        ),
        frozen=FrozenBatches(
            store.evaluation,
            masking=build_masking(recipe, tokenizer, store, is_frozen=True),
            seed=recipe.evaluation.seed,
            micro_batch=plan.evaluation_batch,
            is_even=plan.zero_stage == 3,
            **shared,
        ),
        load_report=load_report,
        kernel=kernel,
        counter=StepCounter.of(list_parts(model)),
        first_phase=build_first_phase(recipe, plan, model, tokenizer, prepared_optimizer),
        suite=build_metrics(
            recipe, store, tokenizer, Runner(layout, plan.evaluation_batch, accelerator.device, **ranks)
        ),
    )


def build_metrics(
    recipe: Recipe, store: Store, tokenizer: PreTrainedTokenizerBase, runner: Runner
) -> "Suite | None":
    """What the recipe asks for beside loss and accuracy; `runner` cuts rows as the evaluation does."""
    if isinstance(recipe.evaluation.metrics, list):
        return None
    # Imported here: the library of metrics takes seconds, and few recipes ask for more.
    from launch.judging.build import build_suite

    masking = build_masking(recipe, tokenizer, store, is_frozen=True)
    return build_suite(recipe, store, tokenizer, masking=masking, runner=runner)


def build_tokenizer(recipe: Recipe, store: Store) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with the model: the recipe's, the store's, or CANINE's."""
    if recipe.model.family == "canine":
        return CanineTokenizer()
    assert recipe.tokenizer is not None
    return AutoTokenizer.from_pretrained(store.tokenizer_folder or recipe.tokenizer.source, **SAFE_CODE)


def build_model(
    recipe: Recipe, store: Store, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel | RtdModel, hf.LoadReport | None]:
    """The model on the CPU in fp32, from scratch or from a checkpoint.

    Raises:
        RunError: it cannot be had, or cannot read the recipe's rows.
    """
    wanted = recipe.model
    arguments: dict[str, Any] = {"dropout": wanted.dropout}
    if wanted.family == "canine":
        arguments["head_code_points"] = store.code_points.tolist()
    else:
        arguments["num_pieces"] = len(tokenizer)
    report = None
    is_rtd = recipe.objective.kind == "rtd"
    try:
        if is_rtd and is_pair(wanted.source):
            return read_pair(recipe, wanted.source, tokenizer)
        if wanted.source == "scratch":
            config: dict[str, Any] = dict(wanted.config)
            if wanted.family == "auto":
                config.setdefault("pad_token_id", tokenizer.pad_token_id)
            model = hf.build(wanted.family, config=config, seed=recipe.training.seed, **arguments)
        else:
            # A new head is drawn from the global generator while the checkpoint loads.
            torch.manual_seed(recipe.training.seed)
            if wanted.family != "canine":
                arguments["old_pieces"] = find_old_pieces(wanted.source, tokenizer)
            model, report = hf.load(wanted.family, wanted.source, **arguments)
        check_rows(recipe, model)
        model = make_pair(recipe, model, tokenizer) if is_rtd else model
    except (ValueError, TypeError, OSError, SafetensorError, StrictDataclassError) as error:
        raise RunError(REQUEST, f"model {wanted.source}: {error}") from error
    return model, report


def build_layout(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, store: Store, *, is_cut: bool = False
) -> Layout:
    """How rows become tensors.

    Args:
        recipe: of the run.
        tokenizer: of words.
        store: whose rows they are.
        is_cut: steps are cut into several micro-batches; for characters of a few shapes only. A step that is
            one micro-batch is as long as its longest name anyway, and a few shapes would round that up.
    """
    if recipe.model.family == "canine":
        plain = Layout(kind="characters", row_length=recipe.data.row_length)
        counts = np.array(store.manifest["length_counts"])
        counts += np.bincount(store.evaluation.lengths, minlength=len(counts))
        if not is_cut or recipe.data.streaming:  # longer names may come
            return plain
        return replace(plain, shapes=choose_shapes(np.trim_zeros(counts, "b"), plain.count_slots))
    return Layout(kind="words", row_length=recipe.data.row_length, pad_piece=int(tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]


def build_order(recipe: Recipe, store: Store) -> Order:
    """Which rows each step has.

    Raises:
        RunError: a weighted source has no row.
    """
    seed = recipe.training.seed
    if recipe.data.streaming:
        return StreamOrder(store.train, seed)
    # Sources without a weight are for the evaluation; they have no training row.
    weighted = [number for number, source in enumerate(recipe.data.sources) if source.weight is not None]
    if not weighted:
        return PlainOrder(store.train.num_rows, seed)
    rows = [store.train.summary["source_rows"][number] for number in weighted]
    if 0 in rows:
        number = weighted[rows.index(0)]
        limit = recipe.data.limit
        remedy = "" if limit is None else f"raise data.limit ({limit:,}), or "
        raise RunError(
            REQUEST,
            f"data.sources cannot be mixed: no training row came from data.sources.{number}; {remedy}"
            "take it out",
        )
    try:
        return Mixture(rows, [recipe.data.sources[number].weight or 0 for number in weighted], seed)
    except ValueError as error:
        raise RunError(REQUEST, f"data.sources cannot be mixed: {error}") from error


def build_masking(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, store: Store, *, is_frozen: bool = False
) -> Masking:
    """What is hidden: of training rows, or of the evaluation rows whose masks never change.

    Raises:
        RunError: the list of weighted terms cannot be used.
    """
    wanted = recipe.objective.masking
    rate = wanted.rate if not is_frozen or recipe.evaluation.rate is None else recipe.evaluation.rate
    shared: dict[str, Any] = {"kind": wanted.kind, "rate": rate, "replace": wanted.replace}
    shared |= {"mean_span": wanted.mean_span or 3.0, "max_span": wanted.max_span or 10}
    if recipe.model.family == "canine":
        return Masking(
            **shared,
            suffix=wanted.public_suffix,
            mask_piece=MASK_CHARACTER,
            random_pieces=np.asarray(store.code_points, np.uint32),
            special_pieces=np.array([], np.uint32),
        )
    specials = np.array(sorted(tokenizer.all_special_ids), np.uint32)
    ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    weights = None
    if wanted.terms is not None and not is_frozen:
        weights = TermWeights.build(
            read_terms(Path(wanted.terms.path)), wanted.terms.factor, PieceEncoder(tokenizer)
        )
    return Masking(
        **shared,
        weights=weights,
        mask_piece=int(tokenizer.mask_token_id),  # pyright: ignore[reportArgumentType]
        random_pieces=ordinary,
        special_pieces=specials,
    )


def count_classes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, store: Store) -> int:
    """Pieces that the model may answer with, special ones left out."""
    if recipe.model.family == "canine":
        return len(store.code_points)
    return len(tokenizer) - len(tokenizer.all_special_ids)
