"""emo-export: EMO mixture-of-experts checkpoints to GGUF and ONNX, with proof of parity.

From a checkpoint to text:

    import emo_export

    emo_export.export("examples/emo-nano", "out", ["gguf:q4_0", "onnx:int4"])
    assert all(result.passed for result in emo_export.validate("out"))
    with emo_export.load("out", "gguf:q4_0") as model:
        print("".join(model.text("def main(", max_tokens=32)))

Importing this package loads nothing heavy; each function imports what it needs. Errors that a user
can mend are `emo_export.errors.EmoExportError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from emo_export.exporting.export import Exported
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.parity.result import Result
    from emo_export.runtimes.loading import Model

__all__ = ["__version__", "export", "load", "open_checkpoint", "validate"]
__version__ = "0.1.0"


def open_checkpoint(source: str | PathLike[str]) -> Checkpoint:
    """Open a checkpoint without reading its weights: a local folder or a Hugging Face id.

    Example: `open_checkpoint("examples/emo-nano").config.num_hidden_layers`. Raises EmoExportError
    for what is missing, left over or of another shape than its config.json says.
    """
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.hub import locate

    return Checkpoint.open(locate(str(source)))


def export(
    source: str | PathLike[str] | Checkpoint,
    out: str | PathLike[str],
    targets: str | Sequence[str],
    *,
    heldout: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    calibration: str | PathLike[str] | Sequence[str | PathLike[str]] = (),
    keep: int | str | None = None,
    loss: float = 0.02,
    method: str = "router",
    rescale: bool = False,
    golden: bool = True,
    validate: bool = True,
    overwrite: bool = False,
) -> Exported:
    """Export a checkpoint to every target, in one pass over its weights, and judge the result.

    `targets` are as `gguf:q4_k_m` or `onnx:int4@if`; `heldout` and `calibration` are text files,
    or folders of them; of each, one may be given without a list. `keep` experts of each layer, as
    8, "25%" or "auto" for the fewest that cost at most `loss` of perplexity, are those that the
    calibration text needs, ranked by `method`
    (router, easy-ep, reap, random); with `rescale` they keep the weight that all experts had.
    Without `golden` there is no reference to judge by, now or later. A target outside its limits
    raises nothing: see `results` of what is returned. Example:
    `export("examples/emo-nano", "out", ["gguf:q4_0"]).passed`. Raises
    EmoExportError, and leaves nothing behind, when the export can't be made.
    """
    from pathlib import Path

    from emo_export.exporting.package import ALONE
    from emo_export.jobs.export import export_checkpoint
    from emo_export.jobs.options import ExportOptions
    from emo_export.selection.auto import Auto
    from emo_export.selection.keep import Keep, Selection
    from emo_export.selection.method import Method

    selection: Selection | Auto | None = None
    if keep == "auto":
        selection = Auto(loss, Method.parse(method), rescale=rescale)
    elif keep is not None:
        amount = Keep.parse(str(keep))
        selection = Selection(amount, Method.parse(method), rescale=rescale)
    options = ExportOptions(
        heldout=tuple(map(Path, _each(heldout))),
        calibration=tuple(map(Path, _each(calibration))),
        selection=selection,
        golden=golden,
        validate=validate,
        overwrite=overwrite,
    )
    checkpoint = open_checkpoint(source) if isinstance(source, str | PathLike) else source
    return export_checkpoint(checkpoint, Path(out), _each(targets), options)[ALONE]


def validate(
    path: str | PathLike[str],
    targets: str | Sequence[str] = (),
    *,
    device: str | None = None,
    threads: int | None = None,
) -> list[Result]:
    """Compare what the engines compute with the reference that lies beside the models.

    `path` is a folder that export made, or a model in one; `targets` chooses from a folder.
    `device` is a name that `--device` takes: `pi4`, `ssh://pi@host`, `adb`, `here` (a process of
    its own); None judges in this process. Every target gets its result, whatever became of the
    others. Example: `[r.target for r in validate("out") if not r.passed]`. Raises EmoExportError
    when nothing can be judged.
    """
    from pathlib import Path

    from emo_export.runtimes.devices.options import DeviceOptions
    from emo_export.validating import validate_here, validate_there

    if device is None:
        return validate_here(Path(path), _each(targets), threads)
    options = DeviceOptions((device,), threads=threads)
    options.check()
    return validate_there(Path(path), _each(targets), options)


def load(
    path: str | PathLike[str],
    target: str | None = None,
    *,
    threads: int | None = None,
    kv_cache: str | None = None,
) -> Model:
    """Open an exported model to run it, on token ids or on text.

    `path` is a .gguf file, an ONNX folder or a folder that export made, of which `target` is taken
    (by default the first whose engine is installed). `kv_cache` is the type of keys and values, as
    `run --kv-cache` has them. Example:
    `with load("out") as model: print("".join(model.text("The")))`. Raises EmoExportError when it
    can't be read, MissingDependencyError without its engine.
    """
    from pathlib import Path

    from emo_export.runtimes.loading import load as opened

    return opened(Path(path), target, threads, kv_cache)


def _each(given: str | PathLike[str] | Sequence[Any]) -> Sequence[Any]:
    """One as a list of one: a text is a sequence too, of letters."""
    return [given] if isinstance(given, str | PathLike) else given
