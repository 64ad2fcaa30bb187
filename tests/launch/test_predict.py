import pytest
import torch
from transformers import CanineTokenizer

from data_pipes.documents import Batch
from data_pipes.vocab import train_tokenizer
from launch.export import compare_logits, export
from launch.predict import as_dict, fill, fill_texts, find_model, render
from modeling import hf
from tests.commands import ROOT

ALPHABET = [ord(c) for c in "abcdefghijklmnopqrstuvwxyz.-"]


@pytest.fixture(scope="module")
def characters():
    config = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "num_hash_buckets": 128,
    }  # fmt: skip
    return hf.build("canine", config=config, head_code_points=ALPHABET, dropout=0.0, seed=0).eval()


@pytest.fixture(scope="module")
def words(tmp_path_factory):
    texts = (ROOT / "LICENSE").read_text().splitlines()
    column = Batch.from_strings(texts).texts
    tokenizer = train_tokenizer([column], "unigram", 120, tmp_path_factory.mktemp("tokenizer"))
    config = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "max_position_embeddings": 64, "position_buckets": 16,
    }  # fmt: skip
    model = hf.build("deberta", config=config, num_pieces=len(tokenizer), dropout=0.0, seed=0).eval()
    return model, tokenizer


def reference(model, ids, slot):
    with torch.no_grad():
        logits = model(
            input_ids=torch.tensor([ids]), attention_mask=torch.ones(1, len(ids), dtype=torch.long)
        ).logits
    return logits[0, slot].double().softmax(-1)


def test_a_hidden_character_is_filled_from_its_own_slot(characters):
    (filled,) = fill_texts(characters, None, ["goo_le.com"], top=3)
    ids = [0xE000, *map(ord, "goo"), 0xE003, *map(ord, "le.com"), 0xE001]
    wanted = reference(characters, ids, 4)
    (place,) = filled.places
    assert place.position == 3
    best = [one for one in wanted.argsort(descending=True).tolist()][:3]
    names = ["other" if index == 0 else chr(sorted(ALPHABET)[index - 1]) for index in best]
    assert [candidate.piece for candidate in place.candidates] == names
    assert [c.probability for c in place.candidates] == pytest.approx(wanted[best].tolist(), rel=1e-4)


def test_several_hidden_characters_are_filled_at_once_and_only_they(characters):
    (filled,) = fill_texts(characters, None, ["g__gle._om"])
    assert [place.position for place in filled.places] == [1, 2, 7]
    assert len(filled.completed) == len("g__gle._om")
    assert "_" not in filled.completed
    assert filled.completed[0] == "g"
    assert filled.completed[3:7] == "gle."


def test_a_batch_gives_what_its_texts_give_alone(characters):
    texts = ["a_c", "abcdefghijklmnop_rstuv.com", "__"]
    together = fill_texts(characters, None, texts)
    alone = [fill_texts(characters, None, [text])[0] for text in texts]
    assert [one.completed for one in together] == [one.completed for one in alone]
    for left, right in zip(together, alone, strict=True):
        for a, b in zip(left.places, right.places, strict=True):
            assert [c.probability for c in a.candidates] == pytest.approx(
                [c.probability for c in b.candidates], rel=1e-3
            )


def test_a_hidden_word_is_filled_with_ordinary_pieces(words):
    model, tokenizer = words
    (filled,) = fill_texts(model, tokenizer, ["the [MASK] of this [MASK] license"], top=len(tokenizer))
    assert len(filled.places) == 2
    specials = set(tokenizer.all_special_tokens)
    for place in filled.places:
        assert not specials & {candidate.piece for candidate in place.candidates}
        assert sum(candidate.probability for candidate in place.candidates) < 1
    assert "[MASK]" not in filled.completed
    assert filled.completed.startswith("the")
    assert filled.completed.endswith(" license")


