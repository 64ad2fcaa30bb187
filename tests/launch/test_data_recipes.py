"""What a recipe says of its data, carried out by the launcher."""

import json
import sys

import numpy as np
import pytest
import torch
from transformers import AutoTokenizer

from data_pipes.ordering.mixture import Mixture
from data_pipes.vocabulary.identity import identify_tokenizer, read_identity
from launch.build import build_layout, build_masking, build_model, build_order, build_tokenizer
from launch.corpus import measure_corpus, prepare_corpus
from launch.hardware import find_profile
from launch.options import Options
from launch.plan import make_plan
from launch.recipe_check import RecipeError
from launch.recipe_file import read_recipe
from launch.verdict import RunError
from modeling import hf
from tests.commands import start
from tests.data_pipes.tiny_tokenizers import make_unigram

CANINE, DEBERTA = "canine-tiny-domains-char", "deberta-tiny-encyclopedia-wwm"
TERMS = ("trilobites", "Wheeler_Formation")


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def names(tmp_path):
    for part in range(2):
        lines = [f"name{part}x{number}.co.uk" for number in range(200 + 200 * part)]
        (tmp_path / f"names{part}.txt").write_text("\n".join(lines))
    return tmp_path


def sources_of(folder, *extra):
    parts = [f"{{kind: text, path: {folder / f'names{part}.txt'}{more}}}" for part, more in enumerate(extra)]
    return f"data.sources=[{', '.join(parts)}]"


@pytest.fixture
def prose(tmp_path):
    lines = [f"The Wheeler_Formation yields {n} trilobites, they say ({n % 7} fossils)." for n in range(150)]
    (tmp_path / "prose.txt").write_text("\n".join(lines))
    (tmp_path / "terms.txt").write_text("\n".join(TERMS))
    make_unigram().save_pretrained(tmp_path / "tokenizer")
    return tmp_path


def prose_recipe(folder, *overrides):
    return read_recipe(
        DEBERTA,
        [
            f"data.sources=[{{kind: text, path: {folder / 'prose.txt'}}}]",
            f"tokenizer={{source: {folder / 'tokenizer'}}}",
            "data.evaluation_share=0.1",
            *overrides,
        ],
    )


def test_weighted_sources_are_mixed_as_the_recipe_says(names):
    recipe = read_recipe(
        CANINE, [sources_of(names, ", weight: 3", ", weight: 1"), "data.evaluation_share=0.1"]
    )
    store = prepare_corpus(recipe)
    order = build_order(recipe, store)
    assert isinstance(order, Mixture)
    num_first = store.train.summary["source_rows"][0]
    row_ids, _ = order.rows_of_step(0, 400)
    assert np.count_nonzero(row_ids < num_first) == 300


def test_a_weighted_source_without_rows_is_refused(names):
    (names / "names1.txt").write_text((names / "names0.txt").read_text())
    recipe = read_recipe(
        CANINE, [sources_of(names, ", weight: 3", ", weight: 1"), "data.evaluation_share=0.1"]
    )
    with pytest.raises(RunError, match=r"cannot be mixed: no training row came from data.sources.1; take it"):
        build_order(recipe, prepare_corpus(recipe))


def test_a_limit_is_shared_out_by_the_weights_so_that_a_mixture_can_be_tried(names):
    sources = sources_of(names, ", weight: 3", ", weight: 1")
    recipe = read_recipe(CANINE, [sources, "data.evaluation_share=0.1", "data.limit=100"])
    store = prepare_corpus(recipe)
    splits = store.manifest["splits"].values()
    assert sum(split["num_documents"] for split in splits) == 100
    first = sum(split["source_rows"][0] for split in splits)
    assert first == 75
    assert isinstance(build_order(recipe, store), Mixture)
    other = sources_of(names, ", weight: 1", ", weight: 1")
    store = prepare_corpus(read_recipe(CANINE, [other, "data.evaluation_share=0.1", "data.limit=100"]))
    assert sum(split["source_rows"][0] for split in store.manifest["splits"].values()) == 50


def test_weights_leave_a_source_for_the_evaluation_alone(names):
    (names / "held.txt").write_text("\n".join(f"held{number}.example" for number in range(50)))
    held = f"{{kind: text, path: {names / 'held.txt'}, split: evaluation}}"
    mixed = sources_of(names, ", split: train, weight: 3", ", split: train, weight: 1")
    recipe = read_recipe(CANINE, [mixed.replace("=[", f"=[{held}, ")])
    store = prepare_corpus(recipe)
    assert store.train.summary["source_rows"] == [0, 200, 400]
    row_ids, _ = build_order(recipe, store).rows_of_step(0, 400)
    assert np.count_nonzero(row_ids < 200) == 300
    assert 200 <= row_ids.max() < 600
    weighted = held.replace("}", ", weight: 1}")
    with pytest.raises(RecipeError, match="not trained on; remove its weight"):
        read_recipe(CANINE, [mixed.replace("=[", f"=[{weighted}, ")])


