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
from typing import TYPE_CHECKING, Any

import click

from emo_export.base.install import install_command
from emo_export.base.llama_library import own_library
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.interfaces import Runtime
from emo_export.model.recipes import DEFAULT_GRAPH, ONNX_RECIPES
from emo_export.runtimes.opening import open_runtime, tokenizer_of

if TYPE_CHECKING:
    from emo_export.parity.golden import Golden
    from emo_export.parity.judge import TargetReport


def need(modules: Sequence[str], extra: str, what: str) -> None:
    """Raise MissingDependencyError unless every module can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{what} needs {', '.join(missing)}; {install_command(extra)}")


def missing_engine(spec: str) -> str:
    """What the engine of a target lacks here, or an empty string."""
    try:
        if spec.startswith("gguf"):
            if own_library() is None:
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


def open_with(path: Path, threads: int | None, settings: OnnxSettings) -> Runtime:
    """The engine for a .gguf file or an ONNX folder, as the options of `run` say."""
    settings.check(path)
    prepacked = None
    if settings.prepacked:
        from emo_export.runtimes.ort.prepacked import default_cache, prepacked_copy

        cache = settings.cache or default_cache()
        prepacked = prepacked_copy(path, cache, lambda text: click.echo(text, err=True))
    return open_runtime(path, threads, prepacked=prepacked, spin=settings.spin is not False)


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
        from emo_export.converters.onnx.exact import SESSION_OPTIONS, exact_graph
        from emo_export.runtimes.ort.model import OnnxModel

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
    from emo_export.converters.gguf.twin import write_float_twin
    from emo_export.files.gguf_header import read_gguf

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
) -> list[TargetReport]:
    """Judge every target of a folder with its engine."""
    from emo_export.parity.judge import EXACT, tolerances, validate_target

    reports = []
    for spec, entry in targets.items():
        path = folder / str(entry["path"])
        on_stage(f"validating {spec}")
        shipped = partial(open_runtime, path, threads, parity=True)
        if EXACT not in tolerances(spec):
            reports.append(validate_target(spec, golden, shipped, partial(tokenizer_of, path)))
            continue
        with exact_opener(path, threads) as (exact, note):
            notes = (note,) if note else ()
            tokenizer = partial(tokenizer_of, path)
            reports.append(validate_target(spec, golden, shipped, tokenizer, exact, notes))
    return reports
