"""A Hugging Face checkpoint as a mapping of lazy tensors: headers are checked, no data is read.

The safetensors layout (8-byte little-endian header length, JSON header, data) is read with plain
file reads instead of a memory map: a 54 GB checkpoint never counts as memory of the process.
Source: https://github.com/huggingface/safetensors#format
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from emo_export.config import EmoConfig
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.interfaces import F32
from emo_export.names import Slot, shape_of, slots

INDEX = "model.safetensors.index.json"
SINGLE = "model.safetensors"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
MAX_HEADER = 100_000_000  # the limit of the safetensors library

HUB_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "pruning_metadata.json",
    "*.safetensors",
    INDEX,
]


@dataclass(frozen=True)
class LazyTensor:
    """A shape, an element type and a place in a file; nothing is read until asked."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    file: Path
    offset: int

    @property
    def nbytes(self) -> int:
        """Bytes on disk."""
        return math.prod(self.shape) * ITEM_BYTES[self.dtype]

    @property
    def row_bytes(self) -> int:
        """Bytes on disk of one row."""
        return self.shape[-1] * ITEM_BYTES[self.dtype]

    def rows(self, start: int, stop: int) -> F32:
        """Rows start..stop as float32, (stop - start, C); a vector counts as one row.

        Raises EmoExportError when the file ends early or a value is NaN or infinite.
        """
        cols = self.shape[-1]
        item = ITEM_BYTES[self.dtype]
        count = (stop - start) * cols
        kind: dict[str, Any] = {"F32": "<f4", "F16": "<f2", "BF16": "<u2"}
        with self.file.open("rb") as handle:
            handle.seek(self.offset + start * cols * item)
            raw = np.fromfile(handle, dtype=kind[self.dtype], count=count)
        if raw.size != count:
            raise EmoExportError(f"{self.file}: ends inside tensor {self.name}; fetch it again")
        values = _to_float32(raw, self.dtype).reshape(stop - start, cols)
        # A sum is finite only if every value is; it costs no temporary array of the matrix's size.
        with np.errstate(over="ignore", invalid="ignore"):
            finite = bool(np.isfinite(values.sum(dtype=np.float64)))
        if not finite:
            raise EmoExportError(
                f"{self.file}: tensor {self.name} holds a NaN or infinite value; "
                "the checkpoint is damaged or its training diverged"
            )
        return values


def _to_float32(raw: Any, dtype: str) -> F32:
    if dtype == "BF16":
        wide = raw.astype(np.uint32)
        wide <<= 16
        return wide.view(np.float32)  # type: ignore[no-any-return]
    return raw.astype(np.float32, copy=False)  # type: ignore[no-any-return]


class Checkpoint(Mapping[str, LazyTensor]):
    """An EMO checkpoint: its config and every tensor that the config calls for, and no other."""

    def __init__(self, path: Path, config: EmoConfig, tensors: Mapping[str, LazyTensor]) -> None:
        self.path = path
        self.config = config
        self._tensors = tensors

    def __getitem__(self, name: str) -> LazyTensor:
        return self._tensors[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._tensors)

    def __len__(self) -> int:
        return len(self._tensors)

    def at(self, slot: Slot) -> LazyTensor:
        """The tensor of a slot."""
        return self._tensors[slot.name]

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors on disk."""
        return sum(tensor.nbytes for tensor in self._tensors.values())

    @property
    def files(self) -> list[Path]:
        """The safetensors files, in order of name."""
        return sorted({tensor.file for tensor in self._tensors.values()})

    @property
    def pruning(self) -> Mapping[str, Any] | None:
        """`pruning_metadata.json` of a pruned checkpoint, if it has one."""
        path = self.path / "pruning_metadata.json"
        return read_json(path) if path.is_file() else None

    @classmethod
    def open(cls, path: Path) -> Checkpoint:
        """Open a local folder and account for every tensor.

        Raises EmoExportError naming the file and the tensor for anything missing, extra, truncated
        or of the wrong shape or type.
        """
        if not path.is_dir():
            raise EmoExportError(f"{path}: is not a folder with a checkpoint")
        config_path = path / "config.json"
        if not config_path.is_file():
            raise EmoExportError(f"{path}: has no config.json; is it a Hugging Face checkpoint?")
        config = EmoConfig.from_json(config_path)
        tensors = _open_tensors(path)
        _account(config, tensors, path)
        return cls(path, config, tensors)


def locate(source: str, progress: bool = False) -> Path:
    """A local folder as it is, or a Hugging Face id fetched into the hub's cache (resumable).

    Only the files of HUB_FILES are fetched; remote code never is. Raises EmoExportError when the
    source is neither, MissingDependencyError without huggingface_hub.
    """
    path = Path(source).expanduser()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        return path
    try:
        import huggingface_hub
        from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise MissingDependencyError(
            f"{source}: fetching from the hub needs huggingface_hub; "
            'pip install "emo-export[convert]"'
        ) from error
    if not progress:
        disable_progress_bars()
    repo, _, revision = source.partition("@")
    try:
        found = huggingface_hub.snapshot_download(
            repo, revision=revision or None, allow_patterns=HUB_FILES
        )
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise EmoExportError(
            f"{source}: is no local folder and could not be fetched from the hub ({reason}); "
            "run the command again to resume"
        ) from error
    return Path(found)


def read_json(path: Path) -> Any:
    """Parse a JSON file. Raises EmoExportError naming it when it can't be read."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EmoExportError(f"{path}: cannot be read as JSON ({error})") from error


