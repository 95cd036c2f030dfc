"""What a runtime reads of an exported ONNX folder before it loads anything large."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.json_file import read_json

REQUIREMENTS = "emo_export.json"  # {"onnxruntime_min": "1.31", "share_kv_buffer": true}
CONFIG_KEYS = (
    "vocab_size",
    "num_hidden_layers",
    "num_key_value_heads",
    "head_dim",
    "max_position_embeddings",
)


def read_config(folder: Path) -> dict[str, int]:
    """The numbers of config.json that a runtime needs; raises EmoExportError without one."""
    config = read_json(folder / "config.json")
    for key in CONFIG_KEYS:
        value = config.get(key)
        if type(value) is not int or value < 1:
            raise EmoExportError(
                f"{folder / 'config.json'}: {key} is {value!r}, expected an integer above 0"
            )
    return {key: config[key] for key in CONFIG_KEYS}


@dataclass(frozen=True)
class Requirements:
    """What emo_export.json says that the graph needs of its runner.

    `share_kv_buffer`: the graph takes past and present of the KV cache as one buffer of the whole
    context (GroupQueryAttention does), so that a step does not copy the cache.
    """

    onnxruntime_min: str = "0"
    share_kv_buffer: bool = False

    def check_version(self, folder: Path, installed: str) -> None:
        """Refuse an older engine with EmoExportError, before anything large is loaded."""
        needed = self.onnxruntime_min
        if _numbers(installed) < _numbers(needed):
            raise EmoExportError(
                f"{folder} needs onnxruntime {needed} or newer and {installed} is installed: "
                f'pip install "onnxruntime>={needed}"'
            )


def read_requirements(folder: Path) -> Requirements:
    """Read emo_export.json; a folder without one needs nothing."""
    path = folder / REQUIREMENTS
    if not path.is_file():
        return Requirements()
    data = read_json(path)
    needed = data.get("onnxruntime_min", Requirements.onnxruntime_min)
    share = data.get("share_kv_buffer", Requirements.share_kv_buffer)
    if not isinstance(needed, str) or not _numbers(needed):
        raise EmoExportError(f"{path}: onnxruntime_min is {needed!r}, expected one like '1.31'")
    if not isinstance(share, bool):
        raise EmoExportError(f"{path}: share_kv_buffer is {share!r}, expected true or false")
    return Requirements(needed, share)


def _numbers(version: str) -> tuple[int, ...]:
    """The leading numbers of a version: 1.31.0rc1 -> (1, 31)."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal():
            break
        numbers.append(int(part))
    return tuple(numbers)
