"""Pairs of generator and discriminator: made of one model, saved as two folders, loaded again."""

import copy
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import DebertaV2Config

from modeling.deberta import DebertaForMaskedLM
from modeling.encoding import freeze_idle_parameters
from modeling.rtd import DebertaDiscriminator, RtdModel
from modeling.trust import SAFE_WEIGHTS, check_weights

GENERATOR_FOLDER = "generator"
"""Of a saved pair: inside the discriminator's folder."""
_EMBEDDING = "deberta.embeddings.word_embeddings.weight"


def build_pair(
    whole: DebertaForMaskedLM,
    *,
    share: float | None = None,
    num_generator_layers: int | None = None,
    seed: int,
    **settings: Any,
) -> RtdModel:
    """A pair from one masked language model: its encoder discriminates, its first layers generate.

    Args:
        whole: is used up.
        share: of the layers, for the generator; at least one.
        num_generator_layers: the same as a number.
        seed: of the discriminator's head; the global generators are left as they were.
        **settings: `special_pieces`, `num_pieces` and `temperature` of `RtdModel`.

    Raises:
        ValueError: the generator would have more layers than the model.
    """
    most = whole.config.num_hidden_layers
    num_layers = num_generator_layers or max(1, round((share or 0.5) * most))
    if num_layers > most:
        raise ValueError(f"the generator is to have {num_layers} layers and the model has {most}: give fewer")
    config = copy.deepcopy(whole.config)
    config.num_hidden_layers = num_layers
    with torch.random.fork_rng(devices=[]), torch.device("cpu"):
        torch.default_generator.manual_seed(seed)
        generator, discriminator = DebertaForMaskedLM(config), DebertaDiscriminator(whole.config)
    own = generator.state_dict()
    generator.load_state_dict({name: value for name, value in whole.state_dict().items() if name in own})
    discriminator.deberta.load_state_dict(whole.deberta.state_dict())
    nn.init.zeros_(discriminator.get_input_embeddings().weight)  # pyright: ignore[reportArgumentType]
    return RtdModel(generator, discriminator, seed=seed, **settings)


def load_pair(folder: str | Path, *, dropout: float | None = None, **settings: Any) -> RtdModel:
    """A pair from a folder that was saved with `split_pair`, in fp32.

    Args:
        folder: of the discriminator, with that of the generator inside.
        dropout: in place of the folder's own.
        **settings: those of `RtdModel`.

    Raises:
        OSError: a folder lacks weights.
        ValueError: they are not those of a pair.
    """
    generator = _load_part(DebertaForMaskedLM, Path(folder) / GENERATOR_FOLDER, dropout)
    discriminator = load_discriminator(folder, dropout=dropout)
    with torch.no_grad():
        discriminator.get_input_embeddings().weight.sub_(generator.get_input_embeddings().weight)
    return RtdModel(generator, discriminator, **settings)


def load_discriminator(folder: str | Path, *, dropout: float | None = None) -> Any:
    """The discriminator of a folder with its whole embedding, in fp32.

    Raises:
        OSError, ValueError: as for `load_pair`.
    """
    return _load_part(DebertaDiscriminator, Path(folder), dropout)


def _load_part(part_class: Any, folder: Path, dropout: float | None) -> Any:
    check_weights(folder)
    config = DebertaV2Config.from_pretrained(str(folder))
    if dropout is not None:
        config.hidden_dropout_prob = config.attention_probs_dropout_prob = dropout
    part, found = part_class.from_pretrained(
        str(folder), config=config, dtype=torch.float32, output_loading_info=True, **SAFE_WEIGHTS
    )
    if found["missing_keys"]:
        raise ValueError(
            f"{folder} lacks the weights {sorted(found['missing_keys'])}: it is no part of a pair"
        )
    freeze_idle_parameters(part)  # loading makes new parameters
    return part


def split_pair(weights: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor], Tensor]:
    """Generator, discriminator with its whole embedding, and the difference of their embeddings."""
    generator, discriminator = (_take(weights, f"{part}.") for part in ("generator", "discriminator"))
    difference = discriminator[_EMBEDDING]
    discriminator[_EMBEDDING] = (generator[_EMBEDDING].float() + difference.float()).to(difference.dtype)
    return generator, discriminator, difference


def join_pair(
    generator: Mapping[str, Tensor], discriminator: Mapping[str, Tensor], difference: Tensor
) -> dict[str, Tensor]:
    """The inverse of `split_pair`, to the bit."""
    whole = {f"generator.{name}": value for name, value in generator.items()}
    whole |= {f"discriminator.{name}": value for name, value in discriminator.items()}
    return whole | {f"discriminator.{_EMBEDDING}": difference}


def list_parts(model: nn.Module) -> Iterator[Any]:
    """The models inside: generator and discriminator of a pair, else the one."""
    if isinstance(model, RtdModel):
        yield model.generator
        yield model.discriminator
    else:
        yield model


def _take(weights: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
