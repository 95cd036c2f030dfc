"""What a product is made of: a checkpoint, or a package whose weights are read back."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from emo_export.interfaces import F32
from emo_export.model.config import EmoConfig
from emo_export.model.names import Slot


class SourceTensor(Protocol):
    """One tensor of a source; nothing of it is held."""

    @property
    def name(self) -> str:
        """What it is called there."""

    @property
    def file(self) -> Path:
        """The file that holds it."""

    @property
    def dtype(self) -> str:
        """Its type on disk: that of safetensors, or the name of a package's format."""

    @property
    def row_bytes(self) -> int:
        """Bytes of a row on disk."""

    def rows(self, start: int, stop: int) -> F32:
        """Rows start..stop as float32 (stop - start, C), read now."""


class Source(Protocol):
    """A model with experts numbered as stored."""

    @property
    def path(self) -> Path:
        """Its folder or file, where the tokenizer and what goes along with it are looked for."""

    @property
    def raw(self) -> Mapping[str, Any]:
        """Its config.json."""

    @property
    def config(self) -> EmoConfig:
        """The same, checked."""

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""

    @property
    def files(self) -> Sequence[Path]:
        """The files that hold them."""

    @property
    def pruning(self) -> Mapping[str, Any] | None:
        """What was left out of it before, with the published keys."""

    def at(self, slot: Slot) -> SourceTensor:
        """The tensor of a slot."""
