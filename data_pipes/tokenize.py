"""Tokenizing: documents as pieces with word starts, for any fast tokenizer.

Shapes: D documents, N pieces, C code points in all of them.
"""

import json
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from data_pipes.characters import CONNECTOR, MARK, PUNCTUATION, SPACE, UNSPACED, build_class_table
from data_pipes.documents import flatten_code_points

# Marks of a space before a piece: Metaspace (Unigram), and the byte-level alphabet's blank, newline, tab. The
# latter are letters of Maltese and Esperanto everywhere else.
SPACE_MARK, BYTE_LEVEL_MARKS = "\u2581", "\u0120\u010a\u0109"


class TokenizerError(ValueError):
    """A tokenizer lacks what masked-language modelling needs."""


@dataclass(frozen=True)
class Pieces:
    """D tokenized documents end to end.

    Attributes:
        ids: uint32 [N].
        offsets: int64 [D + 1].
        word_starts: bool [N].
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray


class PieceEncoder:
    """Encodes texts with a fast tokenizer's own rules, except that special pieces never come out of a text.

    Args:
        tokenizer: a Hugging Face tokenizer with a `backend_tokenizer`; it is not changed.

    Raises:
        TokenizerError: it is not a fast one, or has no [CLS], [SEP], [MASK] or padding.
    """

    def __init__(self, tokenizer: Any):
        if getattr(tokenizer, "backend_tokenizer", None) is None:
            raise TokenizerError(
                f"{type(tokenizer).__name__} is not a fast tokenizer; word starts need its offsets"
            )
        for name in ("cls_token_id", "sep_token_id", "mask_token_id", "pad_token_id"):
            if getattr(tokenizer, name) is None:
                raise TokenizerError(
                    f"the tokenizer has no {name.removesuffix('_id')}; set it and save it again"
                )
        self.cls_id: int = tokenizer.cls_token_id
        self.sep_id: int = tokenizer.sep_token_id
        special = {i: t for i, t in zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True)}
        self._backend = _hide_special_pieces(tokenizer.backend_tokenizer, special)
        vocabulary = self._backend.get_vocab()
        marks = SPACE_MARK + (BYTE_LEVEL_MARKS if _is_byte_level(self._backend) else "") + " "
        self._is_blank = np.zeros(max(vocabulary.values()) + 1, bool)
        self._is_blank[[i for piece, i in vocabulary.items() if not piece.strip(marks)]] = True

    def encode(self, texts: pa.StringArray) -> Pieces:
        """Tokenize whole documents, without special pieces."""
        encodings = self._backend.encode_batch(texts.to_pylist(), add_special_tokens=False)
        lengths = np.fromiter(map(len, encodings), np.int64, len(encodings))
        offsets = np.concatenate(([0], np.cumsum(lengths)))
        num_pieces = int(offsets[-1])
        ids = np.fromiter(chain.from_iterable(e.ids for e in encodings), np.uint32, num_pieces)
        words = np.fromiter(chain.from_iterable(e.word_ids for e in encodings), np.int64, num_pieces)
        flat_spans = chain.from_iterable(chain.from_iterable(e.offsets for e in encodings))
        spans = np.fromiter(flat_spans, np.int64, 2 * num_pieces).reshape(-1, 2)
        code_points, text_offsets = flatten_code_points(texts)
        spans += np.repeat(text_offsets[:-1], lengths)[:, None]
        first = np.zeros(num_pieces, bool)
        first[offsets[:-1][lengths > 0]] = True
        is_word_change = first | np.append(True, words[1:] != words[:-1])[:num_pieces]
        starts = find_word_starts(code_points, spans, is_word_change, self._is_blank[ids])
        return Pieces(ids, offsets, starts | first)


def find_word_starts(
    code_points_C: np.ndarray, spans_N2: np.ndarray, is_word_change_N: np.ndarray, is_blank_N: np.ndarray
) -> np.ndarray:
    """Where words begin, bool [N].

    A word begins where the tokenizer's own word changes; around a piece that is all punctuation; and at each
    piece in a script without spaces. Connectors join what they touch, a mark of a space belongs to
    the word that follows it, and the pieces of one character stay together.

    Args:
        code_points_C: the texts, end to end.
        spans_N2: first and last-but-one code point of each piece, in all texts together.
        is_word_change_N: the tokenizer's word differs from that of the piece before, or a document begins.
        is_blank_N: the piece is only a mark of a space, whatever its span says.
    """
    classes_C = build_class_table()[code_points_C]
    starts_N, ends_N = spans_N2.T

    def count(wanted: int) -> np.ndarray:
        sums = np.concatenate(([0], np.cumsum(classes_C == wanted)))
        return sums[ends_N] - sums[starts_N]

    num_solid_N = ends_N - starts_N - count(SPACE)
    is_blank_N = is_blank_N | (num_solid_N == 0)
    num_marks_N = count(MARK)
    is_mark_N = ~is_blank_N & (num_marks_N == num_solid_N)
    is_alone_N = ~is_blank_N & ~is_mark_N & (count(PUNCTUATION) == num_solid_N)
    is_alone_N |= ~is_blank_N & ~is_mark_N & (count(UNSPACED) + num_marks_N == num_solid_N)

    def follow(flags_N: np.ndarray) -> np.ndarray:
        return np.append(False, flags_N[:-1])[: len(flags_N)]

    ends_before_N = np.append(0, ends_N[:-1])[: len(ends_N)]
    is_touching_N = starts_N == ends_before_N
    padded_C = np.append(classes_C, 0)
    is_connected_N = is_touching_N & ~is_alone_N & ~is_blank_N & ~follow(is_alone_N | is_blank_N)
    is_connected_N &= (padded_C[starts_N] == CONNECTOR) | (padded_C[ends_before_N - 1] == CONNECTOR)
    is_same_character_N = starts_N < ends_before_N

    is_start_N = is_word_change_N | is_alone_N | is_blank_N | (follow(is_alone_N) & ~is_mark_N)
    return is_start_N & ~is_connected_N & ~is_same_character_N & ~follow(is_blank_N)


def _is_byte_level(backend: Tokenizer) -> bool:
    state = json.loads(backend.to_str())
    return "ByteLevel" in json.dumps([state[part] for part in ("normalizer", "pre_tokenizer", "decoder")])


def _hide_special_pieces(backend: Tokenizer, special: dict[int, str]) -> Tokenizer:
    """A copy in which the special pieces have names that no text can hold.

    `split_special_tokens` alone is not enough: a Unigram vocabulary that lists "[MASK]" finds it in a text.
    """
    state = json.loads(backend.to_str())
    # Blanks never reach the model: each kind of tokenizer cuts at them or writes them as marks. The
    # noncharacters are for one that does neither.
    hidden = {token: f"\ufdd0 {token} \ufdd1" for token in special.values()}
    state["post_processor"] = state["truncation"] = state["padding"] = None
    for added in state["added_tokens"]:
        added["content"] = hidden.get(added["content"], added["content"])
    model = state["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {hidden.get(piece, piece): i for piece, i in model["vocab"].items()}
        if model.get("unk_token"):
            model["unk_token"] = hidden.get(model["unk_token"], model["unk_token"])
    else:
        model["vocab"] = [[hidden.get(piece, piece), score] for piece, score in model["vocab"]]
    copy = Tokenizer.from_str(json.dumps(state))
    copy.encode_special_tokens = True
    return copy
