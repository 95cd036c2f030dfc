"""GGUF files and llama.cpp, as a family. Light: what a device uses."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from emo_export.base.install import need
from emo_export.base.llama_library import own_library
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufFile, read_gguf
from emo_export.files.gguf_parts import part_paths, read_model
from emo_export.files.gguf_types import ARCHITECTURES, FILE_TYPES
from emo_export.files.kv_cache import CACHE_F16, CACHE_F32, CACHE_Q8_0
from emo_export.files.memory_need import Need, gguf_need
from emo_export.files.read_per_token import PerToken, gguf_per_token
from emo_export.files.run_memory import Running, gguf_running
from emo_export.files.sizes import gguf_sizes
from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import Rewinding, Runtime, Tokenizer
from emo_export.model.config import EmoConfig
from emo_export.spec import GGUF, Spec

UNWEIGHED = ("f32", "f16", "bf16", "q8_0")
"""Types to which importance adds nothing."""


_FATAL: Mapping[str, Callable[[float], bool]] = {
    "block_count": lambda value: value >= 1,
    "rope.dimension_count": lambda value: value >= 0 and value % 2 == 0,
    "attention.key_length": lambda value: value >= 2 and value % 2 == 0,
    "attention.value_length": lambda value: value >= 2 and value % 2 == 0,
    "attention.layer_norm_rms_epsilon": lambda value: 0 <= value < 1,
}
"""Keys, and what they may be: other values fail an assertion there."""


class LlamaFamily:
    """The family; see `emo_export.runtimes.families.LightFamily`."""

    extra = "llama"
    memory_factor = 1.9  # of the released shape with 32 experts: all mapped, and what it repacks
    packs_weights = False
    reserves_cache = True
    kv_caches = (CACHE_F16, CACHE_F32, CACHE_Q8_0)

    def is_at(self, path: Path) -> bool:
        """A file."""
        return path.is_file()

    def entry_of(self, path: Path) -> TargetEntry:
        """Its type, by the header; no recipe, since types of tensors are in the file."""
        keys = read_gguf(path).keys
        if keys.get("general.type") == "imatrix":
            raise EmoExportError(f"{path}: is an importance matrix, not a model")
        if keys.get("general.architecture") not in ARCHITECTURES:
            raise EmoExportError(
                f"{path}: architecture {keys.get('general.architecture')!r}; export writes "
                f"{' or '.join(ARCHITECTURES)}"
            )
        kind = keys.get("general.file_type")
        for name, number in FILE_TYPES.items():
            if number == kind:
                return TargetEntry(Spec(GGUF, name), path.name)
        raise EmoExportError(f"{path}: file type {kind!r} is not one that export writes")

    def files(self, path: Path) -> list[Path]:
        """The file, or all parts; of one that can't be read, which opening it tells, itself."""
        try:
            return part_paths(path, read_gguf(path))
        except EmoExportError:
            return [path]

    def need(self, path: Path, context: int | None = None, kv_cache: str | None = None) -> Need:
        """Weights, which stay mapped, and a KV cache."""
        return gguf_need(path, context, _checked(path, kv_cache))

    def per_token(self, path: Path, kv_cache: str | None = None) -> PerToken:
        """Bytes of a decode step."""
        return gguf_per_token(path, read_model(path), _checked(path, kv_cache))

    def other_sizes(self, path: Path, spec: Spec) -> dict[Spec, int]:
        """Of every type."""
        return gguf_sizes(path)

    def running(self, path: Path, need: Need, config: EmoConfig) -> Running:
        """Of llama.cpp, by the keys of the file."""
        return gguf_running(path, need)

    def weighs(self, spec: Spec) -> bool:
        """Types below 8 bits."""
        return spec.type not in UNWEIGHED

    def need_engine(self) -> None:
        """Raise MissingDependencyError where llama.cpp is not installed."""
        if own_library() is None:
            need(["xllamacpp"], self.extra, "llama.cpp")

    def open(
        self,
        path: Path,
        threads: int | None,
        *,
        parity: bool,
        context: int | None,
        prepacked: Path | None,
        spin: bool,
        kv_cache: str | None,
    ) -> Rewinding:
        """Open a file; `prepacked` and `spin` have no meaning for llama.cpp."""
        from emo_export.runtimes.llama.model import LlamaCpp

        _checked(path, kv_cache)
        check_file(path)
        return LlamaCpp(path, threads=threads, context=context, parity=parity, kv_cache=kv_cache)

    def tokenizer(self, path: Path, runtime: Runtime) -> Tokenizer:
        """The one in the file."""
        from emo_export.runtimes.llama.model import LlamaCpp

        if not isinstance(runtime, LlamaCpp):
            raise TypeError(f"{path}: is open in {type(runtime).__name__}")
        return runtime.tokenizer()

    def kernels(self) -> Mapping[str, str]:
        """None: every CPU computes the same."""
        return {}


def check_file(path: Path) -> None:
    """Refuse a crafted header, which hangs or kills other readers, with EmoExportError."""
    _check_keys(path, read_model(path))


def _check_keys(path: Path, file: GgufFile) -> None:
    """Refuse values at which llama.cpp ends the process instead of answering."""
    arch = str(file.keys.get("general.architecture"))
    for key, fits in _FATAL.items():
        value = file.keys.get(f"{arch}.{key}")
        if value is not None and not (isinstance(value, int | float) and fits(value)):
            raise EmoExportError(
                f"{path}: {arch}.{key} is {value!r:.60}, which llama.cpp can't open; convert the "
                "checkpoint again"
            )
    count, used = (file.keys.get(f"{arch}.{key}") for key in ("expert_count", "expert_used_count"))
    if isinstance(count, int) and count > 0 and not (isinstance(used, int) and 0 < used <= count):
        raise EmoExportError(
            f"{path}: {arch}.expert_used_count is {used!r} of {count} experts, which llama.cpp "
            "can't open; convert the checkpoint again"
        )


def _checked(path: Path, kv_cache: str | None) -> str:
    if kv_cache not in (None, CACHE_F16, CACHE_F32, CACHE_Q8_0):
        raise EmoExportError(
            f"{path}: --kv-cache {kv_cache} is for ONNX targets; a GGUF one has {CACHE_F16}, "
            f"{CACHE_F32} or {CACHE_Q8_0}: choose one with --target"
        )
    return kv_cache or CACHE_F16
