import json
import math
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


@pytest.mark.parametrize("lost", [None, math.inf, math.nan])
def test_an_evaluation_that_is_not_finite_is_told_from_none(lost, tmp_path):
    """JSON has no word for it, so that it is null in the log."""
    told = judge(read_record(write_run(tmp_path / "lost", [evaluation(0, 9.0), evaluation(10, lost)])))
    assert told == "The evaluation at step 10 is not a finite number: training diverged."
    none = judge(read_record(write_run(tmp_path / "none", [yardstick(5.0)])))
    assert none == "There is no evaluation yet, so nothing can be said about the model."


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


STEP = {"kind": "train", "step": 40, "loss": 1.0}
WHY = "3 steps in a row were skipped; <b>lower</b> the rate"


def test_a_run_that_failed_says_why_in_its_status_and_among_what_is_missing(tmp_path):
    run = write_run(tmp_path / "run", [STEP], num_steps=1000)
    (run / "verdict.json").write_text(json.dumps({"exit_code": 5, "message": f"{WHY}\n\x1b[31m"}))
    record = read_record(run)
    told = f"failed, exit 5: {WHY} \\x1b[31m"
    assert describe_status(record) == f"{told}; step 40 of 1,000"
    assert record.gaps.count(told) == 1
    assert not [gap for gap in record.gaps if "still going" in gap]
    page = write_report([run]).read_text()
    assert page.count("failed, exit 5: 3 steps in a row were skipped; &lt;b&gt;lower&lt;/b&gt;") == 2
    assert "<b>" not in page


def test_a_run_that_failed_before_its_first_event_says_why(tmp_path):
    run = write_run(tmp_path / "run", [])
    (run / "verdict.json").write_text(json.dumps({"exit_code": 2, "message": "no such corpus"}))
    assert describe_status(read_record(run)) == "failed, exit 2: no such corpus; nothing logged"
    assert "failed, exit 2: no such corpus" in read_record(run).gaps


@pytest.mark.parametrize(
    ("verdict", "told"),
    [
        ({"exit_code": 143, "message": "stopped at step 40"}, "the run was stopped (stopped at step 40)"),
        ({"exit_code": 0, "message": "done"}, "still going or was killed"),
        (None, "still going or was killed"),
    ],
)
def test_a_run_that_was_stopped_or_is_going_did_not_fail(verdict, told, tmp_path):
    run = write_run(tmp_path / "run", [STEP], num_steps=1000)
    if verdict:
        (run / "verdict.json").write_text(json.dumps(verdict))
    assert describe_status(read_record(run)) == "not finished, step 40 of 1,000"
    assert read_record(run).gaps[-1].endswith(told)


@pytest.mark.parametrize(
    "text", ["{", "[]", "3", '{"exit_code": 5}', '{"exit_code": "5", "message": "x"}', "\ud800",
             '{"exit_code": 5, "message": 7}', '{"exit_code": true, "message": "x"}'],
)  # fmt: skip
def test_a_verdict_that_cannot_be_read_costs_no_report(text, tmp_path):
    run = write_run(tmp_path / "run", [STEP], num_steps=1000)
    (run / "verdict.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    assert describe_status(read_record(run)) == "not finished, step 40 of 1,000"
    assert any(gap.startswith("verdict.json cannot be read: ") for gap in read_record(run).gaps)


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
