import json
import sys
from collections import defaultdict

import numpy as np
import pytest
from transformers import CanineTokenizer

from data_pipes.masking import Hidden, Masking, hide
from data_pipes.rows import Rows
from launch.preview import count_fates, describe_rows, render_row
from tests.commands import QUICK, start
from tests.data_pipes.tiny_tokenizers import make_unigram

CANINE, DEBERTA = QUICK
SPECIALS = {"[CLS]", "[SEP]", "[PAD]", "[UNK]", "[MASK]"}


def preview(recipe, tmp_path, *arguments):
    command = [sys.executable, "-m", "launch", "data", "preview", recipe, QUICK[recipe][0], *arguments]
    done = start(command, tmp_path)
    assert done.exit_code == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("recipe", list(QUICK))
def test_a_preview_as_json_shows_whole_words_hidden_and_nothing_else_changed(recipe, tmp_path):
    rows = [json.loads(line) for line in preview(recipe, tmp_path, "--rows", "200", "--json").splitlines()]
    assert len(rows) == 200
    num_targets = num_pieces = 0
    for row in rows:
        pieces, words, targets, inputs = row["pieces"], row["word"], row["target"], row["input"]
        assert len(pieces) == len(words) == len(targets) == len(inputs)
        assert any(targets)
        of_word = defaultdict(set)
        for piece, word, is_target, given in zip(pieces, words, targets, inputs, strict=True):
            is_special = recipe == DEBERTA and piece in SPECIALS
            assert (word is None) == is_special
            assert not (is_special and is_target)
            assert is_target or given == piece
            if word is not None:
                of_word[word].add(is_target)
        assert all(len(found) == 1 for found in of_word.values())
        known = [word for word in words if word is not None]
        assert known == sorted(known)
        num_targets += sum(targets)
        num_pieces += len(known)
    assert num_targets / num_pieces == pytest.approx(0.15, rel=0.1)


def test_texts_of_characters_read_as_they_are(tmp_path):
    rows = [json.loads(line) for line in preview(CANINE, tmp_path, "--rows", "5", "--json").splitlines()]
    assert all("".join(row["pieces"]) == row["text"] for row in rows)


@pytest.mark.parametrize("recipe", list(QUICK))
def test_a_preview_for_people_marks_what_is_hidden(recipe, tmp_path):
    text = preview(recipe, tmp_path, "--rows", "20")
    assert ("<_>" if recipe == CANINE else "<[MASK]>") in text
    assert "<kept>" in text
    assert "20 rows, " in text
    assert "asked 15.00%" in text
    assert "rows filled to" in text


TOKENIZER = make_unigram()
CLS, SEP, MASK = TOKENIZER.cls_token_id, TOKENIZER.sep_token_id, TOKENIZER.mask_token_id


def name(*pieces) -> list[int]:
    return [int(TOKENIZER.convert_tokens_to_ids(piece)) for piece in pieces]


def packed_rows():
    """Two documents in the first row, of which the second goes on inside a word; and a row of its own."""
    first = [CLS, *name("▁tri", "lobit", "es", "▁the"), SEP]
    second = [CLS, *name("s", "▁fossil", "s"), SEP]
    third = [CLS, *name("▁they"), SEP]
    starts = [1, 1, 0, 0, 1, 1, 1, 0, 1, 0, 1, 1, 1, 1]
    documents = np.zeros(14, bool)
    documents[[0, 6, 11]] = True
    return Rows(
        np.array(first + second + third, np.uint32), np.array([0, 11, 14]), np.array(starts, bool), documents
    )


def masking(kind="whole_word"):
    specials = TOKENIZER.all_special_ids
    return Masking(kind, 0.5, MASK, np.setdiff1d(np.arange(len(TOKENIZER)), specials), specials)


def test_words_are_numbered_within_a_row_across_packed_documents():
    rows = packed_rows()
    rows.word_starts[7] = True
    hidden = Hidden(rows.pieces.copy(), np.zeros(14, bool))
    first, second = describe_rows(rows, hidden, TOKENIZER, masking().special_pieces)
    assert first["word"] == [None, 1, 1, 1, 2, None, None, 5, 6, 6, None]
    assert second["word"] == [None, 1, None]
    assert first["text"] == "trilobites thes fossils"
    assert first["pieces"][:3] == ["[CLS]", "▁tri", "lobit"]
    assert first["target"] == [False] * 11
    empty = Rows(np.zeros(0, np.uint32), np.array([0, 0]), np.zeros(0, bool), np.zeros(0, bool))
    (row,) = describe_rows(
        empty, Hidden(empty.pieces, empty.word_starts), TOKENIZER, masking().special_pieces
    )
    assert row == {"text": "", "pieces": [], "word": [], "target": [], "input": []}


def test_what_became_of_hidden_words_is_counted_by_word():
    rows = packed_rows()
    inputs, is_target = rows.pieces.copy(), np.zeros(14, bool)
    is_target[[1, 2, 3, 4, 8, 9, 12]] = True
    # One piece of the random word comes out as it was.
    inputs[[1, 2, 3]], inputs[8] = MASK, name("▁say")[0]
    hidden = Hidden(inputs, is_target)
    assert count_fates(rows, hidden, masking()) == {"masked": 1, "random": 1, "kept": 2}
    assert count_fates(rows, hidden, masking("token")) == {"masked": 3, "random": 1, "kept": 3}


def test_counts_of_a_large_sample_are_near_the_recipe_and_add_up():
    rows = packed_rows().take(np.arange(3000) % 2)
    hidden = hide(rows, masking("token"), row_ids=np.arange(3000), epochs=0, seed=0)
    fates = count_fates(rows, hidden, masking("token"))
    total = sum(fates.values())
    assert total == hidden.is_target.sum()
    assert [count / total for count in fates.values()] == pytest.approx([0.8, 0.1, 0.1], abs=0.02)


def test_words_stand_apart_and_what_the_model_sees_stands_behind_what_is_hidden():
    row = {
        "pieces": ["[CLS]", "a", "b", "c", "d", "e", "[SEP]", "[CLS]", "f", "[SEP]"],
        "input": ["[CLS]", "[MASK]", "[MASK]", "c", "x", "y", "[SEP]", "[CLS]", "f", "[SEP]"],
        "target": [False, True, True, True, True, True, False, False, False, False],
        "word": [None, 1, 1, 2, 3, 3, None, None, 6, None],
    }
    shown = render_row(row, "[MASK]", "+")
    assert shown.plain == "[CLS] a+b<[MASK]+[MASK]> c<kept> d+e<x+y> [SEP] [CLS] f [SEP]"
    styles = {shown.plain[span.start : span.end]: span.style for span in shown.spans}
    assert len({styles["a+b"], styles["c"], styles["d+e"]}) == 3


def test_characters_run_on_and_their_mask_can_be_seen():
    mask = chr(0xE003)
    row = {
        "pieces": list("example"),
        "input": list(f"e{mask}{mask}mpxe"),
        "target": [False, True, True, False, False, True, True],
        "word": list(range(7)),
    }
    assert render_row(row, mask, "").plain == "exa<__>mpl<x>e<kept>"


def test_names_of_characters_are_the_characters():
    pieces = np.array([97, 0x1F980, 0x10FFFF], np.uint32)
    rows = Rows(pieces, np.array([0, 3]), np.ones(3, bool), np.zeros(3, bool))
    (row,) = describe_rows(rows, Hidden(pieces, np.zeros(3, bool)), CanineTokenizer(), np.array([0xE003]))
    assert row["text"] == "a\U0001f980\U0010ffff"
    assert row["word"] == [0, 1, 2]
