"""The main job: a checkpoint, targets and options, to folders that are judged."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export.base.install import CONVERT, need
from emo_export.errors import EmoExportError
from emo_export.exporting.export import Exported, Validate, export
from emo_export.exporting.package import Measure, Package
from emo_export.exporting.provenance import Provenance
from emo_export.exporting.steps import QUIET, Steps
from emo_export.families import FAMILIES, target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.manifest import digest
from emo_export.files.recipe_file import read_recipes, types_in, write_recipes
from emo_export.interfaces import Ids
from emo_export.jobs.auto_keep import resolved
from emo_export.jobs.budget import find_types
from emo_export.jobs.heldout import choose_heldout
from emo_export.jobs.options import ExportOptions
from emo_export.jobs.recipe import digest_of, recipe_of
from emo_export.jobs.torch_device import prepare_torch
from emo_export.measuring import (
    read_importance,
    read_sample,
    save_importance,
    start_calibration,
    start_choice,
)
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.pooled import Pooled
from emo_export.model.product import Product
from emo_export.model.reads import Reads
from emo_export.model.recipes import AUTO
from emo_export.model.rounding import Rounding
from emo_export.planning.export_need import STATES
from emo_export.resuming import Resuming
from emo_export.spec import Spec
from emo_export.validating import validate_new

if TYPE_CHECKING:
    from emo_export.reference.calibrate import Calibration
    from emo_export.reference.probes import Probes
    from emo_export.reference.states import States
    from emo_export.text.sample import Sample

OWN_BYTES = 200_000_000
"""Memory for the states of all targets' own calibrations: what bounds their tokens."""


def export_checkpoint(
    checkpoint: Checkpoint,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    steps: Steps = QUIET,
    on_matrix: Callable[[ImportanceMatrix], None] = lambda matrix: None,
    command: str | None = None,
) -> dict[str, Exported]:
    """Export a checkpoint as the options say, and tell `steps` what goes on.

    By name of the options' domains, in `output / name`; without domains it is one, `ALONE`,
    and `output` itself. `on_matrix` gets each importance matrix that was used, once it is filled.
    `command`, if it was one, goes into the manifest.
    Raises EmoExportError when it can't be made; a target that is out of tolerance is told in the
    results.
    """
    need(CONVERT, "convert", "export")
    options.check()
    asked = [Spec.parse(spec) for spec in specs]
    _check_auto(asked, options)
    validate = _validate(asked, options, steps)
    rounding = options.chosen_rounding
    stated = replace(
        options, rounding=rounding, targets=replace(options.targets, rounding=rounding)
    )
    provenance = Provenance.of_checkpoint(checkpoint, stated, command)
    checkpoint = checkpoint.heard_by(provenance.reads)
    if options.golden or any(options.texts.values()):
        prepare_torch(options.device, checkpoint.nbytes)
    probes = _probes(checkpoint, options, steps)
    packages, matrices = {}, []
    for name, places in options.texts.items():
        packages[name], matrix = _package(checkpoint, asked, options, places, probes, steps)
        matrices.append(matrix)
    if options.targets.share_trunk:
        packages = _with_one_trunk(packages)
    reads = provenance.reads
    made = export(
        packages,
        output,
        probes,
        steps,
        validate=validate,
        provenance=provenance,
        device=options.device,
        overwrite=options.overwrite,
        resuming=_resuming(checkpoint, asked, options, list(packages.values()), probes, reads),
    )
    for matrix in matrices:
        if matrix is not None:
            on_matrix(matrix)
    return made


def _probes(checkpoint: Checkpoint, options: ExportOptions, steps: Steps) -> Probes | None:
    """What an export is judged by, if it is."""
    if not options.golden:
        return None
    return choose_heldout(
        Product.whole(checkpoint),
        options.heldout,
        steps,
        options.heldout_tokens,
        options.text_field,
        options.targets.context,
    )


def _validate(asked: Sequence[Spec], options: ExportOptions, steps: Steps) -> Validate | None:
    """What judges an export, if it is judged."""
    if not (options.validate and options.golden):
        return None
    for family in dict.fromkeys(spec.family for spec in asked):
        FAMILIES[family].need_engine("validating")
    return partial(validate_new, on_stage=steps.on_stage)


