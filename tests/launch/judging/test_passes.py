import numpy as np
import pytest
import torch

from data_pipes.feed import FrozenBatches
from launch.judging.build import list_units
from launch.judging.metrics import TargetMetric
from launch.judging.passes import FrozenPass, SpanPass, Spans, read_output
from tests.launch.judging.small import (
    make_masking,
    make_model,
    make_rows,
    make_runner,
    make_tokenizer,
    score_alone,
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


@pytest.fixture(scope="module")
def model(tokenizer):
    return make_model(tokenizer)


def list_documents(rows):
    """(row, first place in the row, pieces) of every document."""
    starts = np.append((rows.document_starts).nonzero()[0], len(rows.pieces))
    for start, stop in zip(starts[:-1], starts[1:], strict=True):
        row = np.searchsorted(rows.offsets, start, side="right") - 1
        yield row, start - rows.offsets[row], rows.pieces[start:stop]


def collect(runner, model, rows):
    """{(row, place in the row): (loss, rank)} of a pass, and the number of times the model ran."""
    found = {}
    for scored in runner.score(model, rows):
        sheet = scored.sheet
        number = np.searchsorted(sheet.rows.offsets, sheet.places, side="right") - 1
        places = sheet.places - sheet.rows.offsets[number]
        keys = zip(sheet.row_ids[number].tolist(), places.tolist(), strict=True)
        found |= dict(zip(keys, zip(scored.losses, scored.ranks, strict=True), strict=True))
    return found


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("micro_batch", [1, 3, 64])
def test_a_hidden_span_is_scored_as_in_its_document_alone(tokenizer, model, micro_batch, together):
    rows, masking = make_rows(tokenizer), make_masking(tokenizer)
    spans = list_units(rows, masking.special_pieces, is_word=True)
    assert spans.lengths.max() > 3
    # Of any document but few words, so that together is not nothing but mask pieces.
    spans = spans.take(np.arange(0, spans.num_spans, 3))
    hidden = SpanPass(rows, spans, masking.mask_piece, together)
    found = collect(make_runner(tokenizer, micro_batch), model, hidden)
    assert len(found) == spans.lengths.sum()
    for row, first, pieces in list_documents(rows):
        own = [
            (start - first, start - first + length)
            for owner, start, length in zip(spans.rows, spans.firsts, spans.lengths, strict=True)
            if owner == row and first <= start < first + len(pieces)
        ]
        for alone in [own] if together else [[span] for span in own]:
            is_hidden = np.zeros(len(pieces), bool)
            for start, stop in alone:
                is_hidden[start:stop] = True
            losses, ranks = score_alone(model, pieces, is_hidden, masking.mask_piece)
            for place, loss, rank in zip(is_hidden.nonzero()[0], losses, ranks, strict=True):
                assert found[row, first + place] == (pytest.approx(loss, abs=1e-7), rank)


def test_spans_of_different_documents_share_a_copy(tokenizer):
    rows, masking = make_rows(tokenizer), make_masking(tokenizer)
    spans = list_units(rows, masking.special_pieces, is_word=True)
    most = {row: 0 for row in range(rows.num_rows)}
    for row, first, pieces in list_documents(rows):
        is_own = (spans.rows == row) & (spans.firsts >= first) & (spans.firsts < first + len(pieces))
        most[row] = max(most[row], int(is_own.sum()))
    assert len(SpanPass(rows, spans, masking.mask_piece).lengths) == sum(most.values()) < spans.num_spans
    assert len(SpanPass(rows, spans, masking.mask_piece, together=True).lengths) == rows.num_rows


def test_ranks_share_the_batches_and_run_equally_often(tokenizer, model):
    rows, masking = make_rows(tokenizer), make_masking(tokenizer)
    frozen = FrozenPass(rows, masking, seed=3)
    num_runs = []

    def run(rank, world_size):
        runs = []
        handle = model.register_forward_hook(lambda *_: runs.append(1))
        metric = TargetMetric()
        for scored in make_runner(tokenizer, 1, rank, world_size).score(model, frozen):
            metric.add_batch(
                group=np.zeros(len(scored.losses), np.int64), loss=scored.losses, rank=scored.ranks
            )
        handle.remove()
        num_runs.append(len(runs))
        return metric.state

    (one,), three = [run(0, 1)], [run(rank, 3) for rank in range(3)]
    assert num_runs == [4, 2, 2, 2]
    for name, value in one.items():
        assert (sum(state[name] for state in three) == value).all(), "the same bits"


def test_a_pass_over_nothing_runs_nothing(tokenizer, model):
    nothing = np.zeros(0, np.int64)
    empty = SpanPass(make_rows(tokenizer), Spans(nothing, nothing, nothing, nothing), tokenizer.mask_token_id)
    assert list(make_runner(tokenizer, 2, 1, 2).score(model, empty)) == []


def test_a_frozen_pass_has_the_batches_of_the_evaluation(tokenizer, model):
    rows, masking, runner = make_rows(tokenizer), make_masking(tokenizer), make_runner(tokenizer)
    frozen = FrozenBatches(
        rows, layout=runner.layout, masking=masking, seed=3, micro_batch=runner.micro_batch
    )
    ours = FrozenPass(rows, masking, seed=3)
    items = dict(runner.deal(ours.lengths))
    for number, batch in frozen:
        with torch.no_grad():
            output = model(**batch)
        scored = read_output(model, ours.load(items[number]), batch["labels"], output)
        assert scored.losses.sum() == pytest.approx(float(output.loss_sum), abs=1e-5)
        assert (scored.ranks == 0).sum() == output.num_correct
        labels = batch["labels"][batch["labels"] >= 0]
        assert (scored.sheet.rows.pieces[scored.sheet.places] == labels.numpy()).all()


def test_a_model_in_training_gives_no_logits_and_is_refused(tokenizer, model):
    rows, masking = make_rows(tokenizer), make_masking(tokenizer)
    model.train()
    try:
        with pytest.raises(ValueError, match="eval mode"):
            list(make_runner(tokenizer).score(model, FrozenPass(rows, masking, seed=3)))
    finally:
        model.eval()
