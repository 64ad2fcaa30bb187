"""Texts with hidden places, read for a word model or a character model and filled with its pieces.

Shapes: V classes of the head.
"""

import re
from dataclasses import dataclass
from typing import Any

import torch

OTHER = "other"
"""How a character model's class of all characters that its table lacks is shown. It is never put in."""

_MASK = "[MASK]"
_CLS, _SEP, _MASK_CODE_POINT = 0xE000, 0xE001, 0xE003
_HIDDEN_CHARACTER = re.compile(r"\[MASK\]|_")
# A literal one would be read as padding, a boundary or a hidden character.
_SPECIAL_CHARACTER = re.compile("[\0\ue000-\ue004]")
_CLOSING = ".,;:!?)]}%'\u2019\u201d"


@dataclass(frozen=True)
class Row:
    """One text as the model reads it: ids, and of each hidden place its slot and its characters."""

    text: str
    ids: list[int]
    slots: list[int]
    spans: list[tuple[int, int]]


class Words:
    """Reads texts with a tokenizer and puts pieces into them."""

    def __init__(self, config: Any, tokenizer: Any):
        if getattr(tokenizer, "mask_token_id", None) is None:
            raise ValueError("the tokenizer has no mask token: give the folder of a masked language model")
        self._tokenizer = tokenizer
        self._max_slots = config.max_position_embeddings
        self._vocabulary: dict[str, int] = tokenizer.get_vocab()
        self._space_mark = _find_space_mark(self._vocabulary)
        self.pad_id = tokenizer.pad_token_id or 0
        # The head may have rows that no piece owns (DeBERTa-v3: 128,100 rows, 128,001 pieces).
        ordinary = torch.tensor(sorted(set(self._vocabulary.values()) - set(tokenizer.all_special_ids)))
        self.is_candidate_V = torch.zeros(config.vocab_size, dtype=torch.bool)
        self.is_candidate_V[ordinary[ordinary < config.vocab_size]] = True

    def read(self, text: str) -> Row:
        """The text as pieces. ValueError: nothing is hidden, or it is too long."""
        text = text.replace(self._tokenizer.mask_token, _MASK)
        spans = [match.span() for match in re.finditer(re.escape(_MASK), text)]
        if not spans:
            raise ValueError(
                f"{text!r} hides nothing: write {_MASK} for each word to fill (this model reads words)"
            )
        *before, last = text.split(_MASK)
        # The space before a hidden word is part of its piece; left in, it would become a piece of its own.
        marked = self._tokenizer.mask_token.join([*(part.rstrip(" ") for part in before), last])
        ids = self._drop_false_starts(self._tokenizer(marked)["input_ids"], [*before[1:], last])
        slots = [slot for slot, piece in enumerate(ids) if piece == self._tokenizer.mask_token_id]
        if len(slots) != len(spans):
            raise ValueError(
                f"{text!r} hides {len(spans)} words and the tokenizer sees {len(slots)}: it does not keep "
                f"{self._tokenizer.mask_token!r} whole"
            )
        if len(ids) > self._max_slots:
            raise ValueError(
                f"{text[:40]!r}... has {len(ids):,} pieces, the model reads {self._max_slots:,}: shorten it"
            )
        return Row(text, ids, slots, spans)

    def _drop_false_starts(self, ids: list[int], parts_after: list[str]) -> list[int]:
        """Without the space mark that DeBERTa's tokenizer puts before a text right after a hidden word.

        `The [MASK], which` becomes `_The [MASK] _ , _which`, where training showed `_The [MASK] , _which`.
        """
        mark = self._space_mark
        if mark is None:
            return ids
        pieces = self._tokenizer.convert_ids_to_tokens(ids)
        mended, parts = [], iter(parts_after)
        part = ""  # the text since the last mask, if no piece of it has been seen yet
        for piece, piece_id in zip(pieces, ids, strict=True):
            is_false = part[:1].strip() != "" and piece.startswith(mark)
            bare_id = self._vocabulary.get(piece[len(mark) :]) if is_false else piece_id
            if not (is_false and piece == mark):
                mended.append(piece_id if bare_id is None else bare_id)
            part = next(parts, "") if piece_id == self._tokenizer.mask_token_id else ""
        return mended

    def show(self, piece_id: int) -> str:
        """The piece without its marks."""
        text = self._tokenizer.decode([piece_id]).removeprefix("##").strip()
        return text or self._tokenizer.convert_ids_to_tokens(piece_id)

    def complete(self, row: Row, best: list[int]) -> str:
        """The text with these pieces in its hidden places."""
        parts = row.text.split(_MASK)
        text = parts[0]
        for piece_id, part in zip(best, parts[1:], strict=True):
            text = _join(text, self.show(piece_id), self._begins_word(piece_id)) + part
        return text

    def _begins_word(self, piece_id: int) -> bool:
        piece = self._tokenizer.convert_ids_to_tokens(piece_id)
        return not piece.startswith("##") if self._space_mark is None else piece.startswith(self._space_mark)


class Characters:
    """Reads texts as code points and puts characters into them."""

    pad_id = 0

    def __init__(self, config: Any):
        self._table: list[int] = config.head_code_points
        self._max_slots = config.max_position_embeddings
        self.is_candidate_V = torch.ones(1 + len(self._table), dtype=torch.bool)

    def read(self, text: str) -> Row:
        """The text as code points. ValueError: nothing is hidden, it is too long, or holds a special one."""
        special = _SPECIAL_CHARACTER.search(text)
        if special:
            raise ValueError(
                f"{text!r} holds U+{ord(special[0]):04X}, which the model uses itself: remove it"
            )
        spans = [match.span() for match in _HIDDEN_CHARACTER.finditer(text)]
        if not spans:
            raise ValueError(
                f"{text!r} hides nothing: write _ for each character to fill, as in goo_le.com (this model "
                "reads characters)"
            )
        marked = _HIDDEN_CHARACTER.sub(chr(_MASK_CODE_POINT), text)
        ids = [_CLS, *map(ord, marked), _SEP]
        if len(ids) > self._max_slots:
            raise ValueError(
                f"{text[:40]!r}... has {len(text):,} characters, the model reads {self._max_slots - 2:,}"
            )
        return Row(text, ids, [slot for slot, point in enumerate(ids) if point == _MASK_CODE_POINT], spans)

    def show(self, class_id: int) -> str:
        """The character."""
        return chr(self._table[class_id - 1]) if class_id else OTHER

    def complete(self, row: Row, best: list[int]) -> str:
        """The text with these characters in its hidden places."""
        characters = iter(best)
        return _HIDDEN_CHARACTER.sub(lambda _: self.show(next(characters)), row.text)


def _find_space_mark(vocabulary: dict[str, int]) -> str | None:
    """The mark at the head of pieces that begin a word; None where `##` marks those that do not.

    WordPiece vocabularies may list either mark as a character (BERT's does): the commonest one counts.
    """
    pieces = [piece for piece in vocabulary if len(piece) > 1]
    counts = {mark: sum(piece.startswith(mark) for piece in pieces) for mark in ("\u2581", "\u0120", "##")}
    commonest = max(counts, key=counts.__getitem__)
    return None if commonest == "##" or not counts[commonest] else commonest


def _join(text: str, piece: str, begins_word: bool) -> str:
    stem = text.rstrip(" ")
    if not stem:
        return text + piece
    if not begins_word or piece.strip(_CLOSING) == "":
        return stem + piece
    return f"{stem} {piece}" if stem[-1].isalnum() or stem != text else stem + piece