def _package(
    checkpoint: Checkpoint,
    asked: Sequence[Spec],
    options: ExportOptions,
    places: tuple[Path, ...],
    probes: Probes | None,
    steps: Steps,
) -> tuple[Package, ImportanceMatrix | None]:
    """What one folder is to hold, with calibration text from `places`; and its importance."""
    rounding = options.chosen_rounding
    own = None
    product, selection, choice = Product.whole(checkpoint), None, None
    targets, facts = options.targets, dict[Spec, Mapping[str, Any]]()
    auto = [spec for spec in asked if spec.type == AUTO]
    if options.recipe is not None:
        targets, facts = _repeated(auto, targets, options.recipe)
    calibration, matrix = None, None
    sequences: Sequence[Ids] = ()
    if options.imatrix is not None:
        matrix = read_importance(options.imatrix, product, options.targets.arch)
    elif places:
        sample = read_sample(options.text(places), product)
        steps.on_texts(sample.texts)
        sequences = sample.sequences
        if options.budget is not None:
            for found in find_types(
                checkpoint, auto, options.budget, sample, targets, steps, options.device
            ):
                steps.on_types(found)
                facts[found.spec] = found.as_dict()
                targets = replace(targets, chosen={**targets.chosen, found.spec: found.recipe})
        if options.selection is not None:
            selection = resolved(
                options.selection, checkpoint, sample, probes, steps, options.device
            )
            product = selection.awaiting(checkpoint)
        calibration = start_calibration(sample, product, options.device)
        if rounding == Rounding.GPTQ:
            count = len(asked) * len(options.texts)
            own = _own(sample, product, count, calibration.states, options.device)
        if selection is not None:
            choice = start_choice(selection, calibration, checkpoint)
        matrix = None if rounding == Rounding.NEAREST else calibration.matrix
    measure = Measure(
        None if matrix is None else calibration or matrix,
        listeners=() if calibration is None else (calibration,),
        choice=choice,
        save=partial(_save, matrix, product, options.targets.arch, facts),
        own=own,
        device=options.device,
    )
    targets = replace(targets, rounding=rounding)
    make = target_maker(asked, product, targets, matrix)
    recipe = {
        "calibration text": digest_of(sequences),
        "types that were found": str(targets.chosen),
        "choice of experts": str((selection, product.kept)),
        "importance matrix": "" if options.imatrix is None else digest(options.imatrix),
    }
    told: dict[str, Any] = {
        "heldout_sha256": None if probes is None else digest_of(probes.sequences),
        "calibration_sha256": digest_of(sequences) if sequences else None,
        "calibration_tokens": sum(map(len, sequences)),
        "imatrix_sha256": recipe["importance matrix"] or None,
    }
    return Package(product, make, measure, recipe, told), matrix


def _own(
    sample: Sample, product: Product, targets: int, states: States, device: str
) -> Callable[[], Calibration]:
    """What begins the calibration of a target's own weights, one of so many at a time.

    `states` are what the float model makes of all of the sample.
    """
    from emo_export.reference.drift import Original

    tokens = OWN_BYTES // (targets * STATES * 4 * product.config.hidden_size)
    drawn = sample.drawn(tokens)
    original = Original(states, states.tokens_of(drawn))
    return partial(start_calibration, sample.part(drawn), product, device, original)


def _save(
    matrix: ImportanceMatrix | None,
    product: Product,
    arch: str | None,
    types: Mapping[Spec, Mapping[str, Any]],
    to: Path,
) -> None:
    if matrix is not None:
        save_importance(to, matrix, product, arch)
    if types:
        write_recipes(to, types)


def _check_auto(asked: Sequence[Spec], options: ExportOptions) -> None:
    """Refuse a budget that no target takes; one of the type auto without any refuses itself."""
    given = options.budget is not None or options.recipe is not None
    if given and all(spec.type != AUTO for spec in asked):
        raise EmoExportError(
            "a budget, or --recipe, is for targets of the type auto: --to gguf:auto or onnx:auto"
        )


def _repeated(
    auto: Sequence[Spec], targets: TargetOptions, path: Path
) -> tuple[TargetOptions, dict[Spec, Mapping[str, Any]]]:
    """The options with the recipes of a file, and all that it says of those targets."""
    said = read_recipes(path)
    for spec in auto:
        if spec not in said:
            known = ", ".join(map(str, said))
            raise EmoExportError(f"{path}: has no types for {spec}; it has them for {known}")
    chosen = {spec: types_in(said[spec], path) for spec in auto}
    return replace(targets, chosen=chosen), {spec: said[spec] for spec in auto}


def _with_one_trunk(packages: Mapping[str, Package]) -> dict[str, Package]:
    """Packages whose common matrices are quantised with the importance of all their texts."""
    measured = [one.measure.measured for one in packages.values()]
    told = [each for each in measured if each is not None]
    if not told:
        return dict(packages)
    trunk = Pooled(told, next(iter(packages.values())).product.config)
    return {
        name: replace(one, measure=replace(one.measure, trunk=trunk))
        for name, one in packages.items()
    }


def _resuming(
    checkpoint: Checkpoint,
    asked: Sequence[Spec],
    options: ExportOptions,
    packages: Sequence[Package],
    probes: Probes | None,
    reads: Reads,
) -> Resuming:
    """All that the files of an export depend on."""
    target = str(
        [
            *map(str, asked),
            options.targets,
            options.chosen_rounding,
            options.validate,
            options.device,
        ]
    )
    recipe = recipe_of(checkpoint, target, probes)
    for name in packages[0].recipe:
        recipe[name] = str([package.recipe[name] for package in packages])
    return Resuming(recipe, reads, options.resume)
