"""Encoders and the heads that train them.

Importing this package registers its classes with `AutoModelForMaskedLM`, which then loads CANINE folders that
have a masked-character head, and DeBERTa folders into the class that scores targets only.
"""

from transformers import AutoModelForMaskedLM, CanineConfig, DebertaV2Config

from modeling.canine import CanineForMaskedLM
from modeling.deberta import DebertaForMaskedLM
from modeling.heads import MaskedLMOutput

AutoModelForMaskedLM.register(CanineConfig, CanineForMaskedLM, exist_ok=True)
AutoModelForMaskedLM.register(DebertaV2Config, DebertaForMaskedLM, exist_ok=True)

__all__ = ["CanineForMaskedLM", "DebertaForMaskedLM", "MaskedLMOutput"]
