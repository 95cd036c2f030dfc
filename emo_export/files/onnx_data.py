"""Where a graph's weights lie, held against the files that are there, before an engine opens them.

Source: onnx `docs/ExternalData.md`.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path, PurePosixPath

from emo_export.errors import EmoExportError
from emo_export.files.onnx_header import OnnxFile


def check_data(model: Path, file: OnnxFile) -> None:
    """Raise EmoExportError where a weight isn't wholly in a plain file of the model's folder.

    A link within the folder is followed, as one in a cache of Hugging Face is.
    """
    sizes: dict[str, int] = {}
    for tensor in file.initializers:
        if not tensor.location:
            continue
        if tensor.location not in sizes:
            sizes[tensor.location] = _size(model, tensor.location)
        size, end = sizes[tensor.location], tensor.offset + tensor.length
        if tensor.length != tensor.nbytes or end > size:
            raise EmoExportError(
                f"{model}: initializer {tensor.name!r:.200} of {tensor.nbytes} bytes has "
                f"{tensor.length:.6g} up to byte {end:.6g} of {tensor.location!r:.200}, which has "
                f"{size}; export or fetch it again"
            )


def leads_out(location: str) -> bool:
    """Whether a location is absolute, or goes above its folder."""
    place = PurePosixPath(location)
    return place.is_absolute() or ".." in place.parts or "\0" in location or "\\" in location


def _size(model: Path, location: str) -> int:
    if leads_out(location):
        raise EmoExportError(
            f"{model}: has weights in {location!r:.200}, outside of its folder; that is not read"
        )
    try:
        found = os.stat(model.parent / location)  # noqa: PTH116 - a name may be too long for Path
    except (OSError, ValueError) as error:
        raise EmoExportError(
            f"{model}: has weights in {location!r:.200}, which cannot be read ({error}); "
            "fetch or export it again"
        ) from error
    if not stat.S_ISREG(found.st_mode):
        raise EmoExportError(f"{model}: has weights in {location!r:.200}, which is no file")
    return found.st_size