def test_word_probabilities_are_those_of_the_tokenizers_own_encoding(words):
    model, tokenizer = words
    text = "the [MASK] of this license"
    (filled,) = fill_texts(model, tokenizer, [text], top=1)
    ids = tokenizer(text)["input_ids"]
    wanted = reference(model, ids, ids.index(tokenizer.mask_token_id))
    wanted[tokenizer.all_special_ids] = 0
    assert filled.places[0].candidates[0].probability == pytest.approx(float(wanted.max()), rel=1e-4)


@pytest.mark.parametrize("text", ["google.com", "", "a\ue003b_"])
def test_a_text_that_cannot_be_filled_says_what_to_write(text, characters):
    with pytest.raises(ValueError, match=r"write _|remove it"):
        fill_texts(characters, None, [text])


def test_a_word_text_without_a_mask_says_what_to_write(words):
    model, tokenizer = words
    with pytest.raises(ValueError, match=r"\[MASK\]"):
        fill_texts(model, tokenizer, ["nothing is hidden"])


def test_the_model_is_left_in_its_mode(characters):
    characters.train()
    fill_texts(characters, None, ["a_c"])
    assert characters.training
    characters.eval()


def test_a_run_folder_is_looked_through_for_its_best_model(characters, tmp_path):
    with pytest.raises(ValueError, match="holds no model"):
        find_model(tmp_path)
    for name in ("checkpoint-5", "checkpoint-20", "best", "final"):
        hf.save(characters, tmp_path / name, CanineTokenizer())
        assert find_model(tmp_path) == tmp_path / name
    assert (
        fill(tmp_path, ["goo_le.com"])[0].completed
        == fill_texts(characters, None, ["goo_le.com"])[0].completed
    )


def test_fills_are_plain_data_and_a_table(characters):
    filled = fill_texts(characters, None, ["goo_le.com"], top=2)
    data = as_dict(filled[0])
    assert set(data) == {"text", "places", "completed"}
    assert set(data["places"][0]["candidates"][0]) == {"piece", "probability"}
    from rich.console import Console

    console = Console(width=100, record=True, file=open("/dev/null", "w"))  # noqa: SIM115, PTH123
    console.print(render(filled))
    assert filled[0].completed in console.export_text()


def make_run(characters, folder):
    hf.save(characters, folder / "final", CanineTokenizer())
    (folder / "recipe.resolved.yaml").write_text(
        "name: small\nmodel: {family: canine, source: google/canine-c}\n"
        "objective: {masking: {kind: character, rate: 0.15}}\n"
        "data: {sources: [{kind: package, package: names, version: '1.0', licence: CC0}]}\n"
    )
    (folder / "metrics.jsonl").write_text(
        '{"kind": "eval", "step": 0, "loss": 3.0, "perplexity": 20.1, "num_targets": 10}\n'
        '{"kind": "eval", "step": 9, "loss": 2.0, "perplexity": 7.39, "num_targets": 10}\n'
    )
    return folder


def test_an_export_is_a_whole_folder_with_a_card_of_known_facts(characters, tmp_path):
    out = export(make_run(characters, tmp_path / "run"), tmp_path / "out")
    assert compare_logits(tmp_path / "run" / "final", out) == 0.0
    card = (out / "README.md").read_text()
    assert card.startswith("---\n")
    for words in (
        "base_model: google/canine-c",
        "pipeline_tag: fill-mask",
        "7.39",
        "20.1",
        "15 %",
        "CC0",
        "import modeling",
    ):
        assert words in card, words
    assert "Learning rate" not in card
    assert not (out / "training").exists()


def test_an_export_refuses_a_folder_in_use_and_leaves_no_draft(characters, tmp_path):
    run = make_run(characters, tmp_path / "run")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("keep")
    with pytest.raises(ValueError, match="in use"):
        export(run, tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]
    with pytest.raises(ValueError, match="holds no model"):
        export(tmp_path, tmp_path / "other")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "run"]
