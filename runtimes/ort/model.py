"""A folder with model.onnx in ONNX Runtime, and its tokenizer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.memory_mark import wait_to_be_seen
from emo_export.base.threads import threads_for
from emo_export.errors import EmoExportError
from emo_export.files.kv_cache import CACHE_F32, CACHE_INT8, no_int8
from emo_export.files.onnx_needs import Requirements
from emo_export.interfaces import F32, Ids
from emo_export.runtimes.checks import check_ids
from emo_export.runtimes.ort.engine import CPU, MODEL, check_engine, import_onnxruntime, utf8_path
from emo_export.runtimes.ort.folder import read_config
from emo_export.runtimes.ort.heap import return_large_blocks
from emo_export.runtimes.ort.int8_cache import with_int8_cache
from emo_export.runtimes.ort.tokenizer import HfTokenizer

__all__ = ["HfTokenizer", "OnnxModel"]

KEPT = "logits_to_keep"  # an input with a default: how many of the last positions, 0 for all
INT8_SINCE = "the kernels of onnxruntime 1.31"  # the oldest that it was tried with
LOG_FATAL = 4  # ONNX Runtime's severity; its errors arrive as exceptions as well
DATA_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
SPIN_KEY = "session.intra_op.allow_spinning"
NO_OPTIONS: Mapping[str, str] = MappingProxyType({})


class OnnxModel:
    """One exported ONNX folder opened by ONNX Runtime, with one sequence (batch 1) in its KV cache.

    `threads`: default one per physical core. `context`: the longest sequence, default the model's
    own. `session_options`: ONNX Runtime's configuration
    entries by key. `graph`: the bytes of a model to load in place of model.onnx (one that computes
    at another accuracy, say); its external data still comes from the folder. `prepacked`: the copy
    that `prepacked_copy` made of the folder, to load in place of model.onnx with little anonymous
    memory. `kv_scales` (layers, 2, heads, size): keys and values are int8 by these scales, which
    `int8_cache` measures. `spin`: threads wait for work in a loop, which is faster and keeps their
    cores busy.
    """

    name = "ONNX Runtime"

    def __init__(
        self,
        folder: Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        session_options: Mapping[str, str] = NO_OPTIONS,
        graph: bytes | None = None,
        prepacked: Path | None = None,
        spin: bool = True,
        kv_scales: F32 | None = None,
    ) -> None:
        """Raises EmoExportError for a folder that is incomplete or that ONNX Runtime refuses."""
        self._ort = import_onnxruntime()
        config = read_config(folder)
        self.vocab_size = config["vocab_size"]
        self.context_length = _context(folder, config["max_position_embeddings"], context)
        self._cache_shape = (config["num_key_value_heads"], config["head_dim"])
        self._needs: Requirements = check_engine(folder)
        if graph is not None and prepacked is not None:
            raise EmoExportError(
                "a graph of its own has its weights elsewhere than a prepacked copy"
            )
        if graph is None and not (folder / MODEL).is_file():
            raise EmoExportError(f"there is no {MODEL} in {folder}")
        self._threads = threads_for(threads)
        self._entries = dict(session_options) | ({} if spin else {SPIN_KEY: "0"})
        self._prepacked = prepacked is not None
        if prepacked is not None:
            return_large_blocks()
        self._past_names = _cache_names("past_key_values", config["num_hidden_layers"])
        self._present_names = _cache_names("present", config["num_hidden_layers"])
        self._cache_type: type = np.float32
        if kv_scales is not None:
            graph = self._with_int8(folder, (prepacked or folder) / MODEL, graph, kv_scales)
        self._session: Any = self._open(prepacked or folder, graph)
        self._check_graph(folder)
        self._past: Sequence[Any] = ()
        self._length = 0
        self.reset()

    def _open(self, folder: Path, graph: bytes | None) -> Any:
        options = self._ort.SessionOptions()
        options.intra_op_num_threads = self._threads
        options.log_severity_level = LOG_FATAL
        options.add_session_config_entry(DATA_FOLDER_KEY, utf8_path(folder.resolve()))
        for key, value in self._entries.items():
            options.add_session_config_entry(key, value)
        model = utf8_path(folder / MODEL) if graph is None else graph
        wait_to_be_seen()
        try:
            return self._ort.InferenceSession(model, options, providers=[CPU])
        # Its exceptions share no base class but Exception.
        except Exception as error:
            advice = "; remove that folder to have it made again" if self._prepacked else ""
            if self._cache_type is np.int8:
                advice += f"; does it without --kv-cache {CACHE_INT8}, which needs {INT8_SINCE}?"
            raise EmoExportError(
                f"ONNX Runtime {self._ort.__version__} cannot load {folder / MODEL}: "
                f"{_one_line(error)}{advice}"
            ) from error

    def _with_int8(self, folder: Path, model: Path, graph: bytes | None, scales: F32) -> bytes:
        if not self._needs.share_kv_buffer:
            raise EmoExportError(no_int8(folder))
        self._cache_type = np.int8
        names = [*self._past_names, *self._present_names]
        return with_int8_cache(graph or model.read_bytes(), scales, names)

    def keys_and_values(self) -> list[F32]:
        """What is in a float32 cache: keys, then values (heads, T, size) of each layer."""
        return [value.numpy()[0, :, : self._length] for value in self._past]

    def _check_graph(self, folder: Path) -> None:
        """Refuse a graph with other inputs or outputs than we feed and read."""
        expected = {"input_ids", "attention_mask", *self._past_names}
        found = {value.name for value in self._session.get_inputs()}
        outputs = {value.name for value in self._session.get_outputs()}
        self._can_choose = KEPT in {v.name for v in self._session.get_overridable_initializers()}
        wrong = sorted(expected ^ found) + sorted({"logits", *self._present_names} - outputs)
        if wrong:
            raise EmoExportError(
                f"{folder / MODEL} is not a decoder of {len(self._past_names) // 2} layers as "
                f"its config.json says: missing or unknown {', '.join(wrong[:4])}"
            )

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """Token ids (T,) appended to the cached sequence -> logits (T, V), or (1, V) of the last.

        Raises EmoExportError for ids outside the vocabulary and beyond `context_length`.
        """
        if self._session is None:
            raise EmoExportError("this model has been closed")
        check_ids(ids, self.vocab_size, self._length, self.context_length)
        total = self._length + len(ids)
        feeds = dict(zip(self._past_names, self._past, strict=True))
        feeds["input_ids"] = self._value(ids.astype(np.int64)[None])
        feeds["attention_mask"] = self._value(np.ones((1, total), np.int64))
        if self._can_choose:
            feeds[KEPT] = self._value(np.array([1 if last else 0], np.int64))
        try:
            logits = self._run(feeds)
        except Exception as error:
            raise EmoExportError(
                f"ONNX Runtime failed on {len(ids)} tokens at position {self._length}: "
                f"{_one_line(error)}"
            ) from error
        self._length = total
        result: F32 = logits.numpy()[0]
        return result[-1:] if last else result

    def _run(self, feeds: Mapping[str, Any]) -> Any:
        """Run the graph on named values -> logits (1, T, V); the cache moves on.

        The cache stays in ONNX Runtime's own values: nothing but ids and logits is copied here.
        """
        if not self._needs.share_kv_buffer:
            names = ["logits", *self._present_names]
            logits, *self._past = self._session.run_with_ort_values(names, feeds)
            return logits
        binding = self._session.io_binding()
        for name, value in feeds.items():
            binding.bind_ortvalue_input(name, value)
        binding.bind_output("logits")
        for name, value in zip(self._present_names, self._past, strict=True):
            binding.bind_ortvalue_output(name, value)
        self._session.run_with_iobinding(binding)
        return binding.get_outputs()[0]

    def reset(self) -> None:
        """Empty the KV cache."""
        self._length = 0
        heads, size = self._cache_shape
        if not self._needs.share_kv_buffer:
            empty = self._value(np.zeros((1, heads, 0, size), np.float32))
            self._past = [empty] * len(self._past_names)
        elif not self._past:
            # Room for the whole context, of which only what is written ever takes memory. What a
            # sequence before left there is beyond the attention mask.
            shape = (1, heads, self.context_length, size)
            make = self._ort.OrtValue.ortvalue_from_shape_and_type
            self._past = [make(shape, self._cache_type) for _ in self._past_names]

    def rewind(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        if not self._needs.share_kv_buffer:
            cut = [np.ascontiguousarray(value.numpy()[:, :, :length]) for value in self._past]
            self._past = [self._value(array) for array in cut]
        self._length = length  # in place, what lies beyond is masked

    def state(self) -> Mapping[str, npt.NDArray[Any]]:
        """Keys and values (heads, T, size) of each layer, by the names of the graph's inputs."""
        values = (value.numpy()[0, :, : self._length].copy() for value in self._past)
        return dict(zip(self._past_names, values, strict=True))

    def put_back(self, state: Mapping[str, npt.NDArray[Any]], length: int) -> None:
        """Fill the cache. Raises EmoExportError for other names, shapes or types."""
        heads, size = self._cache_shape
        expected = (heads, length, size)
        if set(state) != set(self._past_names) or length > self.context_length:
            raise EmoExportError("there is no KV cache of such a graph in it")
        for name, array in state.items():
            if array.shape != expected or array.dtype != self._cache_type:
                raise EmoExportError(
                    f"{name} is {array.dtype} {array.shape}, expected "
                    f"{np.dtype(self._cache_type)} {expected}"
                )
        if self._needs.share_kv_buffer:
            for value, name in zip(self._past, self._past_names, strict=True):
                shape = (1, heads, self.context_length, size)
                whole: npt.NDArray[Any] = np.zeros(shape, self._cache_type)
                whole[0, :, :length] = state[name]
                value.update_inplace(whole)
        else:
            made = (np.ascontiguousarray(state[name][None]) for name in self._past_names)
            self._past = [self._value(array) for array in made]
        self._length = length

    def close(self) -> None:
        """Free the model; a second call does nothing."""
        self._session, self._past = None, ()

    def describe(self) -> Mapping[str, str]:
        """Engine, version and settings that the figures of this runtime depend on."""
        options = ", ".join(f"{key}={value}" for key, value in sorted(self._entries.items()))
        return {
            "engine": self.name,
            "version": f"onnxruntime {self._ort.__version__}",
            "provider": "CPUExecutionProvider",
            "weights": "prepacked copy, mapped" if self._prepacked else "as exported",
            "KV cache": self._cache_name(),
            "threads": str(self._threads),
            "context": str(self.context_length),
            "session options": options or "default",
        }

    def _cache_name(self) -> str:
        if self._cache_type is np.int8:
            return CACHE_INT8
        return f"{CACHE_F32}, in place" if self._needs.share_kv_buffer else CACHE_F32

    def _value(self, array: Any) -> Any:
        return self._ort.OrtValue.ortvalue_from_numpy(array)


def _context(folder: Path, most: int, asked: int | None) -> int:
    if asked is not None and not 1 <= asked <= most:
        raise EmoExportError(f"context is {asked}, {folder} allows 1 to {most} tokens")
    return most if asked is None else asked


def _cache_names(prefix: str, layers: int) -> list[str]:
    return [f"{prefix}.{layer}.{part}" for layer in range(layers) for part in ("key", "value")]


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())
