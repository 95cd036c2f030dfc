"""The main job as one function: a checkpoint, targets and options, to a folder that is judged.

And its counterpart for a folder that exists: the reference computed anew.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.install import CONVERT, need
from emo_export.errors import EmoExportError
from emo_export.exporting import QUIET, Exported, Steps, export, make_golden
from emo_export.families import FAMILIES, target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.target_entry import TargetEntry
from emo_export.measuring import (
    matrix_of,
    measure_of,
    read_importance,
    read_sample,
    start_calibration,
)
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.product import Product
from emo_export.parity.golden import Golden
from emo_export.runtimes.opening import SMALL_MODEL
from emo_export.spec import Spec
from emo_export.text.documents import FIELD
from emo_export.text.places import Texts, find_texts
from emo_export.text.sample import CALIBRATION_TOKENS
from emo_export.validating import validate_new

if TYPE_CHECKING:
    from emo_export.reference.calibrate import Calibration


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`, as its help describes them."""

    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    calibration: tuple[Path, ...] = ()
    calibration_tokens: int = CALIBRATION_TOKENS
    calibration_seed: int = 0
    text_field: str = FIELD
    imatrix: Path | None = None
    targets: TargetOptions = field(default_factory=TargetOptions)
    device: str = "cpu"
    overwrite: bool = False
    golden: bool = True
    validate: bool = True

    def check(self) -> None:
        """Refuse what would have no effect."""
        if self.heldout and not self.golden:
            raise EmoExportError(
                "--heldout is of no use with --no-golden, which computes no reference"
            )


def export_package(
    checkpoint: Checkpoint,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    steps: Steps | None = None,
    on_matrix: Callable[[ImportanceMatrix], None] = lambda matrix: None,
) -> Exported:
    """Export a checkpoint as the options say, and tell `steps` what goes on.

    `on_matrix` gets the importance matrix that was used, once it is filled. Raises EmoExportError
    when it can't be made; a target that is out of tolerance is told in the results.
    """
    need(CONVERT, "convert", "export")
    options.check()
    steps = steps or QUIET
    product = Product.whole(checkpoint)
    importance = _importance(options, product, steps)
    matrix = None if importance is None else matrix_of(importance)
    asked = [Spec.parse(spec) for spec in specs]
    make = target_maker(asked, product, options.targets, matrix)
    if options.golden or options.calibration:
        prepare_torch(options.device, product.nbytes)
    validates = options.validate and options.golden
    if validates:
        for family in dict.fromkeys(spec.family for spec in asked):
            FAMILIES[family].need_engine("validating")
    probes = None
    if options.golden:
        from emo_export.reference.probes import choose_probes

        heldout = heldout_texts(options.heldout, product.path)
        steps.on_texts(heldout)
        context = options.targets.context
        field = options.text_field if options.heldout else FIELD
        probes = choose_probes(product, heldout.files, options.heldout_tokens, context, field)
    made = export(
        product,
        output,
        make,
        probes,
        steps,
        validate=partial(validate_new, on_stage=steps.on_stage) if validates else None,
        measure=measure_of(importance, product, options.targets.arch),
        device=options.device,
        overwrite=options.overwrite,
    )
    if matrix is not None:
        on_matrix(matrix)
    return made


def _importance(
    options: ExportOptions, product: Product, steps: Steps
) -> Calibration | ImportanceMatrix | None:
    if options.calibration and options.imatrix is not None:
        raise EmoExportError("--calibration collects an importance matrix, --imatrix reads one")
    arch, context = options.targets.arch, options.targets.context
    if options.imatrix is not None:
        return read_importance(options.imatrix, product, arch)
    if not options.calibration:
        return None
    sample = read_sample(
        options.calibration,
        product,
        options.calibration_tokens,
        context,
        options.calibration_seed,
        options.text_field,
    )
    steps.on_texts(sample.texts)
    return start_calibration(sample, product, options.device)


def fresh_golden(
    checkpoint: Checkpoint,
    device: str,
    steps: Steps,
    folder: Path,
    targets: Mapping[str, TargetEntry],
    stored: Golden | None,
) -> tuple[Golden, dict[str, EmoExportError]]:
    """The reference computed now, on the token ids of the stored golden where there is one.

    The weights of each target are read back from its file; with it the targets of which that
    can't be done (damaged, or of another model), and why.
    """
    from emo_export.reference.probes import Probes, choose_probes

    product = Product.whole(checkpoint)
    prepare_torch(device, product.nbytes)
    if stored is None:
        probes = choose_probes(product, heldout_texts((), product.path).files, 4096)
    else:
        probes = Probes.of(stored)
    artifacts = {
        spec: partial(
            FAMILIES[entry.spec.family].weights_of, entry, folder / entry.path, product.config
        )
        for spec, entry in targets.items()
    }
    unreadable: dict[str, EmoExportError] = {}
    golden = make_golden(product, artifacts, probes, steps, device, unreadable=unreadable)
    return golden, unreadable


def heldout_texts(given: Sequence[Path], source: Path) -> Texts:
    """The files named, the files of the folders named, or those of a checkpoint's heldout/."""
    inside = source / "heldout"
    return find_texts(given or ([inside] if inside.is_dir() else []))


def prepare_torch(device: str, nbytes: int) -> None:
    """Check the device; keep a small model on one thread, where several mostly wait."""
    import torch

    if nbytes < SMALL_MODEL:
        torch.set_num_threads(1)

    if device not in ("cpu", "cuda"):
        raise EmoExportError(f"--torch-device {device}: expected cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise EmoExportError("--torch-device cuda: torch sees no CUDA device here; use cpu")
