"""What the command line joins: exported files to engines.

Only the command line may know converters and runtimes both; heavy imports stay inside functions.
"""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

import click

from emo_export.artifact import size_of
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.install import install_command
from emo_export.interfaces import Runtime, Tokenizer
from emo_export.recipes import DEFAULT_GRAPH, ONNX_RECIPES

if TYPE_CHECKING:
    from emo_export.gguf_header import GgufFile
    from emo_export.parity import Golden
    from emo_export.validate import TargetReport

SMALL_MODEL = 96 << 20
"""Below this many bytes one thread is as fast as several, and does not suffer when the machine is
busy: llama.cpp's threads wait for each other in a spin after every operator."""


def need(modules: Sequence[str], extra: str, what: str) -> None:
    """Raise MissingDependencyError unless every module can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{what} needs {', '.join(missing)}; {install_command(extra)}")


def missing_engine(spec: str) -> str:
    """What the engine of a target lacks here, or an empty string."""
    try:
        if spec.startswith("gguf"):
            need(["xllamacpp"], "llama", "llama.cpp")
        else:
            need(["onnxruntime", "tokenizers"], "ort", "ONNX Runtime")
    except MissingDependencyError as error:
        return str(error)
    return ""


def parse_spec(spec: str) -> tuple[str, str]:
    """`gguf:q4_0` -> ("gguf", "q4_0"); `onnx:int4@if` -> ("onnx", "int4@if").

    The default graph has no name in a target. Raises EmoExportError for what is not a target.
    """
    if "," in spec:
        raise EmoExportError(f"--to {spec}: one target each; repeat --to for the next")
    kind, _, rest = spec.lower().partition(":")
    type_name, at, graph = rest.partition("@")
    if kind not in ("gguf", "onnx") or not type_name:
        raise EmoExportError(
            f"--to {spec}: expected gguf:TYPE or onnx:TYPE[@GRAPH], as in gguf:q4_0"
        )
    if at and (kind != "onnx" or graph not in ONNX_RECIPES):
        known = ", ".join(f"@{name}" for name in ONNX_RECIPES)
        raise EmoExportError(f"--to {spec}: graph {graph!r} is not known; onnx has {known}")
    return kind, type_name if graph in ("", DEFAULT_GRAPH) else f"{type_name}@{graph}"


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
        if not path.is_dir() and (self.prepacked or self.spin is not None):
            name = "--cache-prepacked" if self.prepacked else "--spin/--no-spin"
            why = " (llama.cpp maps its weights anyway)" if self.prepacked else ""
            raise EmoExportError(
                f"{path}: {name} is for ONNX targets{why}; choose one with --target"
            )


ONNX_DEFAULTS = OnnxSettings()


def open_runtime(
    path: Path,
    threads: int | None,
    *,
    parity: bool = False,
    settings: OnnxSettings = ONNX_DEFAULTS,
) -> Runtime:
    """The engine for a .gguf file or an ONNX folder; a small model gets one thread."""
    settings.check(path)
    if threads is None and size_of(path) < SMALL_MODEL:
        threads = 1
    if path.is_dir():
        from emo_export.runtimes.ort import OnnxModel

        prepacked = _prepacked_copy(path, settings.cache) if settings.prepacked else None
        spin = settings.spin is not False
        return OnnxModel(path, threads=threads, prepacked=prepacked, spin=spin)
    from emo_export.gguf_header import read_gguf
    from emo_export.runtimes.llama_cpp import LlamaCpp

    _check_experts(path, read_gguf(path))  # a crafted header hangs or kills other readers
    return LlamaCpp(path, threads=threads, parity=parity)


def _prepacked_copy(path: Path, cache: Path | None) -> Path:
    from emo_export.runtimes.prepacked import default_cache, prepacked_copy

    return prepacked_copy(path, cache or default_cache(), lambda text: click.echo(text, err=True))


def _check_experts(path: Path, file: GgufFile) -> None:
    """Refuse counts of experts at which llama.cpp ends the process instead of answering."""
    arch = str(file.keys.get("general.architecture"))
    count, used = (file.keys.get(f"{arch}.{key}") for key in ("expert_count", "expert_used_count"))
    if isinstance(count, int) and count > 0 and not (isinstance(used, int) and 0 < used <= count):
        raise EmoExportError(
            f"{path}: {arch}.expert_used_count is {used!r} of {count} experts, which llama.cpp "
            "can't open; convert the checkpoint again"
        )


def tokenizer_of(path: Path, runtime: Runtime) -> Tokenizer:
    """The tokenizer that belongs to an opened model."""
    from emo_export.runtimes.llama_cpp import LlamaCpp

    if isinstance(runtime, LlamaCpp):
        return runtime.tokenizer()
    from emo_export.runtimes.hf_tokenizer import HfTokenizer

    return HfTokenizer(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What onnx raises for a damaged file, as one sentence."""
    try:
        yield
    except Exception as error:  # protobuf's DecodeError shares no base class but Exception
        raise EmoExportError(f"{path}: cannot be read as an ONNX model ({error})") from error


