"""Examples and hardest words, held against a model that is run on each document by itself."""

import json
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from data_pipes.masking import FROZEN_EPOCH, hide
from data_pipes.rows import Rows
from launch import examples
from launch.examples import choose_rows, clean, log_examples
from launch.recipe_file import read_recipe
from tests.launch.judging import small
from tests.modeling import small_canines

WORDS, CHARACTERS = "deberta-tiny-encyclopedia-wwm", "canine-tiny-domains-char"
NAMES = ["goodle", "amazon", "wikipedia", "a", "yahoo", "overlylongname"]


@dataclass
class Log:
    events: list = field(default_factory=list)

    def log(self, kind, step, **values):
        self.events.append({"kind": kind, "step": step, **values})

    def of(self, kind):
        return [event for event in self.events if event["kind"] == kind]


def make_job(kind="unigram", *, is_main=True, zero_stage=None, rate=0.4):
    """A job of small.TEXTS, with as much of one as the examples touch."""
    tokenizer = small.make_tokenizer(kind)
    recipe = read_recipe(WORDS, [f"objective.masking.rate={rate}", f"data.row_length={small.ROW_LENGTH}"])
    return SimpleNamespace(
        recipe=recipe,
        tokenizer=tokenizer,
        masked_lm=small.make_model(tokenizer).train(),
        store=SimpleNamespace(evaluation=small.make_rows(tokenizer)),
        plan=SimpleNamespace(zero_stage=zero_stage, evaluation_batch=3),
        accelerator=SimpleNamespace(is_main_process=is_main, device=torch.device("cpu")),
    )


def make_character_job():
    points = np.concatenate([[ord(letter) for letter in name] for name in NAMES]).astype(np.uint32)
    offsets = np.cumsum([0, *map(len, NAMES)])
    plain = np.zeros(len(points), bool)
    starts = plain.copy()
    starts[offsets[:-1]] = True
    rows = Rows(points, offsets, plain, starts)
    recipe = read_recipe(CHARACTERS, ["objective.masking.rate=0.4"])
    counts = np.bincount(rows.lengths).tolist()
    store = SimpleNamespace(
        evaluation=rows,
        code_points=np.array(small_canines.LETTERS, np.uint32),
        manifest={"length_counts": counts},
    )
    return SimpleNamespace(
        recipe=recipe,
        tokenizer=None,
        masked_lm=small_canines.make_model().train(),
        store=store,
        plan=SimpleNamespace(zero_stage=None, evaluation_batch=4),
        accelerator=SimpleNamespace(is_main_process=True, device=torch.device("cpu")),
    )


def run(job):
    log = Log()
    log_examples(job, log, 7)
    return log


def hide_rows(job):
    """The frozen masks of all rows, and what each row's targets cost by the model alone."""
    masking = examples.build_masking(job.recipe, job.tokenizer, job.store, is_frozen=True)
    rows = job.store.evaluation
    ids = np.arange(rows.num_rows)
    epochs = np.full(len(ids), FROZEN_EPOCH)
    return rows, masking, hide(rows, masking, row_ids=ids, epochs=epochs, seed=job.recipe.evaluation.seed)


def score_by_document(job):
    """(loss, rank) of every target by its place in the rows, each document by itself, as it was shown."""
    rows, _, hidden = hide_rows(job)
    starts = rows.document_starts.copy()
    starts[rows.offsets[:-1]] = True
    bounds = [*np.flatnonzero(starts).tolist(), len(rows.pieces)]
    found = {}
    model = job.masked_lm.eval()
    for start, stop in zip(bounds, bounds[1:], strict=False):
        inputs = torch.tensor(hidden.inputs[start:stop].astype(np.int64))[None]
        with torch.no_grad():
            scores = torch.log_softmax(model(input_ids=inputs).logits[0].double(), -1)
        for place in np.flatnonzero(hidden.is_target[start:stop]):
            own = scores[place, int(rows.pieces[start + place])]
            found[start + int(place)] = (-own.item(), int((scores[place] > own).sum()) + 1)
    return found


