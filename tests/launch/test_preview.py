import json
import sys
from collections import defaultdict

import pytest

from tests.commands import QUICK, start

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