@contextmanager
def exact_opener(
    path: Path, threads: int | None
) -> Iterator[tuple[Callable[[], Runtime] | None, str]]:
    """How to run a target with float activations, or None and why not."""
    if path.is_dir():
        if importlib.util.find_spec("onnx") is None:
            yield None, f"float activations not compared: {install_command('convert')}"
            return
        from emo_export.converters.onnx_exact import SESSION_OPTIONS, exact_graph
        from emo_export.runtimes.ort import OnnxModel

        with _readable(path / "model.onnx"):
            graph = exact_graph(path / "model.onnx")
        yield (
            (
                lambda: OnnxModel(
                    path, threads=threads, session_options=SESSION_OPTIONS, graph=graph
                )
            ),
            "",
        )
        return
    if importlib.util.find_spec("gguf") is None:
        yield None, f"float activations not compared: {install_command('convert')}"
        return
    from emo_export.converters.gguf_twin import write_float_twin
    from emo_export.gguf_header import read_gguf

    twin_bytes = 4 * sum(math.prod(tensor.shape) for tensor in read_gguf(path).tensors)
    if twin_bytes * 1.05 > shutil.disk_usage(tempfile.gettempdir()).free:
        yield (
            None,
            (
                "float activations NOT COMPARED: the float32 twin needs "
                f"{twin_bytes / 1e9:.1f} GB in {tempfile.gettempdir()}; set TMPDIR to a larger disk"
            ),
        )
        return
    with tempfile.TemporaryDirectory(prefix="emo-export-twin-") as folder:
        twin = Path(folder) / "twin.gguf"
        write_float_twin(path, twin)
        yield (lambda: open_runtime(twin, threads, parity=True)), ""


def validate_all(
    folder: Path,
    targets: Mapping[str, Mapping[str, Any]],
    golden: Golden,
    on_stage: Callable[[str], None],
    threads: int | None = None,
    unrepeatable: Mapping[str, str] = MappingProxyType({}),
) -> list[TargetReport]:
    """Judge every target of a folder with its engine.

    `unrepeatable` (target -> why) are compared with the float original alone.
    """
    from emo_export.validate import EXACT, tolerances, validate_target

    reports = []
    for spec, entry in targets.items():
        path = folder / str(entry["path"])
        on_stage(f"validating {spec}")
        shipped = partial(open_runtime, path, threads, parity=True)
        if spec in unrepeatable:
            tokenizer, why = partial(tokenizer_of, path), unrepeatable[spec]
            report = validate_target(
                spec, golden, shipped, tokenizer, notes=(why,), dequantised=False
            )
            reports.append(report)
            continue
        if EXACT not in tolerances(spec):
            reports.append(validate_target(spec, golden, shipped, partial(tokenizer_of, path)))
            continue
        with exact_opener(path, threads) as (exact, note):
            notes = (note,) if note else ()
            tokenizer = partial(tokenizer_of, path)
            reports.append(validate_target(spec, golden, shipped, tokenizer, exact, notes))
    return reports