def test_character_batches_have_a_few_shapes_unless_a_step_is_one_batch(names):
    recipe = read_recipe(CANINE, [sources_of(names, "", ""), "data.evaluation_share=0.1"])
    store = prepare_corpus(recipe)
    tokenizer = build_tokenizer(recipe, store)
    shapes = build_layout(recipe, tokenizer, store, is_cut=True).shapes
    assert 1 <= len(shapes) <= 8
    assert not build_layout(recipe, tokenizer, store).shapes
    longest = int(max(store.train.lengths.max(), store.evaluation.lengths.max()))
    assert build_layout(recipe, tokenizer, store, is_cut=True).count_slots(longest) == shapes[-1]


def test_a_character_step_is_cut_in_two_at_least():
    recipe = read_recipe(CANINE, ["training.global_batch=64"])
    plan = make_plan(recipe, find_profile("a100-40gb"), Options(), measure_corpus(recipe))
    assert (plan.micro_batch, plan.accumulation) == (32, 2)
    asked = make_plan(recipe, find_profile("a100-40gb"), Options(micro_batch=64), measure_corpus(recipe))
    assert (asked.micro_batch, asked.accumulation) == (64, 1)


def test_names_under_a_million_get_a_warning(names):
    recipe = read_recipe(CANINE, [sources_of(names, "", "")])
    plan = make_plan(recipe, find_profile("cpu"), Options(), measure_corpus(recipe))
    assert [text for text in plan.warnings if "600 names are few" in text or "59" in text]


@pytest.mark.parametrize(
    ("family", "masking"),
    [
        (CANINE, "{kind: character_span, mean_span: 2.5, max_span: 5}"),
        (CANINE, "{kind: character, public_suffix: never}"),
        (CANINE, "{kind: character, public_suffix: always}"),
    ],
)
def test_masks_of_characters_are_built_as_the_recipe_says(names, family, masking):
    recipe = read_recipe(
        family, [sources_of(names, "", ""), f"objective.masking={masking}", "data.evaluation_share=0.1"]
    )
    store = prepare_corpus(recipe)
    built = build_masking(recipe, build_tokenizer(recipe, store), store)
    wanted = recipe.objective.masking
    assert (built.kind, built.suffix) == (wanted.kind, wanted.public_suffix)
    assert built.mean_span == (wanted.mean_span or 3.0)


def test_listed_terms_weigh_more_in_training_and_nothing_in_the_evaluation(prose):
    terms = f"{{kind: whole_word, terms: {{path: {prose / 'terms.txt'}, factor: 4}}}}"
    recipe = prose_recipe(prose, f"objective.masking={terms}")
    store = prepare_corpus(recipe)
    tokenizer = build_tokenizer(recipe, store)
    assert build_masking(recipe, tokenizer, store).weights.factor == 4
    assert build_masking(recipe, tokenizer, store, is_frozen=True).weights is None


def test_a_folder_without_a_tokenizer_is_refused_before_it_is_extended(prose):
    (prose / "none").mkdir()
    tokenizer = f"tokenizer={{source: {prose / 'none'}, extend: {{terms: {prose / 'terms.txt'}}}}}"
    with pytest.raises(RunError, match="holds no tokenizer"):
        prepare_corpus(prose_recipe(prose, tokenizer))


def test_a_recipe_extends_its_tokenizer_and_new_rows_start_as_the_mean_of_their_old_pieces(prose, tmp_path):
    tokenizer = make_unigram()
    old = hf.build(
        "deberta", config=read_recipe(DEBERTA).model.config, num_pieces=len(tokenizer), dropout=0.0, seed=3
    )
    hf.save(old, tmp_path / "model", tokenizer)
    recipe = prose_recipe(
        prose,
        f"tokenizer={{source: {prose / 'tokenizer'}, extend: {{terms: {prose / 'terms.txt'}}}}}",
        f"model={{family: deberta, source: {tmp_path / 'model'}}}",
    )
    store = prepare_corpus(recipe)
    extended = build_tokenizer(recipe, store)
    assert len(extended) == len(tokenizer) + len(TERMS)
    assert identify_tokenizer(extended)["version"] == "1"
    model, _ = build_model(recipe, store, extended)
    before, after = (each.state_dict()["deberta.embeddings.word_embeddings.weight"] for each in (old, model))
    assert torch.equal(after[: len(before)], before)
    for term in TERMS:
        number = extended.convert_tokens_to_ids(f"\u2581{term}")
        pieces = tokenizer(f" {term}", add_special_tokens=False)["input_ids"]
        assert torch.allclose(after[number], before[pieces].mean(0), atol=1e-6)
    taken = store.train.take(np.arange(store.train.num_rows)).pieces
    assert np.isin(extended.convert_tokens_to_ids(["\u2581trilobites"]), taken).all()


def run_verb(*arguments, folder):
    return start([sys.executable, "-m", "launch", *map(str, arguments)], folder)


