"""Build: a recipe's settings become objects. The only place where configuration turns into things."""

from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from accelerate import Accelerator
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from torch.optim import Optimizer
from transformers import AutoTokenizer, CanineTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from data_pipes.collate import MASK_CHARACTER, Layout
from data_pipes.feed import Feed, FrozenBatches
from data_pipes.masking import Masking
from data_pipes.store import Store
from launch import optim
from launch.engine import build_accelerator, check_model
from launch.hardware import Profile
from launch.plan import Plan
from launch.recipe import Recipe
from launch.stop import StopFlag
from launch.verdict import REQUEST, RunError
from modeling import hf
from modeling.canine import CanineForMaskedLM, row_slots
from modeling.deberta import DebertaForMaskedLM, check_packing


@dataclass
class Job:
    """Everything that a run works with.

    Attributes:
        model: as prepared by Accelerate (DDP, a DeepSpeed engine, or itself).
        bare_model: the Hugging Face model inside it.
        load_report: what a loaded checkpoint brought; None from scratch.
        stop: whether a signal asked to stop.
    """

    recipe: Recipe
    plan: Plan
    store: Store
    accelerator: Accelerator
    model: torch.nn.Module
    bare_model: PreTrainedModel
    optimizer: Optimizer
    tokenizer: PreTrainedTokenizerBase
    feed: Feed
    frozen: FrozenBatches
    load_report: hf.LoadReport | None
    stop: StopFlag = field(default_factory=StopFlag)


def build_job(recipe: Recipe, plan: Plan, profile: Profile, store: Store) -> Job:
    """Build a run on this rank. Model weights depend on the seed only, not on the rank."""
    assert plan.micro_batch is not None
    accelerator = build_accelerator(plan, profile, recipe.training)
    tokenizer = build_tokenizer(recipe, store)
    model, load_report = build_model(recipe, store, tokenizer)
    if plan.gradient_checkpointing:
        # The newer name came within transformers 5; the older one warns there.
        enable = getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)
        enable({"use_reentrant": False})
    optimizer = optim.build_optimizer(model, recipe.training, hf.decays)
    prepared, prepared_optimizer = accelerator.prepare(model, optimizer)
    check_model(prepared, plan)
    # From here on the generators serve dropout only; ranks must not drop the same units.
    torch.manual_seed(recipe.training.seed + accelerator.process_index)
    layout, seed = build_layout(recipe, tokenizer), recipe.training.seed
    ranks = {"rank": accelerator.process_index, "world_size": accelerator.num_processes}
    shared = {"layout": layout, "seed": seed, **ranks}
    return Job(
        recipe=recipe,
        plan=plan,
        store=store,
        accelerator=accelerator,
        model=prepared,
        bare_model=cast(PreTrainedModel, accelerator.unwrap_model(prepared)),
        optimizer=prepared_optimizer,
        tokenizer=tokenizer,
        feed=Feed(
            store.train,
            masking=build_masking(recipe, tokenizer, store),
            global_batch=plan.global_batch,
            micro_batch=plan.micro_batch,
            **shared,
        ),
        frozen=FrozenBatches(
            store.evaluation,
            masking=build_masking(recipe, tokenizer, store, is_frozen=True),
            micro_batch=plan.evaluation_batch,
            **shared,
        ),
        load_report=load_report,
    )


def build_tokenizer(recipe: Recipe, store: Store) -> PreTrainedTokenizerBase:
    """The tokenizer that goes with the model: the recipe's, the store's, or CANINE's."""
    if recipe.model.family == "canine":
        return CanineTokenizer()
    assert recipe.tokenizer is not None
    return AutoTokenizer.from_pretrained(store.tokenizer_folder or recipe.tokenizer.source)


def build_model(
    recipe: Recipe, store: Store, tokenizer: PreTrainedTokenizerBase
) -> tuple[PreTrainedModel, hf.LoadReport | None]:
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
    try:
        if wanted.source == "scratch":
            model = hf.build(wanted.family, config=wanted.config, seed=recipe.training.seed, **arguments)
        else:
            # A new head is drawn from the global generator while the checkpoint loads.
            torch.manual_seed(recipe.training.seed)
            model, report = hf.load(wanted.family, wanted.source, **arguments)
        _check_rows(recipe, model)
    except (ValueError, TypeError, OSError, SafetensorError, StrictDataclassError) as error:
        raise RunError(REQUEST, f"model {wanted.source}: {error}") from error
    return model, report


def _check_rows(recipe: Recipe, model: PreTrainedModel) -> None:
    """Raise ValueError if the model cannot read rows as the recipe makes them."""
    if isinstance(model, CanineForMaskedLM):
        num_slots = row_slots(recipe.data.row_length)
        # transformers gives the position table num_hash_buckets rows.
        most = min(model.config.max_position_embeddings, model.config.num_hash_buckets)
        if num_slots > most:
            raise ValueError(
                f"data.row_length {recipe.data.row_length} takes {num_slots} slots, and the model reads "
                f"{most} (the smaller of max_position_embeddings and num_hash_buckets); shorten the rows"
            )
    elif isinstance(model, DebertaForMaskedLM) and recipe.data.packing:
        try:
            check_packing(model.config)
        except ValueError as error:
            raise ValueError(f"{error} (data.packing: false)") from error


def build_layout(recipe: Recipe, tokenizer: PreTrainedTokenizerBase) -> Layout:
    """How rows become tensors."""
    if recipe.model.family == "canine":
        return Layout(kind="characters", row_length=recipe.data.row_length)
    return Layout(kind="words", row_length=recipe.data.row_length, pad_piece=int(tokenizer.pad_token_id))  # pyright: ignore[reportArgumentType]


def build_masking(
    recipe: Recipe, tokenizer: PreTrainedTokenizerBase, store: Store, *, is_frozen: bool = False
) -> Masking:
    """What is hidden: of training rows, or of the evaluation rows whose masks never change."""
    wanted = recipe.objective.masking
    rate = wanted.rate if not is_frozen or recipe.evaluation.rate is None else recipe.evaluation.rate
    shared = {"kind": wanted.kind, "rate": rate, "replace": wanted.replace}
    if recipe.model.family == "canine":
        return Masking(
            **shared,
            mask_piece=MASK_CHARACTER,
            random_pieces=np.asarray(store.code_points, np.uint32),
            special_pieces=np.array([], np.uint32),
        )
    specials = np.array(sorted(tokenizer.all_special_ids), np.uint32)
    ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    return Masking(
        **shared,
        mask_piece=int(tokenizer.mask_token_id),  # pyright: ignore[reportArgumentType]
        random_pieces=ordinary,
        special_pieces=specials,
    )


def count_classes(recipe: Recipe, tokenizer: PreTrainedTokenizerBase, store: Store) -> int:
    """Pieces that the model may answer with, special ones left out."""
    if recipe.model.family == "canine":
        return len(store.code_points)
    return len(tokenizer) - len(tokenizer.all_special_ids)
