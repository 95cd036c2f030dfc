"""What `doctor` asks an onnxruntime, in a process of its own, and what its answer means."""

from __future__ import annotations

from emo_export.files.onnx_needs import version_numbers
from emo_export.model.recipes import ONNXRUNTIME_MIN

# The last line are the operators with a CPU kernel; some builds do not tell.
PROBE = """import os
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime as o
print(o.__version__, *o.get_available_providers())
try:
    from onnxruntime.capi.onnxruntime_pybind11_state import get_all_opkernel_def as kernels
except ImportError:
    pass
else:
    print(*{f"{k.domain}.{k.op_name}" for k in kernels() if k.provider == "CPUExecutionProvider"})
"""
NO_GRAPH = "none"
GRAPH_KERNELS = {  # what the graph cannot do without, and builds or versions may lack
    "qmoe": "com.microsoft.QMoE",
    "if": "com.microsoft.MatMulNBits",
    "standard": ".RMSNormalization",
}


def described(answer: str) -> str:
    """Version, providers and the kinds of ONNX graph that open, from what PROBE printed."""
    said, _, kernels = answer.strip().partition("\n")
    installed = version_numbers(said.split(" ")[0])
    graphs = [
        graph
        for graph, needed in ONNXRUNTIME_MIN.items()
        if installed >= version_numbers(needed)
        and (not kernels or GRAPH_KERNELS[graph] in kernels.split())
    ]
    return f"{said}; opens the graphs {', '.join(graphs) or NO_GRAPH}"
