import json
import re

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import DebertaV2Config, PreTrainedTokenizerFast

from launch.blank import Words
from launch.record import describe_status, judge, read_record
from launch.report import write_report

SPECIALS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def write_run(folder, events, **plan):
    folder.mkdir()
    (folder / "metrics.jsonl").write_text("".join(json.dumps(event) + "\n" for event in events))
    (folder / "plan.json").write_text(json.dumps(plan))
    return folder


def evaluation(step, perplexity, num_targets=10):
    return {"kind": "eval", "step": step, "loss": 1.0, "perplexity": perplexity, "num_targets": num_targets}


def yardstick(perplexity, name="unigram"):
    return {"kind": "yardstick", "step": 0, "name": name, "perplexity": perplexity, "num_targets": 10}


@pytest.mark.parametrize(
    "fill",
    [
        {"text": "a_", "completed": "ab", "places": [{"position": 1, "candidates": [{"piece": "b"}]}]},
        {"text": "a_", "completed": "ab", "places": None},
        {"text": "a_", "places": ["b", {"candidates": [3, {"piece": "b", "probability": float("nan")}]}]},
        {"text": "\ud800_", "completed": "\ud800b", "places": []},
        {},
    ],
)
def test_a_broken_fill_event_does_not_cost_the_report(fill, tmp_path):
    run = write_run(tmp_path / "run", [evaluation(0, 43.0), {"kind": "fill", "step": 0, **fill}])
    assert "Samples" in write_report([run]).read_text(encoding="utf-8")


def test_a_yardstick_that_is_not_finite_is_no_yardstick(tmp_path):
    run = write_run(
        tmp_path / "run", [yardstick(float("inf")), yardstick(20.0, "neighbours"), evaluation(5, 10.0)]
    )
    assert read_record(run).yardsticks() == [("neighbours", 20.0)]
    assert "2.0\u00d7 below the neighbour table (20.0)" in judge(read_record(run))
    assert write_report([run]).exists()


@pytest.mark.parametrize(
    ("reason", "step", "status"),
    [
        ("steps", 1000, "finished, step 1,000 of 1,000"),
        (
            "patience",
            500,
            "finished, step 500 of 1,000 (stopped early, no better evaluation within the patience)",
        ),
        ("signal", 500, "ended early, step 500 of 1,000 (signal)"),
    ],
)
def test_the_status_says_why_a_run_ended(reason, step, status, tmp_path):
    events = [{"kind": "train", "step": step, "loss": 1.0}, {"kind": "end", "step": step, "reason": reason}]
    assert describe_status(read_record(write_run(tmp_path / "run", events, num_steps=1000))) == status


def test_runs_on_other_targets_are_said_to_be_no_fair_comparison(tmp_path):
    runs = [
        write_run(tmp_path / "one", [yardstick(20.0), evaluation(5, 10.0)]),
        write_run(tmp_path / "two", [yardstick(20.0), evaluation(5, 11.0)]),
        write_run(tmp_path / "three", [yardstick(30.0), evaluation(5, 9.0)]),
    ]
    same = write_report(runs[:2], tmp_path / "same.html").read_text()
    other = write_report(runs, tmp_path / "other.html").read_text()
    assert "cannot be compared" not in same
    assert "cannot be compared" in other
    cells = r"<td[^>]*>20.0</td><td[^>]*>20.0</td><td[^>]*>30.0</td>"
    assert re.search(rf"<th[^>]*>unigram table</th>{cells}", other)


def test_wordpiece_words_stand_apart_also_when_a_space_mark_is_in_the_vocabulary():
    pieces = [*SPECIALS, "the", "fish", "swam", "##es", "##s", "\u2581", "\u0120"]
    backend = Tokenizer(models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]"))
    backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    backend.decoder = decoders.WordPiece()
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    words = Words(DebertaV2Config(vocab_size=len(pieces)), tokenizer)
    row = words.read("the [MASK] swam")
    assert words.complete(row, [pieces.index("fish")]) == "the fish swam"
    assert words.complete(row, [pieces.index("##s")]) == "thes swam"


@pytest.mark.parametrize("scheme", ["always", "first"])
@pytest.mark.parametrize(
    ("whole", "hidden", "piece", "word"),
    [
        ("the fish, which", "the [MASK], which", "\u2581fish", "fish"),
        ("the fish swam", "the [MASK] swam", "\u2581fish", "fish"),
        ("the fishes swam", "the fish[MASK] swam", "es", "es"),
        ("(fish) swam", "([MASK]) swam", "fish", "fish"),
    ],
)
def test_a_hidden_word_reads_as_the_whole_text_with_its_piece_masked(scheme, whole, hidden, piece, word):
    """Training shows the whole text's pieces with one replaced; a fill must show the same."""
    mark = "\u2581"
    rows = [
        *SPECIALS,
        f"{mark}the",
        f"{mark}fish",
        f"{mark}swam",
        f"{mark}which",
        "es",
        ",",
        "(",
        ")",
        "fish",
    ]
    vocabulary = [(text, -1.0) for text in [*rows, mark, f"{mark}("]]
    backend = Tokenizer(models.Unigram(vocabulary, unk_id=1))
    backend.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    backend.decoder = decoders.Metaspace(prepend_scheme=scheme)
    names = dict(
        zip(("pad_token", "unk_token", "cls_token", "sep_token", "mask_token"), SPECIALS, strict=True)
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, **names)
    words = Words(DebertaV2Config(vocab_size=len(vocabulary)), tokenizer)
    wanted = ["[MASK]" if one == piece else one for one in tokenizer.tokenize(whole)]
    assert wanted.count("[MASK]") == 1
    row = words.read(hidden)
    assert tokenizer.convert_ids_to_tokens(row.ids) == wanted
    assert words.complete(row, [tokenizer.convert_tokens_to_ids(piece)]) == whole
    assert words.show(tokenizer.convert_tokens_to_ids(piece)) == word
