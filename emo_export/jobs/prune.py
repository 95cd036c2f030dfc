"""`prune`: from a checkpoint, or from one target of a package."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export.base.install import need
from emo_export.errors import EmoExportError
from emo_export.exporting.provenance import Provenance
from emo_export.exporting.steps import Steps
from emo_export.families import FAMILIES
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.jobs.auto_keep import resolved
from emo_export.jobs.heldout import choose_heldout
from emo_export.jobs.options import PruneOptions
from emo_export.jobs.recipe import digest_of, recipe_of
from emo_export.jobs.torch_device import prepare_torch
from emo_export.measuring import read_sample, start_calibration, start_choice
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.model.source import Source
from emo_export.pruning import Pruned, make_safetensors, prune, prune_package
from emo_export.resuming import Resuming
from emo_export.runtimes.families import LIGHT
from emo_export.runtimes.package import chosen_targets

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes
    from emo_export.text.sample import Sample
    from emo_export.text.tokenizer import Encode


def prune_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    options: PruneOptions,
    steps: Steps,
    command: str | None = None,
) -> Pruned:
    """A checkpoint with the experts that a text needs, and pruned.manifest.json in it.

    `command`, if it was one, goes into that. Raises EmoExportError.
    """
    need(["torch"], "convert", "prune")
    options.check()
    provenance = Provenance.of_checkpoint(checkpoint, options, command)
    checkpoint = checkpoint.heard_by(provenance.reads)
    prepare_torch(options.device, checkpoint.nbytes)
    sample = read_sample(options.text, Product.whole(checkpoint))
    steps.on_texts(sample.texts)
    probes = _loss_probes(checkpoint, options, steps)
    selection = resolved(options.selection, checkpoint, sample, probes, steps, options.device)
    product = selection.awaiting(checkpoint)
    calibration = start_calibration(sample, product, options.device)
    choice = start_choice(selection, calibration, checkpoint)
    writing = partial(make_safetensors, product, max_shard_size=options.max_shard_size)
    recipe = recipe_of(checkpoint, str((options.max_shard_size, options.device)), probes)
    recipe["calibration text"] = digest_of(sample.sequences)
    recipe["choice of experts"] = str(selection)
    return prune(
        product,
        output,
        writing,
        calibration,
        choice,
        probes,
        steps,
        partial(provenance.origin, facts=_facts(sample, probes)),
        options.device,
        options.overwrite,
        Resuming(recipe, provenance.reads, options.resume),
    )


def prune_target(
    path: Path,
    targets: Sequence[str],
    output: Path,
    options: PruneOptions,
    steps: Steps,
    command: str | None = None,
) -> Pruned:
    """A .gguf file or an ONNX folder with the experts that a text needs, its bytes copied.

    `path` is one, or an exported folder with one target or with one of `targets`. The result, at
    `output`, is of the same kind. pruned.manifest.json is in a folder, OUTPUT.manifest.json beside
    a file; `command`, if it was one, goes into it. Raises EmoExportError.
    """
    need(["torch"], "convert", "prune")
    options.check()
    folder, found = chosen_targets(path, targets)
    if len(found) != 1:
        raise EmoExportError(
            f"{path}: has {len(found)} targets, {', '.join(found)}; choose one with --target"
        )
    if options.selection.rescale:
        raise EmoExportError(
            f"{path}: --rescale changes weights, and those of a package are copied as they are; "
            "prune the checkpoint, or leave --rescale out"
        )
    entry = next(iter(found.values()))
    package = FAMILIES[entry.spec.family].package(entry, folder / entry.path)
    provenance = _provenance(folder, entry, options, command)
    prepare_torch(options.device, package.nbytes)
    with package.tokenizer() as encode:
        sample = read_sample(options.text, Product.whole(package), encode)
        steps.on_texts(sample.texts)
        probes = _loss_probes(package, options, steps, encode)
    selection = resolved(options.selection, package, sample, probes, steps, options.device)
    product = selection.awaiting(package)
    calibration = start_calibration(sample, product, options.device)
    choice = start_choice(selection, calibration, package)
    return prune_package(
        package,
        product,
        output,
        calibration,
        choice,
        probes,
        steps,
        partial(provenance.origin, facts=_facts(sample, probes)),
        options.device,
        options.overwrite,
    )


def _provenance(
    folder: Path, entry: TargetEntry, options: PruneOptions, command: str | None
) -> Provenance:
    """Of a target. Raises EmoExportError where its files are not those of its manifest."""
    place = folder / entry.path
    base = place if place.is_dir() else folder
    inside = sorted(path for path in place.rglob("*") if path.is_file())
    files = inside or LIGHT[entry.spec.family].files(place)
    found = Provenance.of_files(base, files, options, command)
    if (folder / MANIFEST).is_file():
        listed = {one.path: one.sha256 for one in Manifest.load(folder).files}
        for file, one in zip(files, found.inputs, strict=True):
            if listed.get(file.relative_to(folder).as_posix()) not in (None, one.sha256):
                raise EmoExportError(
                    f"{file}: is not the one that export wrote; emo-export verify {folder} tells "
                    "where it differs"
                )
    return found


def _facts(sample: Sample, probes: Probes | None) -> dict[str, Any]:
    """What the manifest tells of texts."""
    return {
        "heldout_sha256": None if probes is None else digest_of(probes.sequences),
        "calibration_sha256": digest_of(sample.sequences),
        "calibration_tokens": sample.tokens,
    }


def _loss_probes(
    source: Source, options: PruneOptions, steps: Steps, encode: Encode | None = None
) -> Probes | None:
    """The held-out text on which the loss is measured, if it is."""
    if not options.loss:
        return None
    return choose_heldout(
        Product.whole(source),
        options.heldout,
        steps,
        options.heldout_tokens,
        options.text.field,
        encode=encode,
    )
