import json

import pytest

from data_pipes.tokens.words import load_tokenizer
from data_pipes.vocabulary.extend import extend_tokenizer
from launch import judge as judge_module
from launch.judging.fit import check_characters, check_pieces
from launch.recipe_file import read_recipe
from launch.verdict import RunError
from modeling import hf
from tests.launch.judging.small import make_tokenizer
from tests.launch.judging.test_suite import CANINE, DEBERTA, Setting, write_corpus

SIZES = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}


@pytest.mark.parametrize("kind", ["unigram", "wordpiece"])
def test_a_saved_tokenizer_is_the_same_and_another_one_is_not(tmp_path, kind):
    tokenizer = make_tokenizer(kind)
    tokenizer.save_pretrained(tmp_path / "own")
    assert check_pieces(tmp_path / "own", tokenizer, len(tokenizer) + 9) is None
    other = make_tokenizer("byte_level" if kind == "wordpiece" else "wordpiece")
    other.save_pretrained(tmp_path / "other")
    with pytest.raises(RunError, match="another vocabulary") as error:
        check_pieces(tmp_path / "other", tokenizer, 10**6)
    assert error.value.verdict.exit_code == 2
    with pytest.raises(RunError, match=rf"knows 7 pieces and the recipe's tokenizer has {len(tokenizer)}"):
        check_pieces(tmp_path / "own", tokenizer, 7)


def test_a_folder_without_a_tokenizer_cannot_be_checked_and_says_so(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "deberta-v2"}')
    assert "cannot be checked" in str(check_pieces(tmp_path, make_tokenizer(), 10**6))


def test_pieces_beyond_those_of_the_recipe_are_told(tmp_path):
    tokenizer = make_tokenizer()
    extend_tokenizer(tokenizer, ["Burgess", "limestone"], tmp_path / "extended")
    extended = load_tokenizer(tmp_path / "extended")
    num_more = len(extended) - len(tokenizer)
    assert num_more > 0
    found = check_pieces(tmp_path / "extended", make_tokenizer(), len(extended))
    assert f"has {num_more} pieces more" in str(found)
    with pytest.raises(RunError, match="recipe's tokenizer has"):
        check_pieces(tmp_path / "extended", extended, len(extended) - 1)


def test_characters_that_a_model_cannot_answer_are_told(tmp_path):
    assert check_characters(tmp_path, [97]) is None
    for table, wanted in (([97, 98], "1 of the 2 characters"), ([97, 99], None), ([], None)):
        (tmp_path / "config.json").write_text(json.dumps({"head_code_points": table}))
        found = check_characters(tmp_path, [97, 99])
        assert str(found) == str(wanted) or (wanted and wanted in str(found))


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("MASKWRIGHT_CACHE", str(tmp_path / "cache"))


def test_the_verb_refuses_a_model_of_another_vocabulary(tmp_path, cache, monkeypatch, capsys):
    corpus = write_corpus(tmp_path / "corpus.jsonl", 60)
    words = [f"data.sources=[{{kind: jsonl, path: {corpus}}}]", "data.evaluation_share=0.4"]
    own, other = (Setting(DEBERTA, [*words, f"tokenizer.vocab_size={size}"]) for size in (50, 40))
    model = hf.build("deberta", config=SIZES, num_pieces=len(own.tokenizer), dropout=0.0, seed=0)
    hf.save(model, tmp_path / "model", own.tokenizer)
    assert judge_module.judge(tmp_path / "model", own.recipe, as_json=True) == 0
    assert "note" not in capsys.readouterr().err
    with pytest.raises(RunError, match="another vocabulary"):
        judge_module.judge(tmp_path / "model", other.recipe, as_json=True)


def test_the_verb_tells_of_characters_that_the_model_does_not_know(tmp_path, cache, capsys):
    (tmp_path / "names.txt").write_text("\n".join(f"{letter}{n}.com" for letter in "abc" for n in range(60)))
    recipe = read_recipe(
        CANINE,
        [f"data.sources=[{{kind: text, path: {tmp_path / 'names.txt'}}}]", "data.evaluation_share=0.4"],
    )
    config = {**recipe.model.config, **SIZES}
    model = hf.build("canine", config=config, head_code_points=list(range(97, 123)), dropout=0.0, seed=0)
    hf.save(model, tmp_path / "model")
    assert judge_module.judge(tmp_path / "model", recipe, as_json=True) == 0
    assert "are not in the table" in capsys.readouterr().err.replace("\n", " ")
