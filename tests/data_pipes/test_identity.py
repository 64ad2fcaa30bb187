import json

import pytest
from transformers import AddedToken, AutoTokenizer, CanineTokenizer, DebertaV2Tokenizer

from data_pipes.tokenize import TokenizerError
from data_pipes.vocabulary.extend import extend_tokenizer
from data_pipes.vocabulary.identity import (
    FILE_NAME,
    check_identity,
    identify_tokenizer,
    next_version,
    read_identity,
    write_identity,
)
from tests.data_pipes.tiny_tokenizers import MAKERS, make_unigram, make_wordpiece

KINDS = pytest.mark.parametrize("kind", list(MAKERS))


@KINDS
def test_the_hash_is_the_same_after_two_trips_through_files(kind, tmp_path):
    tokenizer = MAKERS[kind]()
    found = identify_tokenizer(tokenizer)
    assert found["version"] == "0"
    for name in ("one", "two"):
        tokenizer.save_pretrained(str(tmp_path / name))
        tokenizer = AutoTokenizer.from_pretrained(str(tmp_path / name))
        assert identify_tokenizer(tokenizer) == found == identify_tokenizer(tmp_path / name)


def test_scores_that_a_file_moves_by_their_last_bit_keep_the_hash(tmp_path):
    state = json.loads(make_unigram().backend_tokenizer.to_str())
    vocab = [(piece, -1.0 - 7.0 / (number + 3)) for number, (piece, _) in enumerate(state["model"]["vocab"])]
    moved = [(piece, score * (1 + 2**-52)) for piece, score in vocab]
    assert moved != vocab
    hashes = [identify_tokenizer(DebertaV2Tokenizer(vocab=v, unk_id=3))["sha256"] for v in (vocab, moved)]
    assert hashes[0] == hashes[1]
    vocab[20] = (vocab[20][0], vocab[20][1] * 1.001)
    assert identify_tokenizer(DebertaV2Tokenizer(vocab=vocab, unk_id=3))["sha256"] != hashes[0]


@KINDS
def test_padding_truncation_and_use_do_not_change_the_hash(kind):
    tokenizer = MAKERS[kind]()
    found = identify_tokenizer(tokenizer)
    tokenizer(["the Wheeler", "the"], padding=True, truncation=True, max_length=8)
    assert identify_tokenizer(tokenizer) == found


def test_whatever_changes_the_pieces_of_a_text_changes_the_hash():
    hashes = {identify_tokenizer(make())["sha256"] for make in MAKERS.values()}
    backend_state = json.loads(make_unigram().backend_tokenizer.to_str())
    pairs = [tuple(pair) for pair in backend_state["model"]["vocab"]]
    swapped = [*pairs[:-2], pairs[-1], pairs[-2]]
    hashes.add(identify_tokenizer(DebertaV2Tokenizer(vocab=swapped, unk_id=3))["sha256"])
    hashes.add(identify_tokenizer(DebertaV2Tokenizer(vocab=pairs, unk_id=3, do_lower_case=True))["sha256"])
    cased = make_wordpiece()
    cased.add_tokens([AddedToken("reef", single_word=True)])
    hashes.add(identify_tokenizer(cased)["sha256"])
    assert len(hashes) == len(MAKERS) + 3


def test_a_model_folder_tells_whether_its_tokenizer_is_the_one_it_was_saved_with(tmp_path):
    make_unigram().save_pretrained(str(tmp_path / "model"))
    assert read_identity(tmp_path / "model") is None
    first = check_identity(tmp_path / "model")
    assert write_identity(tmp_path / "model", make_unigram()) == first == check_identity(tmp_path / "model")
    extend_tokenizer(make_unigram(), ["reef"], tmp_path / "other")
    for path in (tmp_path / "other").iterdir():
        (tmp_path / "model" / path.name).write_bytes(path.read_bytes())
    with pytest.raises(TokenizerError, match="version 1 .* names version 0 .*put back the tokenizer"):
        check_identity(tmp_path / "model")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": "1"}'])
def test_a_broken_identity_is_an_error(text, tmp_path):
    (tmp_path / FILE_NAME).write_text(text)
    with pytest.raises(TokenizerError, match="no identity of a tokenizer"):
        read_identity(tmp_path)


def test_a_character_tokenizer_has_an_identity_too(tmp_path):
    tokenizer = CanineTokenizer()
    found = identify_tokenizer(tokenizer)
    tokenizer.save_pretrained(str(tmp_path))
    assert identify_tokenizer(AutoTokenizer.from_pretrained(str(tmp_path), use_fast=False)) == found


@pytest.mark.parametrize(
    ("version", "after"),
    [("0", "1"), ("1", "2"), ("9", "10"), ("paleo", "paleo-2"), ("paleo-2", "paleo-3"), ("", "-2")],
)
def test_versions_count_up(version, after):
    assert next_version(version) == after
