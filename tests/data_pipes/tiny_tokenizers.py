"""Small tokenizers of the three kinds in use, made on the spot."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import BertTokenizer, DebertaV2Tokenizer, PreTrainedTokenizerFast

SPECIAL_PIECES = ("[PAD]", "[CLS]", "[SEP]", "[UNK]", "[MASK]")
TEXT = (
    "The Wheeler_Formation yields trilobites (Cambrian fossils), which they say were found in 1998. "
    "Wheeler_Formation's shale, e.g. the Burgess Shale; trilobite-bearing limestone & mudstone."
)


def make_unigram(score_of_specials: float = 0.0) -> DebertaV2Tokenizer:
    """Pieces of the words above, all their characters, and some of other scripts; specials as in DeBERTa."""
    words = [
        "▁the",
        "▁The",
        "▁Wheeler",
        "Formation",
        "▁tri",
        "lobit",
        "es",
        "▁fossil",
        "s",
        "),",
        "▁say",
        "▁they",
    ]
    characters = sorted(set(TEXT + "▁日本語はなไทย_αé!?[]MASK"))
    vocab = [(piece, score_of_specials) for piece in SPECIAL_PIECES]
    vocab += [(piece, -2.0 - number / 100) for number, piece in enumerate(words)]
    vocab += [(piece, -6.0) for piece in characters if piece != " " and piece not in words]
    return DebertaV2Tokenizer(vocab=vocab, unk_id=3)


def make_wordpiece() -> BertTokenizer:
    """Every character, inside and at the front of words, and some words."""
    characters = sorted(set(TEXT.lower() + "日本語はなไทย_αé!?[]mask") - {" "})
    names = [*SPECIAL_PIECES, "wheeler", "form", "##ation", "tri", "##lob", "##ites", "the", "they"]
    names += [*characters, *(f"##{character}" for character in characters)]
    return BertTokenizer(vocab={name: number for number, name in enumerate(dict.fromkeys(names))})


def make_byte_level() -> PreTrainedTokenizerFast:
    """Byte-level BPE with a few merges, as in RoBERTa."""
    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, initial_alphabet=alphabet, special_tokens=list(SPECIAL_PIECES), show_progress=False
    )
    backend.train_from_iterator([TEXT] * 3, trainer)
    names = zip(("pad", "cls", "sep", "unk", "mask"), SPECIAL_PIECES, strict=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, **{f"{name}_token": piece for name, piece in names}
    )


MAKERS = {"unigram": make_unigram, "wordpiece": make_wordpiece, "byte_level": make_byte_level}
