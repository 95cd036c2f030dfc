"""Writing a copy of an ONNX folder's graph and weights with the weights packed beside them.

ONNX Runtime can save what its kernels make of the weights and map it at the next start, but it
packs all of a model before it saves any, and lays small blocks where they fall: kernels that load
aligned vectors then crash (1.31.1; MatMulNBits with two tokens). So each group of weights is packed
and saved by a session of its own, to which the other weights are inputs; their blocks then go to
page boundaries of one file. A kernel uses a saved block only when it would pack the same bytes
itself, so a copy for another CPU costs memory, never correctness.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

from emo_export.base.disk import flush_all, writing
from emo_export.errors import EmoExportError
from emo_export.files.onnx_header import read_onnx
from emo_export.runtimes.ort.engine import CPU, MODEL, import_onnxruntime, utf8_path
from emo_export.runtimes.ort.heap import return_large_blocks
from emo_export.runtimes.ort.split import SplitModel, split_model, with_moved_data

GROUP_BYTES = 128 << 20
"""Weights packed at once, or one node's where that is more: bounds the memory of building."""

DATA = "model.onnx.data"
SAVED_DATA = "saved.data"
PAGE = 4096
COPY_BYTES = 4 << 20
LOG_FATAL = 4
SAVING = {  # onnxruntime_session_options_config_keys.h
    "session.save_external_prepacked_constant_initializers": "1",
    "session.optimized_model_external_initializers_min_size_in_bytes": "0",
}
DATA_NAME_KEY = "session.optimized_model_external_initializers_file_name"
DATA_FOLDER_KEY = "session.model_external_initializers_file_folder_path"


def write_prepacked(folder: Path, into: Path, group_bytes: int = GROUP_BYTES) -> None:
    """Write the packed copy of `folder`'s model.onnx into the empty folder `into`, and flush it.

    Raises EmoExportError when ONNX Runtime cannot do it or the disk is full.
    """
    return_large_blocks()
    model = split_model((folder / MODEL).read_bytes())
    external = [tensor for tensor in read_onnx(folder / MODEL).initializers if tensor.location]
    if len(external) != len(model.weights):
        # In a copy these would point into other bytes.
        raise EmoExportError(
            f"{folder}: {len(external) - len(model.weights)} external weights of the graph lie in "
            "graphs within it or have the name of another; run without --cache-prepacked"
        )
    packed = []
    with writing(into / DATA), (into / DATA).open("wb") as data:
        for names in model.groups(group_bytes):
            saved = _saved_by_session(folder, into, model, names)
            lost = [name for name in names if name not in saved.weights]
            if lost:
                raise EmoExportError(
                    f"{folder}: ONNX Runtime saved its packed weights without "
                    f"{', '.join(lost[:4])}; run without --cache-prepacked"
                )
            with (into / SAVED_DATA).open("rb") as blocks:
                moved = partial(_append, blocks, data)
                constants = (saved.weights[name].constant for name in names)
                packed += [with_moved_data(constant, DATA, moved) for constant in constants]
            (into / SAVED_DATA).unlink()
    with writing(into / MODEL):
        (into / MODEL).write_bytes(model.with_constants(packed))
    with writing(into):
        flush_all(into)


def _append(blocks: BinaryIO, data: BinaryIO, offset: int, nbytes: int) -> int:
    """Copy a block to the next page boundary of `data`; answers where that is."""
    place = -(-data.tell() // PAGE) * PAGE
    data.seek(place)
    blocks.seek(offset)
    while nbytes:
        piece = blocks.read(min(nbytes, COPY_BYTES))
        if not piece:
            raise EmoExportError(f"{blocks.name}: ends {nbytes} bytes before one of its weights")
        data.write(piece)
        nbytes -= len(piece)
    return place


def _saved_by_session(
    folder: Path, into: Path, model: SplitModel, names: Sequence[str]
) -> SplitModel:
    """What ONNX Runtime saves when only these weights are constant; the data are SAVED_DATA."""
    ort = import_onnxruntime()
    saved = into / "saved.onnx"
    options = ort.SessionOptions()
    options.log_severity_level = LOG_FATAL
    # The copy holds the graph as it was exported: it is optimised when it is opened, once.
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.optimized_model_filepath = utf8_path(saved)
    entries = {**SAVING, DATA_NAME_KEY: SAVED_DATA, DATA_FOLDER_KEY: utf8_path(folder.resolve())}
    for key, value in entries.items():
        options.add_session_config_entry(key, value)
    _open(ort, model.packing_only(names), options, folder)
    with writing(saved):
        result = split_model(saved.read_bytes())
        saved.unlink()
    return result


def _open(ort: Any, graph: bytes, options: Any, folder: Path) -> None:
    try:
        ort.InferenceSession(graph, options, providers=[CPU])
    # Its exceptions share no base class but Exception.
    except Exception as error:
        raise EmoExportError(
            f"ONNX Runtime {ort.__version__} cannot prepack {folder / MODEL}: "
            f"{' '.join(str(error).split())}"
        ) from error
