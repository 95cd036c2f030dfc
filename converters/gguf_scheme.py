"""Which ggml type each matrix of a GGUF target gets."""

from __future__ import annotations

from emo_export.config import EmoConfig
from emo_export.converters.ggml_formats import GGML_FORMATS
from emo_export.converters.to_gguf import check_expressible
from emo_export.errors import EmoExportError
from emo_export.scheme import GGUF_RECIPES, QuantScheme, resolve


def gguf_scheme(type_name: str, config: EmoConfig) -> QuantScheme:
    """The formats of a GGUF recipe for this model.

    Raises EmoExportError for an unknown type, or a configuration that `deepseek` can't express.
    """
    if type_name not in GGUF_RECIPES:
        known = ", ".join(GGUF_RECIPES)
        raise EmoExportError(f"gguf:{type_name} is not a known type; choose one of {known}")
    check_expressible(config)
    return resolve(type_name, GGUF_RECIPES[type_name], GGML_FORMATS, config)
