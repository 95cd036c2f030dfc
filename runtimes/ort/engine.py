"""ONNX Runtime as installed: whether it can open a folder, told before anything large is read."""

from __future__ import annotations

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from emo_export.base.install import install_command
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.onnx_data import check_data
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_needs import Requirements, export_again, read_requirements

MODEL = "model.onnx"
CPU = "CPUExecutionProvider"
OPEN_END = 2**31 - 1  # the upper version of a kernel that the next version of its operator may end


TELEMETRY = "ORT_DISABLE_TELEMETRY"
"""Without it the wheels of 1.31 send events to Microsoft, and leave files in TMPDIR and ~/.cache.

Source: microsoft/onnxruntime pull request 27379."""


def import_onnxruntime() -> Any:
    """The module; raises MissingDependencyError, with the remedy, when it cannot be loaded.

    It tells nobody what is run, unless the user has set TELEMETRY otherwise.
    """
    os.environ.setdefault(TELEMETRY, "1")  # read once, when it is loaded
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise MissingDependencyError(
            f"running an ONNX model needs the package onnxruntime: {install_command('ort')}"
        ) from error
    except ImportError as error:
        raise MissingDependencyError(
            f"the installed onnxruntime cannot be loaded ({error}): {install_command('ort')}"
        ) from error
    return onnxruntime


def utf8_path(path: Path) -> str:
    """A path as ONNX Runtime takes it; EmoExportError for one that is not UTF-8."""
    text = str(path)
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise EmoExportError(
            f"{path}: ONNX Runtime takes no path that is not UTF-8; rename the folder"
        ) from error
    return text


def check_engine(folder: Path) -> Requirements:
    """What the graph needs, once the installed ONNX Runtime is known to have it.

    Raises EmoExportError for a version that is too old, a graph that this emo-export does not know,
    operators without a CPU kernel here, and a graph that is damaged or whose weights are; each says
    what to do.
    """
    ort = import_onnxruntime()
    needs = read_requirements(folder)
    needs.check(folder, ort.__version__)
    if not (folder / MODEL).is_file():  # it may be given as bytes
        return needs
    file = read_onnx(folder / MODEL)
    check_data(folder / MODEL, file)
    # Other tools' graphs may use operators that ONNX Runtime replaces by functions.
    if needs.graph:
        missing = missing_kernels(file.ops, file.opsets)
        if missing:
            raise EmoExportError(
                f"{folder}: onnxruntime {ort.__version__} as installed here has no CPU kernel for "
                f"{', '.join(missing[:4])}: install the full build, "
                f'pip install "onnxruntime>={needs.onnxruntime_min}"'
                f"{export_again(needs, _simpler_graph(missing))}"
            )
    return needs


def missing_kernels(ops: Mapping[str, int], opsets: Mapping[str, int]) -> list[str]:
    """The operators (`domain.OpType`) of a graph for which no CPU kernel is registered.

    Only some builds tell (those of PyPI do): for the others nothing is missing, and opening the
    model names the first that is.
    """
    ready = _with_kernels(frozenset(opsets.items()))
    return [] if ready is None else sorted(set(ops) - ready)


@functools.cache
def _with_kernels(opsets: frozenset[tuple[str, int]]) -> frozenset[str] | None:
    """The operators that have a CPU kernel at these versions of their domains; None if untold.

    A kernel serves an operator's version when it begins there, or spans it and has an end
    (onnxruntime `KernelRegistry::VerifyKernelDef`). The lists are of thousands, so they are read
    once.
    """
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    if not hasattr(state, "get_all_opkernel_def") or not hasattr(state, "get_all_operator_schema"):
        return None
    versions = dict(opsets)
    since: dict[str, int] = {}
    for schema in state.get_all_operator_schema():
        name = _qualified(schema.domain, schema.name)
        if schema.since_version <= versions.get(schema.domain, 0):
            since[name] = max(since.get(name, 0), schema.since_version)
    ready = set()
    for kernel in state.get_all_opkernel_def():
        name = _qualified(kernel.domain, kernel.op_name)
        version, (first, last) = since.get(name, 0), kernel.version_range
        if kernel.provider == CPU and (first == version or first < version <= last < OPEN_END):
            ready.add(name)
    return frozenset(ready)


def _simpler_graph(missing: Sequence[str]) -> str:
    """The graph that does without these (builds for phones often have no contrib operators)."""
    contrib = {name for name in missing if name.startswith("com.microsoft.")}
    return "standard" if contrib - {"com.microsoft.QMoE", "com.microsoft.MoE"} else "if"


def _qualified(domain: str, name: str) -> str:
    return f"{domain}.{name}" if domain else name
