"""What every reader of foreign files must do with damaged ones."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from emo_export.errors import EmoExportError


def read_or_refuse(read: Callable[[Path], object], path: Path, content: bytes) -> None:
    """Reading succeeds, or fails with an error that names the file; any other one escapes."""
    path.write_bytes(content)
    try:
        read(path)
    except EmoExportError as error:
        assert str(path) in str(error)
