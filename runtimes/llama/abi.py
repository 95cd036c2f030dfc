"""The C functions of llama.cpp that we call, in the xllamacpp wheel or in a libllama.so.

The wheel has no llama.h, and the parameter structs differ between llama.cpp versions. They go by
value, so this module never declares their fields: `Params` is an opaque block of bytes, larger
than any of them. That works because on every ABI that the wheel is built for such a struct is
returned through a hidden pointer (the callee fills its own size of our block) and passed in memory
(x86-64 SysV: copied to the stack as the last argument; arm64 AAPCS and Windows x64: a pointer to a
copy): the callee reads its own size from the start and never sees the rest. Fields that must
change are found by the pattern of default values around them (`ContextFields`), and a library
without the pattern is refused.
"""

from __future__ import annotations

import ctypes
import functools
import importlib.metadata
import re
import struct
from collections import deque
from collections.abc import Iterator
from ctypes import (
    CFUNCTYPE,
    POINTER,
    c_bool,
    c_char_p,
    c_float,
    c_int8,
    c_int32,
    c_size_t,
    c_uint32,
)
from ctypes import c_void_p as ptr
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from emo_export.base.install import install_command
from emo_export.base.llama_library import library_path, own_library
from emo_export.errors import EmoExportError

LOG_LINES = 50
_REPACKED = re.compile(r"REPACK model buffer size = *([0-9.]+) MiB")
LOG_DEBUG, LOG_ERROR, LOG_CONTINUES = 1, 4, 5  # enum ggml_log_level
LogCallback = CFUNCTYPE(None, c_int32, c_char_p, ptr)


class Params(ctypes.Structure):
    """A llama_model_params or llama_context_params of unknown layout (see the module's text)."""

    _fields_ = (("raw", ctypes.c_uint8 * 1024),)

    def set_int(self, offset: int, value: int) -> None:
        """Write an int32 field."""
        struct.pack_into("<i", self.raw, offset, value)


class Batch(ctypes.Structure):
    """struct llama_batch (llama.h, the same since 2023)."""

    _fields_ = (
        ("n_tokens", c_int32),
        ("token", POINTER(c_int32)),
        ("embd", POINTER(c_float)),
        ("pos", POINTER(c_int32)),
        ("n_seq_id", POINTER(c_int32)),
        ("seq_id", POINTER(POINTER(c_int32))),
        ("logits", POINTER(c_int8)),
    )


# name -> (result, arguments), from llama.h of ggml-org/llama.cpp
FUNCTIONS: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "llama_backend_init": (None, ()),
    "ggml_backend_dev_count": (c_size_t, ()),
    "ggml_backend_load_all_from_path": (None, (c_char_p,)),
    "llama_log_set": (None, (LogCallback, ptr)),
    "llama_print_system_info": (c_char_p, ()),
    "llama_model_default_params": (Params, ()),
    "llama_context_default_params": (Params, ()),
    "llama_model_load_from_file": (ptr, (c_char_p, Params)),
    "llama_model_free": (None, (ptr,)),
    "llama_model_get_vocab": (ptr, (ptr,)),
    "llama_model_n_ctx_train": (c_int32, (ptr,)),
    "llama_init_from_model": (ptr, (ptr, Params)),
    "llama_free": (None, (ptr,)),
    "llama_n_ctx": (c_uint32, (ptr,)),
    "llama_n_ubatch": (c_uint32, (ptr,)),
    "llama_set_n_threads": (None, (ptr, c_int32, c_int32)),
    "llama_get_memory": (ptr, (ptr,)),
    "llama_memory_clear": (None, (ptr, c_bool)),
    "llama_memory_seq_rm": (c_bool, (ptr, c_int32, c_int32, c_int32)),
    "llama_state_seq_get_size": (c_size_t, (ptr, c_int32)),
    "llama_state_seq_get_data": (c_size_t, (ptr, ptr, c_size_t, c_int32)),
    "llama_state_seq_set_data": (c_size_t, (ptr, ptr, c_size_t, c_int32)),
    "llama_batch_init": (Batch, (c_int32, c_int32, c_int32)),
    "llama_batch_free": (None, (Batch,)),
    "llama_decode": (c_int32, (ptr, Batch)),
    "llama_get_logits_ith": (POINTER(c_float), (ptr, c_int32)),
    "llama_vocab_n_tokens": (c_int32, (ptr,)),
    "llama_vocab_is_eog": (c_bool, (ptr, c_int32)),
    "llama_tokenize": (
        c_int32,
        (ptr, c_char_p, c_int32, POINTER(c_int32), c_int32, c_bool, c_bool),
    ),
    "llama_token_to_piece": (c_int32, (ptr, c_int32, c_char_p, c_int32, c_int32, c_bool)),
}


@dataclass(frozen=True)
class ContextFields:
    """Byte offsets of int32 fields in this library's llama_context_params."""

    n_ctx: int
    flash_attn: int
    type_k: int
    type_v: int


