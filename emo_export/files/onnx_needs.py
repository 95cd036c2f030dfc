"""What an exported ONNX folder says it needs of its engine, and whether a version will do."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.model.recipes import ONNX_RECIPES, ONNXRUNTIME_MIN

REQUIREMENTS = "emo_export.json"  # {"onnxruntime_min": "1.31", "graph": "qmoe", …}


@dataclass(frozen=True)
class Requirements:
    """What emo_export.json says that the graph needs of its runner.

    `share_kv_buffer`: the graph takes past and present of the KV cache as one buffer of the whole
    context (GroupQueryAttention does), so that a step does not copy the cache. `graph` and `type`
    are those of the target, empty in a folder that export did not make.
    """

    onnxruntime_min: str = "0"
    share_kv_buffer: bool = False
    graph: str = ""
    type: str = ""

    def check(self, folder: Path, installed: str) -> None:
        """Refuse an older engine and an unknown graph with EmoExportError."""
        if self.graph and self.graph not in ONNX_RECIPES:
            raise EmoExportError(
                f"{folder} has the graph {self.graph!r}, this emo-export knows "
                f"{', '.join(ONNX_RECIPES)}: a newer one made it; upgrade emo-export"
            )
        needed = self.onnxruntime_min
        if version_numbers(installed) < version_numbers(needed):
            opens = version_numbers(ONNXRUNTIME_MIN["if"]) <= version_numbers(installed)
            raise EmoExportError(
                f"{folder} needs onnxruntime {needed} or newer and {installed} is installed: "
                f'pip install "onnxruntime>={needed}"{export_again(self, "if") if opens else ""}'
            )


def export_again(needs: Requirements, graph: str) -> str:
    """The end of an error: the same model as another graph; empty when it was not an export."""
    if not needs.type or needs.graph == graph:
        return ""
    kind = needs.type if needs.type in ONNX_RECIPES[graph] else "int8"
    return (
        f", or export the checkpoint again with --to onnx:{kind}@{graph}, "
        f"which opens in onnxruntime {ONNXRUNTIME_MIN[graph]} and newer"
    )


def read_requirements(folder: Path) -> Requirements:
    """Read emo_export.json; a folder without one needs nothing."""
    path = folder / REQUIREMENTS
    if not path.is_file():
        return Requirements()
    data = read_json(path)
    needed = data.get("onnxruntime_min", Requirements.onnxruntime_min)
    share = data.get("share_kv_buffer", Requirements.share_kv_buffer)
    graph, kind = data.get("graph", ""), data.get("type", "")
    if not isinstance(needed, str) or not version_numbers(needed):
        raise EmoExportError(f"{path}: onnxruntime_min is {needed!r:.60}, expected one like '1.31'")
    if not isinstance(share, bool):
        raise EmoExportError(f"{path}: share_kv_buffer is {share!r}, expected true or false")
    if not isinstance(graph, str) or not isinstance(kind, str):
        raise EmoExportError(f"{path}: graph is {graph!r} and type {kind!r}, expected names")
    return Requirements(needed, share, graph, kind)


def version_numbers(version: str) -> tuple[int, ...]:
    """The leading numbers, of up to 9 digits, of a version: 1.31.0rc1 -> (1, 31)."""
    numbers = []
    for part in version.split("."):
        if not part.isdecimal() or len(part) > 9:
            break
        numbers.append(int(part))
    return tuple(numbers)
