"""A GGUF file in llama.cpp, through the C API that the xllamacpp wheel exports."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.base.memory_mark import wait_to_be_seen
from emo_export.base.threads import threads_for
from emo_export.errors import EmoExportError
from emo_export.files.kv_cache import CACHE_F16, CACHE_F32, NUMBERS
from emo_export.interfaces import F32, Ids
from emo_export.runtimes.checks import check_ids
from emo_export.runtimes.llama.abi import Batch, Library, Params, load_library

GGUF_MAGIC = b"GGUF"
FLASH_ATTN_DISABLED = 0  # enum llama_flash_attn_type
SEQUENCE, STATE = 0, "llama.cpp"  # the one sequence, and what its state is called
REPACKED = "repacked bytes"  # of weights, copied for the kernels of this CPU


class LlamaCpp:
    """One GGUF file opened by llama.cpp, with one sequence in its KV cache.

    `threads`: default one per physical core. `context`: the longest sequence, default the model's
    own. `parity`: flash attention off and the KV cache in float32, since either one's float16 adds
    1e-6 of KL, which would hide errors; slower, so not for generation. `kv_cache`: one of KV_CACHES
    in place of what that means, or of llama.cpp's own float16. With f32 flash attention is off too:
    it would round keys and values to float16.
    """

    name = "llama.cpp"

    def __init__(
        self,
        path: Path,
        *,
        threads: int | None = None,
        context: int | None = None,
        parity: bool = False,
        kv_cache: str | None = None,
    ) -> None:
        """Raises EmoExportError for a file that is not GGUF or that llama.cpp refuses."""
        _check_gguf(path)
        self._lib: Library = load_library()
        self._threads = threads_for(threads)
        self._kv_cache = kv_cache or (CACHE_F32 if parity else CACHE_F16)
        self._length = 0
        self._context: int | None = None
        self._repacked = 0
        self._model: int | None = self._load(path)
        try:
            self.context_length = self._choose_context(path, context)
            self._context = self._open_context(path)
            vocab = self._lib.api.llama_model_get_vocab(self._model)
            self.vocab_size = int(self._lib.api.llama_vocab_n_tokens(vocab))
        except BaseException:
            self.close()
            raise

    def _load(self, path: Path) -> int:
        api = self._lib.api
        self._lib.log.clear()
        wait_to_be_seen()
        model = api.llama_model_load_from_file(os.fsencode(path), api.llama_model_default_params())
        self._lib.log.check()
        if not model:
            raise EmoExportError(f"llama.cpp cannot load {path}: {self._lib.log.reason()}")
        self._repacked = self._lib.log.repacked()
        return int(model)

    def _choose_context(self, path: Path, context: int | None) -> int:
        trained = int(self._lib.api.llama_model_n_ctx_train(self._model))
        if context is not None and not 1 <= context <= trained:
            raise EmoExportError(f"context is {context}, {path} allows 1 to {trained} tokens")
        return trained if context is None else context

    def _open_context(self, path: Path) -> int:
        api, fields = self._lib.api, self._lib.fields
        params: Params = api.llama_context_default_params()
        params.set_int(fields.n_ctx, self.context_length)
        if self._kv_cache == CACHE_F32:
            params.set_int(fields.flash_attn, FLASH_ATTN_DISABLED)
        params.set_int(fields.type_k, NUMBERS[self._kv_cache])
        params.set_int(fields.type_v, NUMBERS[self._kv_cache])
        context = api.llama_init_from_model(self._model, params)
        if not context:
            raise EmoExportError(
                f"llama.cpp cannot open {path} with a context of {self.context_length} tokens: "
                f"{self._lib.log.reason()}"
            )
        api.llama_set_n_threads(context, self._threads, self._threads)
        return int(context)

    def forward(self, ids: Ids, *, last: bool = False) -> F32:
        """Token ids (T,) appended to the cached sequence -> logits (T, V), or (1, V) of the last.

        Raises EmoExportError for ids outside the vocabulary and beyond `context_length`.
        """
        context = self._opened()
        check_ids(ids, self.vocab_size, self._length, self.context_length)
        wanted = 1 if last else len(ids)  # from the end
        logits = np.empty((wanted, self.vocab_size), np.float32)
        # A micro-batch at a time: a longer one would only make llama.cpp hold more logits at once.
        step = int(self._lib.api.llama_n_ubatch(context))
        for start in range(0, len(ids), step):
            first = max(start, len(ids) - wanted)
            place = first - len(ids) + wanted
            piece = ids[start : start + step]
            self._decode(context, piece, logits[place : place + start + len(piece) - first])
        return logits

    def _decode(self, context: int, ids: Ids, logits: F32) -> None:
        """Run ids (T,) and fill logits (n, V) of the last n of them."""
        api = self._lib.api
        count, skipped = len(ids), len(ids) - len(logits)
        batch, _owner = _batch(ids, self._length, skipped)
        code = api.llama_decode(context, batch)
        if code != 0:
            raise EmoExportError(
                f"llama.cpp failed to decode {count} tokens at position {self._length} "
                f"(code {code}): {self._lib.log.reason()}"
            )
        for row in range(skipped, count):
            values = api.llama_get_logits_ith(context, row)
            logits[row - skipped] = np.ctypeslib.as_array(values, shape=(self.vocab_size,))
        self._length += count

    def reset(self) -> None:
        """Empty the KV cache."""
        api = self._lib.api
        api.llama_memory_clear(api.llama_get_memory(self._opened()), True)
        self._length = 0

    def rewind(self, length: int) -> None:
        """Forget what comes after the first `length` positions."""
        api = self._lib.api
        if not api.llama_memory_seq_rm(api.llama_get_memory(self._opened()), SEQUENCE, length, -1):
            raise EmoExportError(f"llama.cpp cannot cut its KV cache to {length} positions")
        self._length = length

    def state(self) -> Mapping[str, npt.NDArray[np.uint8]]:
        """The KV cache as llama.cpp writes it."""
        api, context = self._lib.api, self._opened()
        raw = np.empty(api.llama_state_seq_get_size(context, SEQUENCE), np.uint8)
        size = api.llama_state_seq_get_data(context, raw.ctypes.data, raw.nbytes, SEQUENCE)
        if size != raw.nbytes:
            raise EmoExportError(f"llama.cpp cannot give its KV cache: {self._lib.log.reason()}")
        return {STATE: raw}

    def put_back(self, state: Mapping[str, npt.NDArray[Any]], length: int) -> None:
        """Fill the cache. Raises EmoExportError for what llama.cpp does not take."""
        self.reset()
        raw = state.get(STATE)
        if raw is None or raw.dtype != np.uint8 or raw.ndim != 1:
            raise EmoExportError("there is no KV cache of llama.cpp's in it")
        api, raw = self._lib.api, np.ascontiguousarray(raw)
        done = api.llama_state_seq_set_data(self._opened(), raw.ctypes.data, raw.nbytes, SEQUENCE)
        if done != raw.nbytes:
            self.reset()
            raise EmoExportError(f"llama.cpp takes no such KV cache: {self._lib.log.reason()}")
        self._length = length

    def close(self) -> None:
        """Free the context and the model; a second call does nothing."""
        if self._context is not None:
            self._lib.api.llama_free(self._context)
        if self._model is not None:
            self._lib.api.llama_model_free(self._model)
        self._context = self._model = None

    def _opened(self) -> int:
        if self._context is None:
            raise EmoExportError("this model has been closed")
        return self._context

    def describe(self) -> Mapping[str, str]:
        """Engine, version and settings that the figures of this runtime depend on."""
        system = self._lib.api.llama_print_system_info() or b""
        return {
            "engine": self.name,
            "version": self._lib.version,
            "CPU backend": self._lib.backend,
            "system": system.decode("utf-8", errors="replace").strip(" |\n"),
            "flash attention": "off" if self._kv_cache == CACHE_F32 else "auto",
            "KV cache": self._kv_cache,
            "threads": str(self._threads),
            "context": str(self.context_length),
            REPACKED: str(self._repacked),
        }

    def tokenizer(self) -> LlamaTokenizer:
        """The tokenizer in the file; usable until the model is closed."""
        return LlamaTokenizer(self)

    def vocabulary(self) -> tuple[Any, int]:
        """llama.cpp's functions and its vocabulary handle, for LlamaTokenizer."""
        self._opened()
        return self._lib.api, self._lib.api.llama_model_get_vocab(self._model)