class Log:
    """The latest lines that llama.cpp logged, kept silently for error messages."""

    def __init__(self) -> None:
        self._lines: deque[tuple[int, str]] = deque(maxlen=LOG_LINES)
        self._level = LOG_DEBUG
        self._interrupted = False

    def add(self, level: int, text: bytes | None, _data: Any = None) -> None:
        """The callback that llama.cpp calls; a continued line has the level of its beginning."""
        try:
            self._keep(level, text)
        except KeyboardInterrupt:
            # ctypes prints and drops what a callback raises, and Ctrl-C would be lost.
            self._interrupted = True

    def check(self) -> None:
        """Raise the KeyboardInterrupt that arrived inside the callback."""
        if self._interrupted:
            self._interrupted = False
            raise KeyboardInterrupt

    def _keep(self, level: int, text: bytes | None) -> None:
        line = (text or b"").decode("utf-8", errors="replace")
        continues = level == LOG_CONTINUES
        self._level = self._level if continues else level
        if self._level == LOG_DEBUG:  # hundreds of lines about graphs
            return
        if continues and self._lines:
            line = self._lines.pop()[1] + line
        if line.strip():
            self._lines.append((self._level, line))

    def clear(self) -> None:
        """Forget every line."""
        self._lines.clear()

    def lines(self) -> list[str]:
        """What was logged last, oldest first."""
        return [text for _, text in self._lines]

    def repacked(self) -> int:
        """Bytes of weights that it copied for its kernels, by the latest lines."""
        found = _REPACKED.findall("".join(self.lines()))
        return sum(round(float(size) * (1 << 20)) for size in found)

    def reason(self) -> str:
        """What llama.cpp said last, errors before anything else, on one line."""
        lines = [text for level, text in self._lines if level == LOG_ERROR]
        lines = lines or [text for _, text in self._lines]
        return "; ".join(line.strip() for line in lines[-3:]) or "it gave no reason"


@dataclass(frozen=True)
class Library:
    """The loaded library: `api` holds its functions.

    `backend` is the file of kernels that ggml chose for this CPU, or what it is built with.
    """

    api: Any
    log: Log
    version: str
    backend: str
    fields: ContextFields
    callback: Any  # llama.cpp keeps a bare pointer to it, so it must live as long as the library


@functools.cache
def load_library() -> Library:
    """Load llama.cpp once for the process, silence its log, find the context fields.

    Raises MissingDependencyError without xllamacpp, EmoExportError when it is unlike what we know.
    """
    path = library_path("running a GGUF file")
    version = _version()
    try:
        api = ctypes.CDLL(str(path))
        for name, (result, arguments) in FUNCTIONS.items():
            function = getattr(api, name)
            function.restype, function.argtypes = result, list(arguments)
    except (OSError, AttributeError) as error:
        raise EmoExportError(
            f"{version} cannot be used as a llama.cpp library ({error}): {install_command('llama')}"
        ) from error
    log = Log()
    callback = LogCallback(log.add)
    api.llama_log_set(callback, None)
    backend = _load_kernels(api, path, log)
    api.llama_backend_init()
    fields = find_context_fields(bytes(api.llama_context_default_params().raw), version)
    _check_batch(api, version)
    return Library(api, log, version, backend, fields, callback)


def _version() -> str:
    own = own_library()
    return own.name if own else f"xllamacpp {importlib.metadata.version('xllamacpp')}"


def _load_kernels(api: Any, path: Path, log: Log) -> str:
    """Have ggml choose the kernels of this CPU where they are files of their own.

    It scores every libggml-cpu-*.so and logs the one that it takes (ggml-backend-reg.cpp,
    `ggml_backend_load_best`). Raises EmoExportError when none fits.
    """
    if api.ggml_backend_dev_count() > 0:
        return "built in"
    api.ggml_backend_load_all_from_path(str(path.parent).encode())
    loaded = re.findall(r"loaded CPU backend from (\S+)", "\n".join(log.lines()))
    if api.ggml_backend_dev_count() == 0 or not loaded:
        raise EmoExportError(
            f"{path}: ggml finds no CPU backend (libggml-cpu-*.so) for this CPU beside it; "
            f"install the whole build: {log.reason()}"
        )
    return Path(loaded[-1]).name


def find_context_fields(raw: bytes, version: str) -> ContextFields:
    """Find the fields in default llama_context_params, given as bytes.

    The defaults of llama.cpp's `llama_context_default_params()` that hold the pattern: n_ctx 512,
    n_batch 2048, n_ubatch 512 and n_seq_max 1 come first; rope_scaling_type, pooling_type,
    attention_type and flash_attn_type are four -1 in a row, then rope_freq_base and
    rope_freq_scale are 0.0f and yarn_ext_factor -1.0f; type_k and type_v are F16 = 1 each, behind
    and before null pointers. Raises EmoExportError when that is not there exactly once.
    """
    yarn = struct.unpack("<i", struct.pack("<f", -1.0))[0]
    words = struct.unpack_from("<64i", raw)  # the struct is shorter; what follows it is noise
    flash = list(_matches(words[:24], (-1, -1, -1, -1, 0, 0, yarn)))
    types = list(_matches(words[:36], (0, 0, 1, 1, 0, 0)))
    if words[:4] != (512, 2048, 512, 1) or len(flash) != 1 or len(types) != 1 or types < flash:
        raise EmoExportError(
            f"the layout of llama.cpp's context settings in {version} is unknown to "
            f"this version of emo-export; install one that it knows: {install_command('llama')}"
        )
    type_k = 4 * (types[0] + 2)
    return ContextFields(n_ctx=0, flash_attn=4 * (flash[0] + 3), type_k=type_k, type_v=type_k + 4)


def _matches(words: tuple[int, ...], pattern: tuple[int, ...]) -> Iterator[int]:
    size = len(pattern)
    return (i for i in range(len(words) - size + 1) if words[i : i + size] == pattern)


def _check_batch(api: Any, version: str) -> None:
    batch = api.llama_batch_init(2, 0, 1)
    filled = (batch.token, batch.pos, batch.n_seq_id, batch.seq_id, batch.logits)
    if batch.n_tokens != 0 or batch.embd or not all(filled):
        raise EmoExportError(
            f"the layout of llama.cpp's batch in {version} is unknown to this version "
            f"of emo-export; install one that it knows: {install_command('llama')}"
        )
    api.llama_batch_free(batch)