def _open_tensors(path: Path) -> dict[str, LazyTensor]:
    index = path / INDEX
    if not index.is_file():
        if not (path / SINGLE).is_file():
            raise EmoExportError(
                f"{path}: has neither {SINGLE} nor {INDEX}; only safetensors checkpoints are read"
            )
        return read_header(path / SINGLE)
    content = read_json(index)
    weight_map = content.get("weight_map") if isinstance(content, dict) else None
    if not isinstance(weight_map, dict):
        raise EmoExportError(f"{index}: has no weight_map")
    tensors: dict[str, LazyTensor] = {}
    for shard in sorted(set(weight_map.values())):
        tensors |= _open_shard(index, str(shard), weight_map)
    for name, shard in weight_map.items():
        if name not in tensors:
            raise EmoExportError(f"{path / shard}: does not hold tensor {name} as {INDEX} says")
    return tensors


def _open_shard(index: Path, shard: str, weight_map: Mapping[str, str]) -> dict[str, LazyTensor]:
    file = index.parent / shard
    if Path(shard).name != shard:
        raise EmoExportError(f"{index}: names shard {shard!r}, which is not a plain file name")
    if not file.is_file():
        first = next(name for name, value in weight_map.items() if value == shard)
        raise EmoExportError(
            f"{index}: names shard {shard}, which isn't there (needed for {first}); fetch it"
        )
    held = read_header(file)
    for name in held:
        if weight_map.get(name) != shard:
            raise EmoExportError(f"{file}: holds tensor {name}, which {INDEX} does not place there")
    return held


def read_header(file: Path) -> dict[str, LazyTensor]:
    """The tensors of one safetensors file, from its header alone.

    Raises EmoExportError for a header that is truncated, malformed, or does not fit the file.
    """
    try:
        size = file.stat().st_size
        with file.open("rb") as handle:
            prefix = handle.read(8)
            length = int.from_bytes(prefix, "little")
            if len(prefix) < 8 or length > min(size - 8, MAX_HEADER):
                raise EmoExportError(
                    f"{file}: is not a whole safetensors file (header of {length} bytes "
                    f"in a file of {size}); fetch it again"
                )
            header = json.loads(handle.read(length))
    except OSError as error:
        raise EmoExportError(f"{file}: cannot be read ({error.strerror})") from error
    except ValueError as error:
        raise EmoExportError(f"{file}: its safetensors header is not JSON ({error})") from error
    if not isinstance(header, dict):
        raise EmoExportError(f"{file}: its safetensors header is not an object")
    header.pop("__metadata__", None)
    return {name: _entry(file, name, entry, 8 + length, size) for name, entry in header.items()}


def _entry(file: Path, name: str, entry: Any, base: int, size: int) -> LazyTensor:
    try:
        dtype, shape = str(entry["dtype"]), tuple(int(n) for n in entry["shape"])
        begin, end = (int(n) for n in entry["data_offsets"])
    except (KeyError, TypeError, ValueError) as error:
        raise EmoExportError(f"{file}: header entry of tensor {name} is malformed") from error
    if dtype not in ITEM_BYTES:
        raise EmoExportError(
            f"{file}: tensor {name} is stored as {dtype}; only {', '.join(ITEM_BYTES)} are read"
        )
    tensor = LazyTensor(name, shape, dtype, file, base + begin)
    if min(shape, default=0) < 1 or not begin >= 0 or end - begin != tensor.nbytes:
        raise EmoExportError(
            f"{file}: tensor {name} of shape {list(shape)} and {dtype} "
            f"does not fit its {end - begin} bytes"
        )
    if base + end > size:
        raise EmoExportError(
            f"{file}: is truncated: tensor {name} should end at byte {base + end} "
            f"but the file has {size}; fetch it again"
        )
    return tensor


def _account(config: EmoConfig, tensors: Mapping[str, LazyTensor], path: Path) -> None:
    """Match every tensor of the files with a slot of the model, and the other way round."""
    expected = {slot.name: shape_of(slot, config) for slot in slots(config)}
    source = path / INDEX if (path / INDEX).is_file() else path / SINGLE
    missing = [name for name in expected if name not in tensors]
    if missing:
        more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
        raise EmoExportError(
            f"{source}: tensor {missing[0]} is missing{more}; config.json calls for it"
        )
    for name, tensor in tensors.items():
        if name not in expected:
            raise EmoExportError(
                f"{tensor.file}: tensor {name} is extra: config.json has no place for it"
            )
        if tensor.shape != expected[name]:
            raise EmoExportError(
                f"{tensor.file}: tensor {name} has shape {list(tensor.shape)}, "
                f"config.json calls for {list(expected[name])}"
            )