@pytest.fixture(scope="module")
def words():
    job = make_job()
    return job, run(job)


def test_every_hidden_piece_of_a_shown_document_has_the_rank_and_loss_of_the_model_alone(words):
    job, log = words
    rows, _, _ = hide_rows(job)
    alone = score_by_document(job)
    assert len(log.of("example")) == rows.num_rows
    for event in log.of("example"):
        own = {
            place: v
            for place, v in alone.items()
            if rows.offsets[event["row"]] <= place < rows.offsets[event["row"] + 1]
        }
        places = [part for part in event["parts"] if "hidden" in part]
        wanted = {(round(loss, 4), rank) for loss, rank in own.values()}
        assert {(round(place["loss"], 4), place["rank"]) for place in places} <= wanted
        assert event["loss"] == pytest.approx(np.mean([place["loss"] for place in places]))


def test_the_parts_of_a_row_are_its_text(words):
    _, log = words
    for event in log.of("example"):
        text = "".join(part.get("text", part.get("hidden")) for part in event["parts"])
        assert text in {one for row in small.TEXTS for one in row}


def test_fills_are_the_classes_that_the_model_puts_first(words):
    _, log = words
    for event in log.of("example"):
        for place in (part for part in event["parts"] if "hidden" in part):
            shares = [fill["probability"] for fill in place["fills"]]
            assert len(shares) == 5
            assert shares == sorted(shares, reverse=True)
            assert sum(shares) <= 1
            if place["rank"] == 1:
                assert place["fills"][0]["piece"] == (place["hidden"] or "\u2581")
                assert shares[0] == pytest.approx(np.exp(-place["loss"]), rel=1e-5)


def test_words_have_the_mean_loss_of_their_hidden_pieces(words):
    job, log = words
    rows, _, hidden = hide_rows(job)
    alone = score_by_document(job)
    (event,) = log.of("words")
    starts = np.flatnonzero(rows.word_starts | rows.document_starts)
    bounds = [*starts.tolist(), len(rows.pieces)]
    sums, counts = defaultdict(list), defaultdict(int)
    for start, stop in zip(bounds, bounds[1:], strict=False):
        losses = [alone[place][0] for place in range(start, stop) if place in alone]
        if losses:
            text = job.tokenizer.decode(rows.pieces[start:stop].tolist()).strip()
            sums[text] += losses
            counts[text] += 1
    assert event["num_targets"] == int(hidden.is_target.sum()) == len(alone)
    assert event["num_units"] == len(sums)
    listed = [*event["worst"], *event["best"]]
    assert len(listed) == min(30, sum(count >= event["least_count"] for count in counts.values()))
    for one in listed:
        assert one["loss"] == pytest.approx(np.mean(sums[one["text"]]), abs=1e-4), one["text"]
        assert one["count"] == counts[one["text"]]
    order = [one["loss"] for one in [*event["worst"], *event["best"][::-1]]]
    assert order == sorted(order, reverse=True)


def test_the_model_is_left_in_the_mode_it_was_in(words):
    assert make_and_run().masked_lm.training
    job = make_job()
    job.masked_lm.eval()
    run(job)
    assert not job.masked_lm.training
    assert words[0] is not job


def make_and_run():
    job = make_job()
    run(job)
    return job


def test_the_random_numbers_of_the_training_are_not_touched():
    job = make_job()
    torch.manual_seed(3)
    wanted = torch.rand(3)
    torch.manual_seed(3)
    run(job)
    assert torch.equal(torch.rand(3), wanted)


@pytest.mark.parametrize("kind", ["unigram", "wordpiece", "byte_level"])
def test_tokenizers_of_every_kind_give_the_text_of_the_row(kind):
    log = run(make_job(kind))
    assert log.of("words")
    for event in log.of("example"):
        text = "".join(part.get("text", part.get("hidden")) for part in event["parts"])
        assert "##" not in text
        assert not {"\u2581", "\u0120"} & set(text)


