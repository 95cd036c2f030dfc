"""How `run` opens a target: the options of ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.cli.output import say
from emo_export.errors import EmoExportError
from emo_export.interfaces import Rewinding
from emo_export.runtimes.families import family_at
from emo_export.runtimes.opening import open_runtime


@dataclass(frozen=True)
class OnnxSettings:
    """How ONNX Runtime keeps the weights and waits, as the options of `run` describe it."""

    prepacked: bool = False
    cache: Path | None = None
    spin: bool | None = None

    def check(self, path: Path) -> None:
        """Refuse, with EmoExportError, what would have no effect on this file or folder."""
        if self.cache is not None and not self.prepacked:
            raise EmoExportError("--cache-dir has no effect without --cache-prepacked")
        if not family_at(path).packs_weights and (self.prepacked or self.spin is not None):
            name = "--cache-prepacked" if self.prepacked else "--spin/--no-spin"
            why = " (llama.cpp maps its weights anyway)" if self.prepacked else ""
            raise EmoExportError(
                f"{path}: {name} is for ONNX targets{why}; choose one with --target"
            )


def open_with(
    path: Path, threads: int | None, settings: OnnxSettings, kv_cache: str | None = None
) -> Rewinding:
    """The engine for a .gguf file or an ONNX folder, as the options of `run` say."""
    settings.check(path)
    prepacked = None
    if settings.prepacked:
        from emo_export.runtimes.ort.prepacked import default_cache, prepacked_copy

        cache = settings.cache or default_cache()
        prepacked = prepacked_copy(path, cache, say)
    spin = settings.spin is not False
    return open_runtime(path, threads, prepacked=prepacked, spin=spin, kv_cache=kv_cache)
