"""SHA-256 of each tensor of a checkpoint, computed while an export reads it.

An export reads tensors in the order of a forward pass, experts that are left out not at all, and a
digest of a whole file needs its bytes in the file's order. So each tensor has a digest of its own.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Mapping

from emo_export.model.safetensors_file import LazyTensor


class Reads:
    """Hears of bytes as they are read; a tensor has a digest once all its bytes came in order."""

    def __init__(self) -> None:
        self._begun: dict[str, tuple[int, hashlib._Hash]] = {}
        self._digests: dict[str, dict[str, str]] = {}
        self._lock = threading.Lock()

    def feed(self, tensor: LazyTensor, start: int, raw: memoryview) -> None:
        """Bytes of a tensor from byte `start` of it; what is read again is passed over."""
        file, key = tensor.file.name, f"{tensor.file.name}/{tensor.name}"
        with self._lock:
            if tensor.name in self._digests.get(file, {}):
                return
            at, digest = (0, hashlib.sha256()) if start == 0 else self._begun.pop(key, (-1, None))
            if digest is None or at != start:
                return
            digest.update(raw)
            at += len(raw)
            if at == tensor.nbytes:
                self._digests.setdefault(file, {})[tensor.name] = digest.hexdigest()
            else:
                self._begun[key] = at, digest

    def of(self, file: str) -> Mapping[str, str]:
        """Tensor -> SHA-256, of those of a file that were read whole."""
        return self._digests.get(file, {})

    def save(self) -> str:
        """All digests, for a later run that goes on."""
        return json.dumps(self._digests)

    def load(self, saved: str) -> None:
        """What `save` answered in an earlier run."""
        self._digests = json.loads(saved)
