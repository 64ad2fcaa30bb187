from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models
from transformers import (
    BertConfig,
    BertForMaskedLM,
    CanineConfig,
    CanineModel,
    DebertaV2Config,
    DebertaV2ForMaskedLM,
    PreTrainedTokenizerFast,
)

from launch.costing.sizes import HUB_MODELS, count_pieces, find_sizes
from launch.costing.work import Work, count_parameters
from launch.recipe_file import read_recipe, shipped_recipes
from modeling import hf
from modeling.canine import row_slots


def count_built(model):
    return sum(parameter.numel() for parameter in model.parameters())


@pytest.mark.parametrize(
    "source", ["microsoft/deberta-v3-base", "microsoft/deberta-v3-large", "google/canine-c"]
)
def test_parameters_of_the_hub_models_are_those_of_the_classes_within_half_a_percent(source):
    sizes = {"position_biased_input": False, "vocab_size": 128_100, **HUB_MODELS[source]}
    with torch.device("meta"):
        if sizes["model_type"] == "canine":
            model: Any = CanineModel(CanineConfig())
        else:
            model = DebertaV2ForMaskedLM(
                DebertaV2Config(**{k: v for k, v in sizes.items() if k != "model_type"})
            )
    assert count_parameters(HUB_MODELS[source]) == pytest.approx(count_built(model), rel=0.005)


def test_parameters_of_bert_are_counted_too():
    with torch.device("meta"):
        model = BertForMaskedLM(BertConfig())
    assert count_parameters(HUB_MODELS["google-bert/bert-base-uncased"]) == pytest.approx(
        count_built(model), rel=0.01
    )


@pytest.mark.parametrize("name", ["deberta-tiny-encyclopedia-wwm", "canine-tiny-domains-char"])
def test_parameters_of_small_models_are_within_a_few_percent(name):
    recipe = read_recipe(name)
    family, vocab_size = recipe.model.family, recipe.tokenizer.vocab_size if recipe.tokenizer else None
    arguments: dict[str, Any] = (
        {"num_pieces": vocab_size} if vocab_size else {"head_code_points": range(97, 137)}
    )
    model = hf.build(family, config=recipe.model.config, seed=0, dropout=0.0, **arguments)
    sizes: Any = find_sizes(family, "scratch", recipe.model.config, vocab_size)
    assert count_parameters(sizes) == pytest.approx(count_built(model), rel=0.04)


def test_the_pieces_of_a_tokenizer_in_a_folder_are_counted_for_a_model_from_scratch(tmp_path):
    """Else the library's default of 128,100 would stand for them."""
    tokenizer = Tokenizer(
        models.WordPiece({"[UNK]": 0, "[PAD]": 1, "mud": 2, "##stone": 3}, unk_token="[UNK]")
    )
    tokenizer.add_tokens(["shale", "Burgess"])
    wrapped = PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="[UNK]", mask_token="[MASK]")
    wrapped.save_pretrained(tmp_path)
    assert len(wrapped) == 7
    assert count_pieces(str(tmp_path)) == len(wrapped)
    overrides = [f"tokenizer={{source: {tmp_path}}}"]
    work = Work.of(read_recipe("deberta-tiny-encyclopedia-wwm", overrides), None)
    assert work is not None
    assert work.parts[0]["vocab_size"] == len(wrapped)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert count_pieces(str(tmp_path)) is None
    assert count_pieces("microsoft/deberta-v3-base") is None


def test_every_shipped_recipe_has_known_work():
    for path in shipped_recipes():
        work = Work.of(read_recipe(path), 15.0)
        assert work is not None
        assert work.flops() > 3 * work.flops(is_training=False) * 0.9
        assert work.flops() < work.flops(checkpointing=True) < 1.4 * work.flops()


def test_memory_is_planned_for_rows_as_long_as_they_may_be():
    recipe = read_recipe("canine-c-domains-char")
    work: Any = Work.of(recipe, 14.0)
    longest = work.longest(recipe.data.row_length)
    assert work.num_slots == row_slots(16)
    assert longest.num_slots == max(row_slots(n + 2) for n in range(recipe.data.row_length + 1)) == 256
    assert longest.num_targets / longest.num_slots == pytest.approx(
        work.num_targets / work.num_slots, rel=1e-3
    )
    words: Any = Work.of(read_recipe("deberta-v3-base-paleo-wwm"), 400.0)
    assert words.longest(512) is words


def test_an_unknown_model_has_no_work():
    assert Work.of(read_recipe("canine-c-domains-char", ["model.source=someone/unknown"]), 15.0) is None
