"""What an exported ONNX folder says of itself, and what is wrong in it.

Headers and JSON only. Facts can go into JSON; warnings go into a list.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from emo_export.base.install import install_command
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufArray
from emo_export.files.onnx_data import leads_out
from emo_export.files.onnx_header import OnnxFile, OnnxTensor, read_onnx
from emo_export.files.onnx_names import ANGLES, part_of
from emo_export.files.onnx_needs import REQUIREMENTS, read_requirements
from emo_export.model.recipes import Part
from emo_export.text.tokenizer import why_no_tokenizer

MODEL = "model.onnx"
ONNX_SHAPE = (
    "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads "
    "head_dim num_experts num_experts_per_tok num_shared_experts vocab_size"
).split()

ROPE_TABLES, OTHER = "rope_tables", "other"
"""What is in no part of a recipe."""


def plain(value: Any) -> Any:
    """A value for JSON: what is neither a number, a text nor a yes or no becomes a text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return f"array of {value.length} {value.type}" if isinstance(value, GgufArray) else str(value)


def onnx_facts(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """Facts of a folder with model.onnx. Raises EmoExportError when the graph is damaged."""
    file = read_onnx(folder / MODEL)
    config = _object(folder / "config.json", "no runtime can open the folder", warnings)
    needs = _object(folder / REQUIREMENTS, "not made by emo-export", warnings)
    graph = needs.get("graph", file.metadata.get("emo_export.graph"))
    tokenizer = has_tokenizer(folder, warnings)
    if needs:
        _check_engine(folder, warnings)
    return {
        "graph": {
            "kind": plain(graph or _guess(file)),
            "type": plain(needs.get("type")),
            "accuracy_level": plain(needs.get("accuracy_level")),
            "logits_to_keep": plain(needs.get("logits_to_keep")),
            "ir_version": file.ir_version,
            "opsets": {domain or "ai.onnx": version for domain, version in file.opsets.items()},
            "producer": file.producer,
            "operators": dict(file.ops.most_common()),
        },
        "types": recipe if isinstance(recipe := needs.get("recipe"), dict) else {},
        "shape": {name: plain(config[name]) for name in ONNX_SHAPE if name in config}
        | {"context": plain(config.get("max_position_embeddings"))},
        "bytes": {MODEL: file.size} | _external(folder, file.initializers, warnings),
        "bytes_by_part": sums(_distinct(file.initializers)),
        "tokenizer": {"present": tokenizer},
        "needs": {
            "onnxruntime": plain(needs.get("onnxruntime_min")),
            "install": install_command("ort"),
            "share_kv_buffer": plain(needs.get("share_kv_buffer")),
        },
    }


def _check_engine(folder: Path, warnings: list[str]) -> None:
    """Warn where the ONNX Runtime that is installed here, if one is, would refuse the folder."""
    try:
        read_requirements(folder).check(folder, metadata.version("onnxruntime"))
    except metadata.PackageNotFoundError:
        return
    except EmoExportError as error:
        warnings.append(str(error))


def has_tokenizer(folder: Path, warnings: list[str]) -> bool:
    """Whether the folder has a tokenizer.json; warns when not."""
    present = (folder / "tokenizer.json").is_file()
    if not present:
        warnings.append(f"takes token ids, not text: {why_no_tokenizer(folder)}")
    return present


def _object(path: Path, without: str, warnings: list[str]) -> dict[str, Any]:
    """A JSON object; an empty one, and a warning, when the file is missing or damaged."""
    if not path.is_file():
        warnings.append(f"has no {path.name}: {without}")
        return {}
    try:
        return read_json(path)
    except EmoExportError as error:
        warnings.append(str(error))
        return {}


def _guess(file: OnnxFile) -> str:
    """The kind of graph, from its operators."""
    return "qmoe" if "com.microsoft.QMoE" in file.ops else "if" if "If" in file.ops else "standard"


def _external(
    folder: Path, tensors: Sequence[OnnxTensor], warnings: list[str]
) -> dict[str, int | None]:
    """The external data files -> bytes on disk (None: missing), each held against the graph."""
    ends: dict[str, int] = {}
    for tensor in tensors:
        if tensor.location:
            end = tensor.offset + tensor.length
            ends[tensor.location] = max(ends.get(tensor.location, 0), end)
        if tensor.length != tensor.nbytes:
            warnings.append(
                f"initializer {tensor.name!r} of shape {list(tensor.shape)} and {tensor.type} "
                f"needs {tensor.nbytes} bytes, its entry says {tensor.length}"
            )
    sizes: dict[str, int | None] = {}
    for location, end in ends.items():
        path = folder / location
        if leads_out(location):
            warnings.append(f"external data {location!r} lies outside: ONNX Runtime refuses it")
            continue
        if path.is_symlink():
            warnings.append(f"external data {location!r} is a link: ONNX Runtime refuses it")
        size = path.stat().st_size if path.is_file() else None
        sizes[location] = size
        if size is None:
            warnings.append(f"external data {location!r} is missing")
        elif size < end:
            warnings.append(f"{location} is truncated: {size} bytes, the graph refers to {end}")
        elif size > end:
            warnings.append(f"{location} has {size - end} bytes more than the graph refers to")
    return sizes


def _distinct(tensors: Iterable[OnnxTensor]) -> Iterator[tuple[str, int]]:
    """Part and bytes of each initializer; bytes with two names (tied embeddings) count once."""
    seen: set[tuple[str, int]] = set()
    for tensor in tensors:
        place = (tensor.location, tensor.offset)
        if not tensor.location or place not in seen:
            seen.add(place)
            yield _part(tensor.name), tensor.nbytes


def _part(name: str) -> str:
    if name in ANGLES:
        return ROPE_TABLES
    part = part_of(name)
    return OTHER if part is None else shown(part)


def shown(part: Part) -> str:
    """The name of a part, all of an expert's matrices being one."""
    return str(Part.EXPERT if part == Part.EXPERT_DOWN else part)


def sums(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    """Bytes of each part, in order of appearance."""
    total: Counter[str] = Counter()
    for part, nbytes in sizes:
        total[part] += nbytes
    return dict(total)
