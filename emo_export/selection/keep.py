"""How many experts are kept, and how they are chosen."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from fractions import Fraction

from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.product import Product
from emo_export.model.source import Source
from emo_export.selection.method import Method

_WHOLE = re.compile(r"0*[1-9]\d{0,8}")
_PART = re.compile(r"(\d{1,9}(\.\d{0,9})?|\.\d{1,9})%?|\d{1,9}/\d{1,9}")


@dataclass(frozen=True)
class Keep:
    """A number of experts of each layer, or a part of them; shared and always active ones count."""

    amount: int | Fraction

    @classmethod
    def parse(cls, text: str) -> Keep:
        """`8`, `25%`, `1/4` or `0.25`. Raises EmoExportError for anything else."""
        number = text.strip()
        if _WHOLE.fullmatch(number):
            return cls(int(number))
        try:
            if not _PART.fullmatch(number):  # Fraction takes exponents, of any length
                raise ValueError
            part = Fraction(number.removesuffix("%")) / (100 if number.endswith("%") else 1)
        except (ValueError, ZeroDivisionError):
            part = Fraction(0)
        if not 0 < part <= 1:
            raise EmoExportError(
                f"--keep {text}: expected a number of experts or a part of them, as 16, 25% or 1/4"
            )
        return cls(part)

    def of(self, total: int) -> int:
        """How many of `total`; a part is rounded up."""
        return self.amount if isinstance(self.amount, int) else math.ceil(self.amount * total)

    def counts(self, config: EmoConfig) -> list[int]:
        """How many experts each layer keeps: all where it has fewer than asked for.

        Raises EmoExportError where not even those fit that every token uses, or for a model
        without experts.
        """
        if all(layer.is_dense for layer in config.layers):
            raise EmoExportError("--keep: this model has no experts to choose from")
        counts = []
        for index, layer in enumerate(config.layers):
            wanted = self.of(layer.num_experts)
            least = max(1, len(layer.forced))
            if not layer.is_dense and wanted < least:
                raise EmoExportError(
                    f"--keep: {wanted} of {layer.num_experts} experts of layer {index} are too "
                    f"few: {least} must stay, which every token uses"
                )
            counts.append(min(wanted, layer.num_experts))
        if counts == [layer.num_experts for layer in config.layers]:
            raise EmoExportError(
                f"--keep {self.amount}: the model has {config.num_experts} experts in a layer, so "
                "nothing would be left out; ask for fewer, or leave --keep out"
            )
        return counts


@dataclass(frozen=True)
class Selection:
    """What is asked for: how many, ranked by which method, `seed` for what is drawn.

    `rescale`: the routed experts of a layer together keep the weight that all of them had.
    """

    keep: Keep
    method: Method = Method.ROUTER
    seed: int = 0
    rescale: bool = False

    def awaiting(self, source: Source) -> Product:
        """The product whose experts are to be chosen as the weights go by.

        Raises EmoExportError for what a model can't be asked.
        """
        if self.rescale and source.config.norm_topk_prob:
            raise EmoExportError(
                "--rescale: this model divides the weights of a token's experts by their sum "
                "(norm_topk_prob), so pruning adds no weight that could be taken back"
            )
        return Product.awaiting(source, self.keep.counts(source.config), self.method.published)
