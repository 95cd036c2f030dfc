"""What a .gguf file or an exported ONNX folder says of itself, and what is wrong in it.

Headers and JSON only. Both functions return facts that can go into JSON; warnings go into a list.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.gguf_header import GgufArray, GgufFile, read_gguf
from emo_export.json_file import read_json
from emo_export.onnx_header import OnnxFile, OnnxTensor, read_onnx
from emo_export.scheme import Part

MODEL = "model.onnx"
REQUIREMENTS = "emo_export.json"
ARCHITECTURE = "deepseek"
FLOATS = ("F32", "F16", "BF16")
SLACK = 4096  # bytes behind the last tensor that may be padding
GGUF_SHAPE = (
    "block_count context_length embedding_length attention.head_count attention.head_count_kv "
    "attention.key_length attention.value_length feed_forward_length expert_count "
    "expert_used_count expert_shared_count expert_feed_forward_length leading_dense_block_count "
    "vocab_size"
).split()
TOKENIZER = ("model", "pre", "bos_token_id", "eos_token_id", "padding_token_id", "add_bos_token")
ONNX_SHAPE = (
    "num_hidden_layers hidden_size intermediate_size num_attention_heads num_key_value_heads "
    "head_dim num_experts num_experts_per_tok num_shared_experts vocab_size"
).split()

Parts = Sequence[tuple[str, str]]
# Which part of the model a tensor is, by its name in files of ours: the first pattern that fits.
GGUF_PARTS: Parts = (
    (r"_norm\.weight$", Part.VECTOR),
    (r"^token_embd\.", Part.EMBED),
    (r"^output\.", Part.HEAD),
    (r"\.attn_", Part.ATTENTION),
    (r"\.ffn_gate_inp\.", Part.ROUTER),
    (r"_exps\.", Part.EXPERT),
    (r"_shexp\.", Part.SHARED_EXPERT),
    (r"\.ffn_(gate|up|down)\.", Part.DENSE),
)
ONNX_PARTS: Parts = (
    (r"(_norm\.weight|\.bias)$", Part.VECTOR),
    (r"^(cos|sin)$", "rope_tables"),
    (r"^embed\.", Part.EMBED),
    (r"^head\.", Part.HEAD),
    (r"\.(qkv|attn_out)\.", Part.ATTENTION),
    (r"\.router\.", Part.ROUTER),
    (r"\.experts\.", Part.EXPERT),
    (r"\.forced\.", Part.SHARED_EXPERT),
    (r"\.dense\.", Part.DENSE),
)


def gguf_facts(path: Path, warnings: list[str]) -> dict[str, Any]:
    """Facts of a GGUF file. Raises EmoExportError when its header is damaged."""
    file = read_gguf(path)
    keys, arch = file.keys, str(file.keys.get("general.architecture"))
    shape = {
        name: _plain(keys[f"{arch}.{name}"]) for name in GGUF_SHAPE if f"{arch}.{name}" in keys
    }
    tokenizer = {name: _plain(keys.get(f"tokenizer.ggml.{name}")) for name in TOKENIZER}
    tokens = keys.get("tokenizer.ggml.tokens")
    tokenizer["tokens"] = tokens.length if isinstance(tokens, GgufArray) else None
    warnings += _gguf_model_warnings(file, arch)
    warnings += _gguf_tokenizer_warnings(tokenizer, shape.get("vocab_size"))
    return {
        "file": {
            "architecture": arch,
            "name": _plain(keys.get("general.name")),
            "version": file.version,
            "bytes": file.size,
        },
        "shape": shape,
        "tensors_by_type": dict(Counter(tensor.type for tensor in file.tensors)),
        "bytes_by_part": _sums((_part(t.name, GGUF_PARTS), t.nbytes) for t in file.tensors),
        "tokenizer": tokenizer,
        "needs": {
            "engine": "llama.cpp, any that knows these types",
            "install": 'pip install "emo-export[llama]"',
            "weights_bytes": sum(tensor.nbytes for tensor in file.tensors),
            "kv_cache_f16_bytes": _gguf_cache(shape),
        },
    }


def _plain(value: Any) -> Any:
    """A value for JSON: what is neither a number, a text nor a yes or no becomes a text."""
    if value is None or isinstance(value, bool | int | str):
        return value
    return f"array of {value.length} {value.type}" if isinstance(value, GgufArray) else str(value)


def _gguf_cache(shape: Mapping[str, Any]) -> int | None:
    """Bytes of the KV cache at full context, or None when the shape does not say."""
    names = "block_count context_length attention.head_count_kv".split()
    sizes = [shape.get(name) for name in (*names, "attention.key_length", "attention.value_length")]
    if not all(isinstance(size, int) for size in sizes):
        return None
    layers, context, heads, key, value = (int(str(size)) for size in sizes)
    return layers * context * heads * (key + value) * 2


def _gguf_model_warnings(file: GgufFile, arch: str) -> Iterator[str]:
    if arch != ARCHITECTURE:
        yield f"architecture {arch!r}: not made by emo-export, which writes {ARCHITECTURE!r}"
    end = max((t.offset + t.nbytes for t in file.tensors), default=file.data_offset)
    if file.size > end + SLACK:
        yield f"{file.size - end} bytes lie behind the last tensor"
    names = {tensor.name: tensor for tensor in file.tensors}
    for name, tensor in names.items():
        if ".ffn_gate_inp." in name and tensor.type not in FLOATS:
            yield f"router {name} is quantised ({tensor.type}): text may loop, F32 is right"
    blocks = {name.split(".")[1] for name in names if name.startswith("blk.")}
    said = file.keys.get(f"{arch}.block_count")
    if said != len(blocks):
        yield f"block_count is {_plain(said)!r} but there are tensors of {len(blocks)} blocks"
    experts = file.keys.get(f"{arch}.expert_count")
    for name, tensor in names.items():
        if (
            re.search(r"\.ffn_(gate_inp|(gate|up|down)_exps)\.", name)
            and tensor.shape[0] != experts
        ):
            yield f"{name} has {tensor.shape[0]} experts, expert_count is {_plain(experts)!r}"
            break
    for name in ("token_embd.weight", "output_norm.weight"):
        if name not in names:
            yield f"tensor {name} is missing"
    parts = file.keys.get("split.count")
    if isinstance(parts, int) and parts > 1:
        yield f"this is one of {parts} parts (split.count); the others are needed beside it"


def _gguf_tokenizer_warnings(tokenizer: Mapping[str, Any], vocabulary: Any) -> Iterator[str]:
    if tokenizer["model"] in (None, "none"):
        yield "has no tokenizer: it takes token ids, not text"
        return
    if tokenizer["eos_token_id"] is None:
        yield "has no tokenizer.ggml.eos_token_id: llama.cpp takes id 11, and text ends wrongly"
    if tokenizer["add_bos_token"]:
        yield "tokenizer.ggml.add_bos_token is true, but EMO texts have no beginning token"
    if tokenizer["pre"] is None:
        yield "has no tokenizer.ggml.pre: llama.cpp guesses how text is split"
    count = tokenizer["tokens"]
    if count is not None and vocabulary is not None and count != vocabulary:
        yield f"the tokenizer has {count} tokens, vocab_size is {vocabulary}"


def onnx_facts(folder: Path, warnings: list[str]) -> dict[str, Any]:
    """Facts of a folder with model.onnx. Raises EmoExportError when the graph is damaged."""
    file = read_onnx(folder / MODEL)
    config = _object(folder / "config.json", "no runtime can open the folder", warnings)
    needs = _object(folder / REQUIREMENTS, "not made by emo-export", warnings)
    graph = needs.get("graph", file.metadata.get("emo_export.graph"))
    tokenizer = has_tokenizer(folder, warnings)
    return {
        "graph": {
            "kind": _plain(graph or _guess(file)),
            "type": _plain(needs.get("type")),
            "accuracy_level": _plain(needs.get("accuracy_level")),
            "ir_version": file.ir_version,
            "opsets": {domain or "ai.onnx": version for domain, version in file.opsets.items()},
            "producer": file.producer,
            "operators": dict(file.ops.most_common()),
        },
        "shape": {name: _plain(config[name]) for name in ONNX_SHAPE if name in config}
        | {"context": _plain(config.get("max_position_embeddings"))},
        "bytes": {MODEL: file.size} | _external(folder, file.initializers, warnings),
        "bytes_by_part": _sums(_distinct(file.initializers)),
        "tokenizer": {"present": tokenizer},
        "needs": {
            "onnxruntime": _plain(needs.get("onnxruntime_min")),
            "install": 'pip install "emo-export[ort]"',
            "share_kv_buffer": _plain(needs.get("share_kv_buffer")),
        },
    }


def has_tokenizer(folder: Path, warnings: list[str]) -> bool:
    """Whether the folder has a tokenizer.json; warns when not."""
    present = (folder / "tokenizer.json").is_file()
    if not present:
        warnings.append("has no tokenizer.json: it takes token ids, not text")
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
        if PurePosixPath(location).is_absolute() or ".." in PurePosixPath(location).parts:
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
            yield _part(tensor.name, ONNX_PARTS), tensor.nbytes


def _sums(sizes: Iterable[tuple[str, int]]) -> dict[str, int]:
    sums: Counter[str] = Counter()
    for part, nbytes in sizes:
        sums[part] += nbytes
    return dict(sums)


def _part(name: str, patterns: Parts) -> str:
    return next((str(part) for pattern, part in patterns if re.search(pattern, name)), "other")
