"""Where an export gets its importance from: calibration text, or a file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.errors import EmoExportError
from emo_export.text.documents import FIELD

if TYPE_CHECKING:
    from emo_export.model.importance import ImportanceMatrix
    from emo_export.model.product import Product
    from emo_export.model.source import Source
    from emo_export.reference.calibrate import Calibration
    from emo_export.reference.drift import Original
    from emo_export.selection.choice import Choice
    from emo_export.selection.keep import Selection
    from emo_export.text.sample import Sample
    from emo_export.text.tokenizer import Encode


@dataclass(frozen=True)
class CalibrationText:
    """Files or folders of text, of which `tokens` tokens are drawn, for sequences of `context`.

    `field` holds the text in JSON lines.
    """

    places: tuple[Path, ...]
    tokens: int
    seed: int = 0
    field: str = FIELD
    context: int | None = None


def read_sample(text: CalibrationText, product: Product, encode: Encode | None = None) -> Sample:
    """A sample of calibration text in the tokens of a product, and in chunks of its context.

    `encode`: default that of the product's folder. Raises EmoExportError for a checkpoint without
    tokenizer or files without text.
    """
    from emo_export.model.importance import CHUNK
    from emo_export.text.sample import read_calibration
    from emo_export.text.tokenizer import open_tokenizer, why_no_tokenizer

    config = product.config
    encode = encode or open_tokenizer(product.path, config.vocab_size)
    if encode is None:
        raise EmoExportError(
            f"--calibration needs the checkpoint's tokenizer, and {product.path} "
            f"{why_no_tokenizer(product.path)}"
        )
    length = min(CHUNK, config.context_length(text.context))
    sample = read_calibration(text.places, encode, text.tokens, length, text.seed, text.field)
    if not sample.sequences:
        raise EmoExportError("--calibration: the text is too short; give at least two tokens")
    return sample


def start_calibration(
    sample: Sample, product: Product, device: str, original: Original | None = None
) -> Calibration:
    """A calibration over a sample of text, to be collected in the pass to come.

    `original`: of the float model, for one of a quantised model.
    """
    from emo_export.reference.calibrate import Calibration

    return Calibration(product.config, sample.sequences, sample.source, device, original)


def start_choice(selection: Selection, calibration: Calibration, source: Source) -> Choice:
    """What chooses the experts of a product by the text that goes along."""
    from emo_export.selection.choice import Choice

    return Choice(calibration.states, source.config, selection)


def read_importance(path: Path, product: Product, arch: str | None) -> ImportanceMatrix:
    """An importance matrix file of llama-imatrix or of an earlier export."""
    from emo_export.converters.gguf.graph import choose_arch
    from emo_export.converters.gguf.imatrix import read_imatrix

    return read_imatrix(path, product.config, choose_arch(product.config, arch))


def save_importance(
    folder: Path, matrix: ImportanceMatrix, product: Product, arch: str | None
) -> None:
    """Write imatrix.gguf into an exported folder."""
    from emo_export.converters.gguf.graph import choose_arch
    from emo_export.converters.gguf.imatrix import write_imatrix
    from emo_export.model.importance import IMATRIX

    write_imatrix(folder / IMATRIX, matrix, product.config, choose_arch(product.config, arch))
