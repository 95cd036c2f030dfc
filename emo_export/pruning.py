"""`prune`: the loop of an export with a safetensors writer, to a checkpoint with fewer experts."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.disk import allocated, check_space, writing
from emo_export.errors import EmoExportError
from emo_export.families.package import Package, copy_rows
from emo_export.files.gguf_header import MAGIC
from emo_export.files.manifest import BESIDE, PRUNED, Origin, files_in, write_for
from emo_export.files.onnx_needs import REQUIREMENTS
from emo_export.files.staging import staging
from emo_export.line import Line, Listener, Output
from emo_export.model.hub import HUB_FILES
from emo_export.model.product import Product
from emo_export.model.source import Source
from emo_export.parity.losses import Loss, by_domain
from emo_export.pipeline import OnBytes, Saving, stream
from emo_export.resuming import Resuming, staged

if TYPE_CHECKING:
    from emo_export.exporting.steps import Steps
    from emo_export.interfaces import Writer
    from emo_export.reference.calibrate import Calibration
    from emo_export.reference.probes import Probes
    from emo_export.selection.choice import Choice

OriginOf = Callable[[Product], Origin]
"""What the manifest says of a product, once it is known which experts it keeps."""
METADATA = "pruning_metadata.json"
MADE = ("config.json", METADATA, "*.safetensors", "model.safetensors.index.json")
"""What a pruned checkpoint has of its own; the rest of HUB_FILES goes along unchanged."""


@dataclass(frozen=True)
class Pruned:
    """What was kept, and what that costs on held-out text (empty: not measured)."""

    product: Product
    choice: Choice
    loss: tuple[Loss, ...]


def is_pruned(path: Path) -> bool:
    """Whether `prune` may replace it: a GGUF file, an ONNX folder of ours, a pruned checkpoint."""
    if path.is_symlink():
        return False
    if path.is_file():
        with path.open("rb") as handle:
            return handle.read(len(MAGIC)) == MAGIC
    return not any(path.iterdir()) or any(
        (path / name).is_file() for name in (METADATA, REQUIREMENTS)
    )


def measure_lines(
    product: Product,
    outputs: Sequence[Output],
    calibration: Calibration,
    choice: Choice,
    probes: Probes | None,
    device: str,
    on_bytes: OnBytes,
    saving: Saving | None = None,
) -> tuple[Loss, ...]:
    """Stream a product that chooses its experts; with probes, beside the full model."""
    listeners: list[Listener] = [calibration]
    if probes is None:
        stream([Line(product, outputs, listeners, choice)], on_bytes, saving=saving)
        return ()
    from emo_export.reference.probes import VariantSink

    sinks = VariantSink(product.source.config, probes), VariantSink(product.config, probes)
    full = Line(Product.whole(product.source), listeners=[sinks[0].listening(device)])
    listeners.append(sinks[1].listening(device))
    stream([Line(product, outputs, listeners, choice), full], on_bytes, saving=saving)
    nlls = [sink.variant().heldout_nll for sink in sinks]
    return by_domain(nlls[0], nlls[1], probes.domains)


def make_safetensors(product: Product, folder: Path, max_shard_size: int) -> Writer:
    """What writes a checkpoint."""
    from emo_export.converters.safetensors.writer import SafetensorsWriter

    return SafetensorsWriter(folder, product, max_shard_size)


def prune(
    product: Product,
    out: Path,
    make_writer: Callable[[Path], Writer],
    calibration: Calibration,
    choice: Choice,
    probes: Probes | None,
    steps: Steps,
    origin: OriginOf,
    device: str = "cpu",
    overwrite: bool = False,
    resuming: Resuming | None = None,
) -> Pruned:
    """Write the checkpoint and its manifest; `out` appears only when it is whole.

    Raises EmoExportError.
    """
    _refuse_source(product.source, out)
    with staged(out, overwrite, is_pruned, steps.on_stage, resuming) as (folder, progress):
        writer = make_writer(folder)
        needed = sum(decl.nbytes for decl in writer.declarations()) - allocated(folder)
        check_space(out, needed)
        if progress is not None:
            progress.needed = needed
        steps.on_start((), product.source.nbytes)
        try:
            writer.open()
            outputs = [Output(writer)]
            loss = measure_lines(
                product, outputs, calibration, choice, probes, device, steps.on_bytes, progress
            )
            writer.close()
        except BaseException:
            writer.abort()
            raise
        write_json(folder / "config.json", product.raw)
        write_json(folder / METADATA, product.pruning)
        _copy_rest(product.source, folder)
        _write_manifest(folder, origin(product))
    return Pruned(product, choice, loss)


def prune_package(
    package: Package,
    product: Product,
    out: Path,
    calibration: Calibration,
    choice: Choice,
    probes: Probes | None,
    steps: Steps,
    origin: OriginOf,
    device: str = "cpu",
    overwrite: bool = False,
) -> Pruned:
    """Write a package of the same kind with the experts that are chosen on its own weights.

    Kept bytes are read once more, to be copied. `out`, a file or a folder as the package is,
    appears only when it is whole. Raises EmoExportError.
    """
    _refuse_source(package, out)
    with staging(out, overwrite, is_pruned) as place:
        writer = package.writer(product, place)
        check_space(out, sum(decl.nbytes for decl in writer.declarations()))
        steps.on_start((), package.nbytes)
        loss = measure_lines(product, (), calibration, choice, probes, device, steps.on_bytes)
        steps.on_stage("copying the kept experts")
        try:
            writer.open()
            copy_rows(package, product, writer)
            writer.close()
        except BaseException:
            writer.abort()
            raise
        beside = out.with_name(out.name + BESIDE)
        if place.is_dir():
            _write_manifest(place, origin(product))
        elif overwrite:  # it would say of the new file that it is damaged
            beside.unlink(missing_ok=True)
    if out.is_file():
        write_for(beside, out.parent, [out], origin(product), {})
    return Pruned(product, choice, loss)


def _refuse_source(source: Source, out: Path) -> None:
    if out.exists() and out.samefile(source.path):
        raise EmoExportError(f"{out}: is what is pruned; choose another -o")


def _write_manifest(folder: Path, origin: Origin) -> None:
    write_for(folder / PRUNED, folder, files_in(folder, PRUNED), origin, {})


def _copy_rest(source: Source, folder: Path) -> None:
    for pattern in HUB_FILES:
        for path in () if pattern in MADE else sorted(source.path.glob(pattern)):
            place = folder / path.relative_to(source.path)
            with writing(place):
                place.parent.mkdir(exist_ok=True)
                shutil.copyfile(path, place)


def write_json(path: Path, content: object) -> None:
    """Write an object as a Hugging Face checkpoint has it."""
    with writing(path):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
