"""Torch made ready for a job."""

from __future__ import annotations

from emo_export.base.large_blocks import return_large_blocks
from emo_export.errors import EmoExportError
from emo_export.runtimes.opening import SMALL_MODEL


def prepare_torch(device: str, nbytes: int) -> None:
    """Check the device; keep a small model on one thread, where several mostly wait.

    What is as large as a weight is returned to the system when torch lets go of it.
    """
    import torch

    return_large_blocks()
    if nbytes < SMALL_MODEL:
        torch.set_num_threads(1)

    if device not in ("cpu", "cuda"):
        raise EmoExportError(f"--torch-device {device}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmoExportError("--torch-device cuda: torch sees no CUDA device here; use cpu")