def test_the_verbs_of_the_vocabulary_work_one_after_the_other(prose, tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nextends: {DEBERTA}\n"
        f"tokenizer: {{source: {prose / 'tokenizer'}, kind: null, vocab_size: null}}\n"
        f"data: {{sources: [{{kind: text, path: {prose / 'prose.txt'}}}], evaluation_share: 0.1}}\n"
    )
    mined = run_verb(
        "vocab",
        "mine",
        recipe,
        tmp_path / "t.tsv",
        "--list",
        prose / "terms.txt",
        "--lists-only",
        folder=tmp_path,
    )
    assert mined.exit_code == 0, mined.stderr
    listed = [line.split("\t")[0] for line in (tmp_path / "t.tsv").read_text().splitlines()]
    assert "trilobites" in listed
    made = run_verb(
        "vocab",
        "extend",
        prose / "tokenizer",
        tmp_path / "t.tsv",
        tmp_path / "new",
        "--version",
        "7",
        folder=tmp_path,
    )
    assert made.exit_code == 0, made.stderr
    assert identify_tokenizer(AutoTokenizer.from_pretrained(tmp_path / "new"))["version"] == "7"
    told = run_verb(
        "vocab", "report", recipe, prose / "tokenizer", tmp_path / "new", "--json", folder=tmp_path
    )
    assert told.exit_code == 0, told.stderr
    assert "before" in json.loads(told.stdout)


def test_a_corpus_is_normalised_and_read_again_as_aligned_records(prose, tmp_path):
    (prose / "prose.txt").write_text("\n".join(f"Bed {n} of the  Wheeler Shale of Utah." for n in range(90)))
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        f"name: r\nextends: {DEBERTA}\n"
        f"data: {{sources: [{{kind: text, path: {prose / 'prose.txt'}}}], evaluation_share: 0.1, "
        "normalize: [{kind: whitespace}, {kind: terms, file: chronostratigraphy}]}\n"
    )
    done = run_verb("data", "normalize", recipe, tmp_path / "n.jsonl.gz", folder=tmp_path)
    assert done.exit_code == 0, done.stderr
    again = read_recipe(
        DEBERTA,
        [
            f"data.sources=[{{kind: aligned, path: {tmp_path / 'n.jsonl.gz'}}}]",
            f"tokenizer={{source: {prose / 'tokenizer'}}}",
            "data.evaluation_share=0.1",
        ],
    )
    store = prepare_corpus(again)
    text = build_tokenizer(again, store).decode(store.train.take(np.arange(1)).pieces.tolist())
    assert "Wheeler_Shale" in text
    assert run_verb("data", "normalize", recipe, tmp_path / "n.jsonl.gz", folder=tmp_path).exit_code == 2


def stream_recipe(folder, path):
    recipe = folder / "stream.yaml"
    recipe.write_text(
        f"name: stream\nextends: {CANINE}\n"
        f"data: {{sources: [{{kind: text, path: '{path}'}}], row_length: 32, evaluation_share: 0.05, "
        "streaming: true, shard_rows: 300}\n"
        "training: {global_batch: 16, max_steps: 12, learning_rate: 1.0e-3}\n"
        "evaluation: {every: 6}\ncheckpoint: {every: 6, keep: 2}\n"
    )
    return recipe


@pytest.mark.ranks
def test_a_stream_is_trained_on_and_a_run_on_the_whole_store_is_the_same(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part in range(6):
        (folder / f"{part}.txt").write_text("\n".join(f"n{part}x{number}.example" for number in range(200)))
    # Characters that the first shard lacks.
    (folder / "6.txt").write_text("\n".join(f"{chr(0x430 + n)}{chr(0x3B1 + n)}.example" for n in range(20)))
    recipe = stream_recipe(tmp_path, folder / "*.txt")
    first = run_verb("run", recipe, "--profile", "cpu", "--output", tmp_path / "one", folder=tmp_path / "one")
    assert first.exit_code == 0, first.stderr
    assert run_verb("data", "prepare", recipe, folder=tmp_path).exit_code == 0
    second = run_verb(
        "run", recipe, "--profile", "cpu-2proc", "--output", tmp_path / "two", folder=tmp_path / "two"
    )
    assert second.exit_code == 0, second.stderr
    assert first.losses() == pytest.approx(second.losses(), rel=2e-6)
    # The first run's stream was still growing when it began.
    for kind in ("yardstick", "masks"):
        one, two = (
            [{k: v for k, v in event.items() if k != "time"} for event in ran.events(kind)]
            for ran in (first, second)
        )
        assert one == two != []
    assert read_identity(tmp_path / "one" / "final") is None


@pytest.mark.ranks
def test_a_fault_late_in_a_stream_ends_the_run_with_exit_code_2(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    for part in range(3):
        (folder / f"{part}.txt").write_text("\n".join(f"n{part}x{number}.example" for number in range(200)))
    (folder / "3.txt").write_bytes(b"\xff\xfe\xfa\n")
    recipe = stream_recipe(tmp_path, folder / "*.txt")
    ran = run_verb(
        "run",
        recipe,
        "--profile",
        "cpu",
        "--output",
        tmp_path / "one",
        "training.max_steps=400",
        folder=tmp_path / "one",
    )
    assert ran.exit_code == 2
    assert "3.txt" in ran.stderr
