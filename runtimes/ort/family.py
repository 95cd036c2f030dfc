"""ONNX folders and ONNX Runtime, as a family. Light: what a device uses."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path

from emo_export.base.install import need
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.kv_cache import CACHE_F32, CACHE_INT8
from emo_export.files.memory_need import Need, onnx_need
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_needs import REQUIREMENTS
from emo_export.files.read_per_token import PerToken, onnx_per_token
from emo_export.files.run_memory import Running, onnx_running
from emo_export.files.sizes import onnx_sizes
from emo_export.files.target_entry import TargetEntry, recipe_from
from emo_export.interfaces import Rewinding, Runtime, Tokenizer
from emo_export.model.config import EmoConfig
from emo_export.spec import ONNX, Spec

MODEL = "model.onnx"


class OrtFamily:
    """The family; see `emo_export.runtimes.families.LightFamily`."""

    extra = "ort"
    memory_factor = 1.35  # of the released shape with 32 experts: a packed copy, a little mapped
    packs_weights = True
    reserves_cache = False
    kv_caches = (CACHE_F32, CACHE_INT8)

    def is_at(self, path: Path) -> bool:
        """A folder with a graph."""
        return (path / MODEL).is_file()

    def entry_of(self, path: Path) -> TargetEntry:
        """Its type, its graph and the types of its parts."""
        needs = path / REQUIREMENTS
        if not needs.is_file():
            raise EmoExportError(f"{path}: has no {REQUIREMENTS}; was it made by export?")
        data = read_json(needs)
        recipe = data.get("recipe")  # one of an early export has none
        try:
            recipe = None if recipe is None else recipe_from(recipe)
        except ValueError as error:
            raise EmoExportError(
                f"{needs}: {error}, expected a type for each part; was it changed? "
                "export the folder again"
            ) from error
        spec = Spec(ONNX, str(data.get("type")), str(data.get("graph", "")))
        return TargetEntry(spec, path.name, recipe)

    def files(self, path: Path) -> list[Path]:
        """The graph and its weights."""
        return sorted(file for file in path.glob(f"{MODEL}*") if file.is_file())

    def need(self, path: Path, context: int | None = None, kv_cache: str | None = None) -> Need:
        """Weights and a KV cache, or two."""
        return onnx_need(path, context, _checked(path, kv_cache))

    def per_token(self, path: Path, kv_cache: str | None = None) -> PerToken:
        """Bytes of a decode step."""
        model, cache = path / MODEL, _checked(path, kv_cache)
        return onnx_per_token(model, read_onnx(model), read_json(path / "config.json"), cache)

    def other_sizes(self, path: Path, spec: Spec) -> dict[Spec, int]:
        """Of every type of the graph; none for a folder without its recipe."""
        return onnx_sizes(path, spec)

    def running(self, path: Path, need: Need, config: EmoConfig) -> Running:
        """Of ONNX Runtime."""
        return onnx_running(path, need, config)

    def weighs(self, spec: Spec) -> bool:
        """No type: importance is for GGUF."""
        return False

    def need_engine(self) -> None:
        """Raise MissingDependencyError where ONNX Runtime is not installed."""
        need(["onnxruntime"], self.extra, "ONNX Runtime")

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
        """Open a folder; `parity` has no meaning for ONNX Runtime, which computes the same."""
        from emo_export.runtimes.ort.model import OnnxModel

        opening = partial(
            OnnxModel, path, threads=threads, context=context, prepacked=prepacked, spin=spin
        )
        if _checked(path, kv_cache) == CACHE_F32:
            return opening()
        from emo_export.runtimes.ort.int8_cache import scales_of

        return opening(kv_scales=scales_of(path, opening))

    def tokenizer(self, path: Path, runtime: Runtime) -> Tokenizer:
        """The tokenizer.json of the folder."""
        from emo_export.runtimes.ort.tokenizer import HfTokenizer

        return HfTokenizer(path)

    def kernels(self) -> Mapping[str, str]:
        """Those of MatMulNBits and QMoE, which differ from CPU to CPU."""
        from emo_export.runtimes.ort.path import nbits_paths

        return nbits_paths()


def _checked(path: Path, kv_cache: str | None) -> str:
    if kv_cache not in (None, CACHE_F32, CACHE_INT8):
        raise EmoExportError(
            f"{path}: --kv-cache {kv_cache} is for GGUF targets; an ONNX one has {CACHE_F32} or "
            f"{CACHE_INT8}: choose one with --target"
        )
    return kv_cache or CACHE_F32
