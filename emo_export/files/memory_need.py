"""What a model takes at least, from the headers of its files alone: weights and KV cache.

An engine's own work space is not in here; it is measured (runtimes/devices/memory/cap.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.gguf_parts import read_model
from emo_export.files.kv_cache import CACHE_F16, CACHE_F32, CACHE_INT8, no_int8
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_needs import read_requirements
from emo_export.files.read_per_token import gguf_per_token, onnx_per_token


@dataclass(frozen=True)
class Need:
    """`weights`: bytes of all tensors. `per_position`: bytes of KV cache for each position.

    `context`: positions that the cache shall hold. `stays_mapped`: the engine reads its weights
    from the mapped file all along; otherwise it makes a copy of its own. `whole_cache`: the engine
    takes memory for the whole context when it opens, and not as the text grows. `kv_cache`: the
    type of keys and values.
    """

    weights: int
    per_position: int
    context: int
    stays_mapped: bool
    whole_cache: bool
    kv_cache: str

    @property
    def cache(self) -> int:
        """Bytes of KV cache at the context."""
        return self.per_position * self.context

    @property
    def least(self) -> int:
        """Bytes below which it can't be held: weights and cache."""
        return self.weights + self.cache

    def cache_of_run(self, positions: int) -> int:
        """Bytes of KV cache that a run held.

        `positions`: of its longest sequence; of the context that was opened for a `whole_cache`.
        """
        return positions * self.per_position


def gguf_need(path: Path, context: int | None, kv_cache: str = CACHE_F16) -> Need:
    """What a .gguf file takes at `context` positions (default: the model's own).

    Raises EmoExportError for a context that the model does not have, for heads that don't fit the
    type of the KV cache, and for a file that export did not make.
    """
    file = read_model(path)
    arch = file.keys.get("general.architecture")
    trained = file.keys.get(f"{arch}.context_length")
    asked = _context(path, context, trained)
    weights = sum(tensor.nbytes for tensor in file.tensors)
    cache = gguf_per_token(path, file, kv_cache).cache
    return Need(weights, cache, asked, True, True, kv_cache)


def onnx_need(path: Path, context: int | None, kv_cache: str = CACHE_F32) -> Need:
    """What an ONNX folder takes; `context` and errors as of `gguf_need`.

    An int8 cache needs a graph that shares its buffer.
    """
    graph, config = read_onnx(path / "model.onnx"), read_json(path / "config.json")
    needs = read_requirements(path)
    if kv_cache == CACHE_INT8 and not needs.share_kv_buffer:
        raise EmoExportError(no_int8(path))
    asked = _context(path, context, config.get("max_position_embeddings"))
    cache = onnx_per_token(path / "model.onnx", graph, config, kv_cache).cache
    # Without a shared buffer a step reads one cache and writes the next beside it.
    cache *= 1 if needs.share_kv_buffer else 2
    weights = sum(tensor.nbytes for tensor in graph.initializers)
    mapped = needs.type == "f32" or needs.graph == "standard"  # gathered from the file's pages
    return Need(weights, cache, asked, mapped, False, kv_cache)


def _context(path: Path, asked: int | None, trained: object) -> int:
    if type(trained) is not int or trained < 1:
        raise EmoExportError(f"{path}: its context is {trained!r}, expected a number of tokens")
    if asked is not None and not 1 <= asked <= trained:
        raise EmoExportError(f"{path}: --context {asked}: the model allows 1 to {trained} tokens")
    return asked or trained
