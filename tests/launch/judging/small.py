"""Small rows, models and runners, and what a model says worked out row by row."""

import copy

import numpy as np
import pyarrow as pa
import torch

from data_pipes.collate import Layout
from data_pipes.masking import Masking
from data_pipes.rows import Rows
from data_pipes.tokenize import PieceEncoder
from launch.judging.passes import Runner
from tests.data_pipes.tiny_tokenizers import MAKERS
from tests.modeling import small_models

TEXTS = [
    ["They say the Wheeler Formation yields trilobites (trilobites).", "The Burgess Shale."],
    ["Wheeler_Formation's shale, the Burgess Shale; the fossils say.", "trilobites", "The Wheeler."],
    ["They say they say."],
    ["The shale was found in the Wheeler Formation, e.g. fossils of trilobites they say were there."],
]
TERMS = {
    "strat": ["Wheeler_Formation", "Burgess_Shale", "Wheeler"],
    "taxa": ["trilobites", "shale", "graptolite"],
}
ROW_LENGTH = 120


def make_tokenizer(kind="unigram"):
    return MAKERS[kind]()


def make_rows(tokenizer, rows=TEXTS):
    """Each list of texts as one row: [CLS] of the first document, the documents, [SEP] after each."""
    encoder = PieceEncoder(tokenizer)
    pieces, words, documents, offsets = [], [], [], [0]
    for texts in rows:
        for number, text in enumerate(texts):
            encoded = encoder.encode(pa.array([text]))
            front = [encoder.cls_id] if number == 0 else []
            ids = [*front, *encoded.ids.tolist(), encoder.sep_id]
            pieces += ids
            words += [*[True for _ in front], *encoded.word_starts.tolist(), True]
            documents += [True, *[False] * (len(ids) - 1)]
        offsets.append(len(pieces))
    return Rows(np.array(pieces, np.uint32), np.array(offsets), np.array(words), np.array(documents))


def make_masking(tokenizer, kind="whole_word", rate=0.3, **changes):
    specials = np.array(sorted(tokenizer.all_special_ids), np.uint32)
    ordinary = np.setdiff1d(np.arange(len(tokenizer), dtype=np.uint32), specials)
    return Masking(
        kind=kind,
        rate=rate,
        mask_piece=tokenizer.mask_token_id,
        random_pieces=ordinary,
        special_pieces=specials,
        **changes,
    )


def make_model(tokenizer):
    """In float64, with weights that make neighbours and positions matter."""
    return small_models.make_model("v3", vocab_size=len(tokenizer), max_position_embeddings=ROW_LENGTH)


def make_runner(tokenizer, micro_batch=2, rank=0, world_size=1):
    layout = Layout(kind="words", row_length=ROW_LENGTH, pad_piece=tokenizer.pad_token_id)
    return Runner(layout, micro_batch, torch.device("cpu"), rank, world_size)


def score_alone(model, pieces, is_hidden, mask_piece):
    """Losses and ranks at the hidden pieces of one document, run by itself with no padding."""
    pieces = torch.tensor(np.asarray(pieces, np.int64))
    is_hidden = torch.tensor(np.asarray(is_hidden))
    with torch.no_grad():
        logits = (
            model(input_ids=torch.where(is_hidden, mask_piece, pieces)[None]).logits[0][is_hidden].double()
        )
    scores = torch.log_softmax(logits, -1)
    own = scores[torch.arange(len(scores)), pieces[is_hidden]]
    return (-own).numpy(), (scores > own[:, None]).sum(1).numpy()


class _Asked(Exception):  # noqa: N818 - it is a request
    """A rank waits for a sum."""


def run_ranks(num_ranks, run):
    """The results of `run(rank, add)` on ranks that exchange sums by `add`, one rank after the other.

    A rank that asks for a sum that is not known yet is run again once all have asked.
    """
    totals = []
    while True:
        results, asked = [], []
        for rank in range(num_ranks):
            known = iter(totals)

            def add(values, known=known):
                for total in known:
                    return copy.deepcopy(total)
                raise _Asked(values)

            try:
                results.append(run(rank, add))
            except _Asked as request:
                asked.append(request.args[0])
        if not asked:
            return results
        assert len(asked) == num_ranks, "ranks ask for different numbers of sums"
        totals.append(sum(asked))