class LlamaTokenizer:
    """The tokenizer in an opened GGUF file."""

    def __init__(self, model: LlamaCpp) -> None:
        """`model` must stay open as long as this is used."""
        self._model = model
        self._pieces: dict[int, bytes] = {}

    def encode(self, text: str) -> list[int]:
        """Text -> token ids; special tokens are recognised in the text, none are added."""
        api, vocab = self._model.vocabulary()
        data = text.encode("utf-8")
        # At most one token per byte; the spare one is for vocabularies that add a space.
        size = len(data) + 1
        tokens = (ctypes.c_int32 * size)()
        count = api.llama_tokenize(vocab, data, len(data), tokens, size, False, True)
        if count < 0:
            raise EmoExportError(f"llama.cpp cannot tokenize a text of {len(data)} bytes")
        return list(tokens[:count])

    def piece(self, token: int) -> bytes:
        """The bytes that one token stands for (empty for a control or unused token)."""
        if token not in self._pieces:
            self._pieces[token] = self._piece(token)
        return self._pieces[token]

    def _piece(self, token: int) -> bytes:
        api, vocab = self._model.vocabulary()
        if not 0 <= token < self._model.vocab_size:
            raise EmoExportError(
                f"token {token} is not in a vocabulary of {self._model.vocab_size}"
            )
        size = 64
        buffer = ctypes.create_string_buffer(size)
        count = api.llama_token_to_piece(vocab, token, buffer, size, 0, False)
        if count < 0:  # the piece is longer: the answer is its negated length
            size = -count
            buffer = ctypes.create_string_buffer(size)
            count = api.llama_token_to_piece(vocab, token, buffer, size, 0, False)
        return buffer.raw[:count]

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Tokens that llama.cpp takes for an end of generation."""
        api, vocab = self._model.vocabulary()
        tokens = range(self._model.vocab_size)
        return frozenset(token for token in tokens if api.llama_vocab_is_eog(vocab, token))


def _check_gguf(path: Path) -> None:
    if not path.is_file():
        raise EmoExportError(f"there is no file {path}")
    with path.open("rb") as file:
        magic = file.read(len(GGUF_MAGIC))
    if magic != GGUF_MAGIC:
        raise EmoExportError(f"{path} is not a GGUF file: it begins with {magic!r}")


def _batch(ids: Ids, start: int, skipped: int) -> tuple[Batch, list[Any]]:
    """A batch of ids (T,) from position `start`, logits wanted of all but the first `skipped`.

    The list owns its arrays.
    """
    count = len(ids)
    token = (ctypes.c_int32 * count)(*ids.tolist())
    position = (ctypes.c_int32 * count)(*range(start, start + count))
    lengths = (ctypes.c_int32 * count)(*([1] * count))
    sequence = ctypes.pointer(ctypes.c_int32(0))
    sequences = (ctypes.POINTER(ctypes.c_int32) * count)(*([sequence] * count))
    wanted = (ctypes.c_int8 * count)(*([0] * skipped + [1] * (count - skipped)))
    batch = Batch(count, token, None, position, lengths, sequences, wanted)
    return batch, [token, position, lengths, sequence, sequences, wanted]
