"""What a prepacked copy was made from, and for what: a copy with another key is stale."""

from __future__ import annotations

import hashlib
import json
import platform
from dataclasses import asdict, dataclass
from pathlib import Path

from emo_export.files.onnx_header import read_onnx
from emo_export.runtimes.ort.engine import MODEL, import_onnxruntime

LAYOUT = 2  # of the copy itself and its record
# Lines of /proc/cpuinfo that tell which kernels ONNX Runtime takes, and so how they pack.
CPU_LINES = (
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "flags",
    "CPU implementer",
    "CPU variant",
    "CPU part",
    "Features",
)


@dataclass(frozen=True)
class PrepackedKey:
    """Source and place of use of a copy.

    `graph` is the SHA-256 of model.onnx; `weights` are its external data files: name, bytes, and
    in ns when the data and when the file changed, since a digest of them would read the whole
    model at every start. The first of these times may be anything in an unpacked archive or after
    `cp -p`; the second is set by the system alone.
    """

    source: str
    graph: str
    weights: tuple[tuple[str, int, int, int], ...]
    onnxruntime: str
    cpu: str
    layout: int = LAYOUT

    @property
    def digest(self) -> str:
        """Short name of this key."""
        text = json.dumps(asdict(self), sort_keys=True)
        return hashlib.sha256(text.encode("utf-8")).hexdigest()[:16]

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights."""
        return sum(weight[1] for weight in self.weights)


def prepacked_key(folder: Path, root: Path = Path("/")) -> PrepackedKey:
    """The key of an ONNX folder on this machine; `root` is where proc/ lies.

    Raises EmoExportError for a damaged model.onnx.
    """
    graph = folder / MODEL
    names = {tensor.location for tensor in read_onnx(graph).initializers if tensor.location}
    stats = [(name, (folder / name).stat()) for name in sorted(names)]
    ort = import_onnxruntime()
    return PrepackedKey(
        str(folder.resolve()),
        hashlib.sha256(graph.read_bytes()).hexdigest(),
        tuple((name, s.st_size, s.st_mtime_ns, s.st_ctime_ns) for name, s in stats),
        f"{ort.__version__} {ort.get_build_info()}",
        cpu_identity(root),
    )


def cpu_identity(root: Path = Path("/")) -> str:
    """The processors of this machine in words that change when their kernels may.

    Each kind of core counts once (a phone has two or three). Without /proc/cpuinfo it is what
    `platform` knows.
    """
    try:
        text = (root / "proc/cpuinfo").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    kinds = set()
    for processor in text.split("\n\n"):
        pairs = (line.partition(":") for line in processor.splitlines())
        found = {key.strip(): value.strip() for key, _, value in pairs}
        kind = tuple(f"{key}={found[key]}" for key in CPU_LINES if key in found)
        if kind:
            kinds.add("; ".join(kind))
    return " | ".join([platform.machine(), *sorted(kinds)])
