"""Tokenizing: documents as pieces with word and sentence starts, for any fast tokenizer.

Shapes: D documents, N pieces, C code points in all of them.
"""

import json
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from tokenizers import Tokenizer

from data_pipes.documents import flatten_code_points
from data_pipes.tokens.boundaries import find_sentence_starts, find_sentences, find_word_starts
from data_pipes.tokens.lexicon import Lexicon, is_local

# Marks of a space before a piece: Metaspace (Unigram), and the byte-level alphabet's blank, newline, tab. The
# latter are letters of Maltese and Esperanto everywhere else.
SPACE_MARK, BYTE_LEVEL_MARKS = "\u2581", "\u0120\u010a\u0109"
NEEDED = ("cls_token", "sep_token", "mask_token", "pad_token")


class TokenizerError(ValueError):
    """A tokenizer lacks what masked-language modelling needs."""


@dataclass(frozen=True)
class Pieces:
    """D tokenized documents end to end.

    Attributes:
        ids: uint32 [N].
        offsets: int64 [D + 1].
        word_starts: bool [N].
        sentence_starts: bool [N], each a word start; none of any length where nobody looked for them.
    """

    ids: np.ndarray
    offsets: np.ndarray
    word_starts: np.ndarray
    sentence_starts: np.ndarray = field(default_factory=lambda: np.zeros(0, bool))


class PieceEncoder:
    """Encodes texts with a fast tokenizer's own rules, except that special pieces never come out of a text.

    It can be pickled, and what comes out imports no transformers.

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
        ids = {name: getattr(tokenizer, f"{name}_id") for name in NEEDED}
        self._set_up(tokenizer.backend_tokenizer.to_str(), ids, tokenizer.all_special_tokens)

    @classmethod
    def from_folder(cls, folder: Path | str) -> "PieceEncoder":
        """The encoder of a folder that a fast tokenizer's `save_pretrained` wrote, without transformers.

        Raises:
            TokenizerError: the folder holds no tokenizer.json, or it lacks what it needs.
        """
        if not (Path(folder) / "tokenizer.json").is_file():
            raise TokenizerError(
                f"{folder} holds no tokenizer.json; load its tokenizer with AutoTokenizer and save it again"
            )
        text = (Path(folder) / "tokenizer.json").read_text(encoding="utf-8")
        named: dict[str, str] = {}
        for name in ("special_tokens_map.json", "tokenizer_config.json"):
            path = Path(folder) / name
            if path.is_file():
                named |= _list_special_pieces(json.loads(path.read_text(encoding="utf-8")))
        backend = Tokenizer.from_str(text)
        encoder = cls.__new__(cls)
        ids = {name: backend.token_to_id(named[name]) if name in named else None for name in NEEDED}
        encoder._set_up(text, ids, list(named.values()))
        return encoder

    def __getstate__(self) -> tuple[str, int, int]:
        return self._backend.to_str(), self.cls_id, self.sep_id

    def __setstate__(self, state: tuple[str, int, int]) -> None:
        text, self.cls_id, self.sep_id = state
        self._open(text)

    def _set_up(self, text: str, ids: dict[str, int | None], specials: list[str]) -> None:
        for name, number in ids.items():
            if number is None:
                raise TokenizerError(f"the tokenizer has no {name}; set it and save it again")
        self.cls_id, self.sep_id = int(ids["cls_token"] or 0), int(ids["sep_token"] or 0)
        self._open(_hide_special_pieces(text, specials))

    def _open(self, text: str) -> None:
        state = json.loads(text)
        self._backend = Tokenizer.from_str(text)
        self._backend.encode_special_tokens = True  # not in the text
        vocabulary = self._backend.get_vocab()
        marks = SPACE_MARK + (BYTE_LEVEL_MARKS if _is_byte_level(state) else "") + " "
        self._is_blank = np.zeros(max(vocabulary.values()) + 1, bool)
        self._is_blank[[i for piece, i in vocabulary.items() if not piece.strip(marks)]] = True
        self._lexicon = Lexicon(self._encode_with_spans) if is_local(state) else None

    def encode(self, texts: pa.StringArray) -> Pieces:
        """Tokenize documents, without special pieces; words seen before are looked up where that is exact."""
        if self._lexicon is None:
            return self.encode_whole(texts)
        return Pieces(*self._lexicon.encode(texts))

    def encode_whole(self, texts: pa.StringArray) -> Pieces:
        """Tokenize whole documents, without special pieces."""
        return self._encode_with_spans(texts)[0]

    def _encode_with_spans(self, texts: pa.StringArray) -> tuple[Pieces, np.ndarray]:
        """Pieces, and the first and last-but-one code point of each in all texts together, int64 [N, 2]."""
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
        firsts = offsets[:-1][lengths > 0]
        is_word_change = np.append(True, words[1:] != words[:-1])[:num_pieces]
        is_word_change[firsts] = True
        starts = find_word_starts(code_points, spans, is_word_change, self._is_blank[ids])
        starts[firsts] = True
        sentences, _, _ = find_sentences(code_points, text_offsets)
        sentence_starts = find_sentence_starts(sentences, spans, starts, firsts)
        return Pieces(ids, offsets, starts, sentence_starts), spans


def _is_byte_level(state: dict[str, Any]) -> bool:
    return "ByteLevel" in json.dumps([state[part] for part in ("normalizer", "pre_tokenizer", "decoder")])


def _list_special_pieces(settings: dict[str, Any]) -> dict[str, str]:
    """Special pieces by the names that a tokenizer's settings give them; further ones by number."""
    found = {key: value for key, value in settings.items() if key.endswith("_token")}
    for key in ("additional_special_tokens", "extra_special_tokens"):
        more = settings.get(key) or []
        found |= more if isinstance(more, dict) else {f"{key}.{n}": piece for n, piece in enumerate(more)}
    named = {key: piece["content"] if isinstance(piece, dict) else piece for key, piece in found.items()}
    return {key: piece for key, piece in named.items() if isinstance(piece, str)}


def _hide_special_pieces(text: str, specials: list[str]) -> str:
    """The backend as JSON in which the special pieces have names that no text can hold.

    `split_special_tokens` alone is not enough: a Unigram vocabulary that lists "[MASK]" finds it in a text.
    """
    state = json.loads(text)
    # Blanks never reach the model: each kind of tokenizer cuts at them or writes them as marks. The
    # noncharacters are for one that does neither.
    hidden = {piece: f"\ufdd0 {piece} \ufdd1" for piece in specials}
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
    return json.dumps(state)
