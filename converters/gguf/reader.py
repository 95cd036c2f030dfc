"""gguf-py's reader over plain arrays: it cuts a view for each string of a vocabulary."""

from __future__ import annotations

from typing import Any

import gguf
import numpy as np


class GgufReader(gguf.GGUFReader):
    """Reads as gguf-py does, in less than half its time: a view of a memmap costs most of it."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Keep the mapped file as an array, which keeps the mapping."""
        super().__setattr__(name, value.view(np.ndarray) if name == "data" else value)
