"""Vocabularies: a tokenizer trained on the training split, byte for byte the same in every process.

SentencePiece with one thread is; the trainers of `tokenizers` visit words in an order that changes from
process to process, and their pieces and scores change with it.
"""

import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import pyarrow as pa
from sentencepiece import SentencePieceProcessor, SentencePieceTrainer
from transformers import DebertaV2Tokenizer, PreTrainedTokenizerBase

from data_pipes.documents import SourceError
from data_pipes.tokenize import TokenizerError

SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
# A vocabulary of some thousand pieces is settled long before. The trainer holds what it reads in memory, 21
# bytes a character were measured on 36 million characters of English (84 seconds).
MAX_DOCUMENTS = 1_000_000
MAX_CHARACTERS = 50_000_000


def train_tokenizer(
    columns: Iterable[pa.StringArray],
    kind: Literal["unigram"],
    vocab_size: int,
    folder: Path,
    max_characters: int = MAX_CHARACTERS,
) -> PreTrainedTokenizerBase:
    """Train a tokenizer of the class of DeBERTa-v2 and v3 and save it where AutoTokenizer finds it.

    Args:
        columns: documents, as many columns as needed; read once, until the trainer has a million of them or
            `max_characters`.
        kind: the model of the vocabulary (Kudo 2018, arXiv:1804.10959).
        vocab_size: pieces in all, the five special ones included.
        folder: where the tokenizer is written.
        max_characters: most characters that the trainer gets; the document that reaches it is cut.

    Raises:
        TokenizerError: the text cannot give so many pieces, or the kind is not known.
        SourceError: there is no document. What reading the columns raises comes through as it is.
    """
    if kind != "unigram":
        raise TokenizerError(f"tokenizer kind {kind!r} cannot be trained; write unigram")
    pad, cls, sep, unk, mask = SPECIAL_PIECES
    model = io.BytesIO()
    texts = _Texts(columns, max_characters)
    try:
        SentencePieceTrainer.train(  # pyright: ignore[reportAttributeAccessIssue]
            sentence_iterator=iter(texts),
            model_writer=model,
            model_type=kind,
            vocab_size=vocab_size,
            num_threads=1,
            input_sentence_size=MAX_DOCUMENTS,
            shuffle_input_sentence=False,
            max_sentence_length=2**30,
            # The tokenizer changes no character, so neither may the trainer.
            normalization_rule_name="identity",
            pad_id=0, pad_piece=pad, bos_id=1, bos_piece=cls,
            eos_id=2, eos_piece=sep, unk_id=3, unk_piece=unk,
            user_defined_symbols=mask,
            minloglevel=2,
        )  # fmt: skip
    except RuntimeError as error:
        if texts.failure is not None:
            raise texts.failure from None
        if texts.num_read == 0:
            raise SourceError(
                "no document is left to train the tokenizer on; check data.sources and data.clean"
            ) from error
        # It ends in a sentence after the condition in brackets: "Vocabulary size too high (9). Please ..."
        reason = str(error).splitlines()[-1].rpartition("] ")[2].strip()
        raise TokenizerError(
            f"no tokenizer of {vocab_size} pieces can be trained on this text: {reason}"
        ) from error
    trained = SentencePieceProcessor(model_proto=model.getvalue())  # pyright: ignore[reportCallIssue]
    pieces = [(trained.id_to_piece(number), trained.get_score(number)) for number in range(len(trained))]
    ordinary = pieces[len(SPECIAL_PIECES) :]
    # The lowest score, so that a literal [MASK] in a text is spelt out rather than found in the vocabulary.
    lowest = min(score for _, score in ordinary) * 10
    vocab = [(piece, lowest) for piece in SPECIAL_PIECES] + ordinary
    tokenizer = DebertaV2Tokenizer(vocab=vocab, unk_id=SPECIAL_PIECES.index(unk))
    tokenizer.save_pretrained(str(folder))
    return tokenizer


class _Texts:
    """Strings of some columns up to a number of characters.

    Remembers what stopped the reading, since SentencePiece loses it.
    """

    def __init__(self, columns: Iterable[pa.StringArray], max_characters: int):
        self._columns = columns
        self._num_left = max_characters
        self.failure: BaseException | None = None
        self.num_read = 0

    def __iter__(self) -> Iterator[str]:
        try:
            for column in self._columns:
                for text in column.to_pylist():
                    self.num_read += 1
                    yield text[: self._num_left]
                    self._num_left -= len(text)
                    if self._num_left <= 0:
                        return
        except GeneratorExit:
            raise
        except BaseException as error:
            self.failure = error
            raise
