import os
import subprocess
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from data_pipes.documents import SourceError
from data_pipes.tokenize import PieceEncoder, TokenizerError
from data_pipes.vocab import SPECIAL_PIECES, train_tokenizer

ROOT = Path(__file__).parents[2]
WORDS = "the shale of a fossil reef yields many small trilobites and brachiopods from Cambrian beds".split()
TEXTS = [
    f"{WORDS[n % 14]} {WORDS[n * 5 % 14]}, {WORDS[n * 3 % 14]} ({n}) [MASK] [M A S K] \u03b1\u65e5\u672c."
    for n in range(300)
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("vocab")
    train_tokenizer([pa.array(TEXTS[:100]), pa.array(TEXTS[100:])], "unigram", 80, folder)
    return folder


def test_processes_with_different_hash_seeds_write_the_same_bytes(folder, tmp_path):
    code = (
        "import sys, pathlib, pyarrow as pa; from data_pipes.vocab import train_tokenizer; "
        "from tests.data_pipes.test_vocab import TEXTS; "
        "train_tokenizer([pa.array(TEXTS)], 'unigram', 80, pathlib.Path(sys.argv[1]))"
    )
    for seed in ("1", "2"):
        environment = os.environ | {"PYTHONHASHSEED": seed}
        subprocess.run([sys.executable, "-c", code, tmp_path / seed], cwd=ROOT, env=environment, check=True)
        names = sorted(path.name for path in (tmp_path / seed).iterdir())
        assert names == sorted(path.name for path in folder.iterdir())
        for name in names:
            assert (tmp_path / seed / name).read_bytes() == (folder / name).read_bytes(), name


def test_the_auto_class_loads_it_with_special_pieces_first_and_the_size_asked_for(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert len(tokenizer) == 80
    assert tokenizer.convert_ids_to_tokens(range(5)) == list(SPECIAL_PIECES)
    named = (tokenizer.pad_token, tokenizer.cls_token, tokenizer.sep_token, tokenizer.unk_token)
    assert (*named, tokenizer.mask_token) == SPECIAL_PIECES
    assert len(tokenizer.get_vocab()) == 80


@settings(max_examples=60, deadline=None)
@given(words=st.lists(st.sampled_from([*WORDS, "(12)", "reef,", "\u65e5\u672c", "\u03b1"]), min_size=1))
def test_ordinary_text_is_decoded_to_itself(folder, words):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = " ".join(words)
    assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


def test_a_literal_mask_in_the_text_is_spelt_out(folder):
    tokenizer = AutoTokenizer.from_pretrained(folder)
    ids = PieceEncoder(tokenizer).encode(pa.array(["a [MASK] reef"])).ids.tolist()
    assert not set(ids) & set(range(5))
    assert tokenizer.decode(ids) == "a [MASK] reef"


def test_the_model_itself_prefers_letters_to_a_special_name(folder):
    # Without PieceEncoder, which also renames them: what other users of the saved folder get.
    backend = AutoTokenizer.from_pretrained(folder).backend_tokenizer
    backend.encode_special_tokens = True
    ids = backend.encode("a [MASK] reef", add_special_tokens=False).ids
    assert not set(ids) & set(range(5))


@pytest.mark.parametrize(
    ("vocab_size", "reason"), [(50_000, "Vocabulary size too high"), (10, "Vocabulary size is smaller than")]
)
def test_a_size_that_the_text_cannot_give_is_said_in_words(tmp_path, vocab_size, reason):
    with pytest.raises(TokenizerError, match=f"no tokenizer of {vocab_size} pieces .*: {reason}"):
        train_tokenizer([pa.array(TEXTS)], "unigram", vocab_size, tmp_path)
    assert not list(tmp_path.iterdir())


def test_what_stops_the_reading_comes_through_as_it_is(tmp_path):
    def read():
        yield pa.array(TEXTS)
        raise SourceError("line 7 is bad")

    with pytest.raises(SourceError, match="^line 7 is bad$"):
        train_tokenizer(read(), "unigram", 80, tmp_path)


def test_no_text_at_all_is_an_error_about_the_data(tmp_path):
    with pytest.raises(SourceError, match=r"check data\.sources"):
        train_tokenizer([pa.array([], pa.string())], "unigram", 80, tmp_path)


def test_a_kind_that_cannot_be_trained_is_refused(tmp_path):
    with pytest.raises(TokenizerError, match="'bpe' cannot be trained; write unigram"):
        train_tokenizer([], "bpe", 80, tmp_path)  # pyright: ignore[reportArgumentType]


def test_the_trainer_reads_no_more_characters_than_it_may(tmp_path):
    num_read = []

    def read():
        for number, text in enumerate(TEXTS):
            num_read.append(number)
            yield pa.array([text])

    whole = "".join(TEXTS)
    limit = len("".join(TEXTS[:200])) + 10
    train_tokenizer(read(), "unigram", 70, tmp_path / "bounded", max_characters=limit)
    assert len(num_read) == 201
    train_tokenizer([pa.array([*TEXTS[:200], whole[limit - 10 : limit]])], "unigram", 70, tmp_path / "same")
    for path in (tmp_path / "bounded").iterdir():
        assert path.read_bytes() == (tmp_path / "same" / path.name).read_bytes(), path.name
    train_tokenizer([pa.array(TEXTS)], "unigram", 70, tmp_path / "all")
    names = [tmp_path / name / "tokenizer.json" for name in ("bounded", "all")]
    assert names[0].read_bytes() != names[1].read_bytes()