def test_characters_are_tallied_by_character_and_rows_are_names():
    job = make_character_job()
    log = run(job)
    (event,) = log.of("words")
    assert event["unit"] == "character"
    assert all(len(one["text"]) == 1 for one in [*event["worst"], *event["best"]])
    texts = [
        "".join(part.get("text", part.get("hidden")) for part in one["parts"]) for one in log.of("example")
    ]
    assert sorted(texts) == sorted(NAMES)
    hidden = sum("hidden" in part for one in log.of("example") for part in one["parts"])
    assert hidden == event["num_targets"]
    assert all(len(fill["piece"]) == 1 or fill["piece"] == "other" for one in log.of("example")
               for part in one["parts"] if "hidden" in part for fill in part["fills"])  # fmt: skip


def test_a_model_with_a_loss_in_chunks_gives_the_same():
    plain, chunked = make_job(), make_job()
    chunked.masked_lm.loss_chunk = 4
    one, other = run(plain), run(chunked)
    assert chunked.masked_lm.loss_chunk == 4
    assert [e["row"] for e in one.of("example")] == [e["row"] for e in other.of("example")]
    for a, b in zip(one.of("example"), other.of("example"), strict=True):
        assert a["loss"] == pytest.approx(b["loss"], abs=1e-4)


def test_only_the_main_process_runs_them_unless_the_weights_are_shared_out():
    assert run(make_job(is_main=False)).events == []
    assert run(make_job(is_main=False, zero_stage=2)).events == []
    assert run(make_job(is_main=False, zero_stage=3)).events != []


def test_events_are_json(words):
    json.dumps(words[1].events)


def test_of_a_large_evaluation_a_part_is_read_that_the_seed_decides():
    lengths = np.full(5_000, 64)
    chosen = choose_rows(lengths, seed=1)
    assert len(chosen) == 32_768 // 64
    assert len(set(chosen.tolist())) == len(chosen)
    assert not np.array_equal(chosen, np.sort(chosen))
    assert np.array_equal(chosen, choose_rows(lengths, seed=1))
    assert not np.array_equal(chosen, choose_rows(lengths, seed=2))
    assert len(choose_rows(np.full(10, 7), seed=1)) == 10
    assert len(choose_rows(np.zeros(0, np.int64), seed=1)) == 0


def test_a_long_row_is_shown_around_what_is_hidden():
    sheet = SimpleNamespace(
        rows=SimpleNamespace(pieces=np.array([1, *[5] * 200, 2, *[5] * 40, 2], np.uint32)),
        hidden=SimpleNamespace(is_target=np.zeros(243, bool)),
    )
    sheet.hidden.is_target[[100, 101, 220]] = True
    specials = np.array([1, 2], np.uint32)
    first, last = examples.find_window(sheet, 0, 243, specials)
    assert (first, last) == (100 - 16, 100 - 16 + 64)
    sheet.hidden.is_target[[100, 101]] = False
    assert examples.find_window(sheet, 0, 243, specials) == (202, 242)
    sheet.hidden.is_target[:] = False
    sheet.hidden.is_target[[198, 199]] = True
    assert examples.find_window(sheet, 0, 243, specials) == (201 - 64, 201)


def test_half_a_surrogate_pair_can_be_written():
    assert clean("a\ud800b") == "a?b"


def test_no_fill_is_a_special_piece():
    job = make_job()
    tokenizer = job.tokenizer
    names = examples.Names(job.masked_lm.config, tokenizer)
    logits = torch.zeros(1, len(tokenizer))
    logits[:, tokenizer.all_special_ids] = 9.0
    (fills,) = names.rank_fills(logits)
    assert not {fill["piece"] for fill in fills} & set(tokenizer.all_special_tokens)
