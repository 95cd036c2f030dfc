"""The main job as one function: a checkpoint, targets and options, to a folder that is judged.

And its counterpart for a folder that exists: the reference computed anew.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from emo_export.auto_keep import Found, find_keep
from emo_export.base.install import CONVERT, need
from emo_export.base.large_blocks import return_large_blocks
from emo_export.domains import Chosen, choose_on_each
from emo_export.errors import EmoExportError
from emo_export.exporting import (
    QUIET,
    Exported,
    Measure,
    Package,
    Steps,
    Validate,
    export,
    export_domains,
    golden_of,
    run_floats,
    tool_versions,
)
from emo_export.families import FAMILIES, target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.domains import check_name
from emo_export.files.manifest import digest
from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import Ids
from emo_export.measuring import (
    CalibrationText,
    read_importance,
    read_sample,
    save_importance,
    start_calibration,
)
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.pooled import Pooled
from emo_export.model.product import Product
from emo_export.model.source import Source
from emo_export.parity.golden import Golden
from emo_export.parity.losses import ALL
from emo_export.pipeline import Line
from emo_export.pruning import Pruned, make_safetensors, prune, prune_package
from emo_export.resuming import Resuming
from emo_export.runtimes.opening import SMALL_MODEL
from emo_export.runtimes.package import chosen_targets
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from emo_export.spec import Spec
from emo_export.text.documents import FIELD
from emo_export.text.places import Texts, find_texts
from emo_export.text.sample import CALIBRATION_TOKENS
from emo_export.validating import validate_new

if TYPE_CHECKING:
    from emo_export.reference.calibrate import Calibration
    from emo_export.reference.probes import Probes
    from emo_export.selection.choice import Choice
    from emo_export.text.tokenizer import Encode


@dataclass(frozen=True)
class Auto:
    """How many experts to keep is to be found: the fewest within `loss`, ranked by `method`."""

    loss: float
    method: Method
    seed: int = 0


@dataclass(frozen=True)
class PruneOptions:
    """The options of `prune`, as its help describes them; `max_shard_size` in bytes."""

    selection: Selection
    text: CalibrationText
    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    max_shard_size: int = 5_000_000_000
    loss: bool = True
    resume: bool = True
    device: str = "cpu"


@dataclass(frozen=True)
class DomainOptions:
    """The options of `domains`, as its help describes them."""

    calibration: tuple[Path, ...]
    calibration_tokens: int
    seed: int = 0
    text_field: str = FIELD
    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    device: str = "cpu"


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`, as its help describes them."""

    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    calibration: tuple[Path, ...] = ()
    domains: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    calibration_tokens: int = CALIBRATION_TOKENS
    seed: int = 0
    text_field: str = FIELD
    selection: Selection | None = None
    auto: Auto | None = None
    imatrix: Path | None = None
    targets: TargetOptions = field(default_factory=TargetOptions)
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = True
    golden: bool = True
    validate: bool = True

    def text(self, places: tuple[Path, ...]) -> CalibrationText:
        """Calibration text from places, as the options draw it."""
        return CalibrationText(
            places, self.calibration_tokens, self.seed, self.text_field, self.targets.context
        )

    def check(self) -> None:
        """Refuse what would have no effect."""
        if self.heldout and not self.golden:
            raise EmoExportError(
                "--heldout is of no use with --no-golden, which computes no reference"
            )
        if self.domains and (self.calibration or self.imatrix is not None):
            raise EmoExportError(
                "--domain brings the calibration text of its own package; leave out --calibration "
                "and --imatrix"
            )
        if self.auto is not None and self.domains:
            raise EmoExportError("--keep auto finds one number: give it for --domain, as --keep 16")
        if self.auto is not None and not (self.calibration and self.golden):
            raise EmoExportError(
                "--keep auto needs --calibration to choose on, and no --no-golden, since it judges "
                "on held-out text"
            )
        if self.domains and self.selection is None:
            raise EmoExportError("--domain needs --keep: how many experts each domain gets")
        if self.targets.share_trunk and len(self.domains) < 2:
            raise EmoExportError("--share-trunk needs two --domain or more to share it")
        for name in self.domains:
            check_name(name)
        if len({name.casefold() for name in self.domains}) < len(self.domains):
            raise EmoExportError("--domain: two names differ in case alone, as folders may not")
        if self.selection is not None and not self.calibration and not self.domains:
            raise EmoExportError("--keep needs --calibration: text to choose the experts for")
        if self.calibration and self.imatrix is not None:
            raise EmoExportError("--calibration collects an importance matrix, --imatrix reads one")


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
    steps = steps or QUIET
    asked = _checked(specs, options)
    package, matrix = _package(checkpoint, asked, options, options.calibration, steps)
    probes, validate = _judging(package.product, asked, options, steps)
    made = export(
        package,
        output,
        probes,
        steps,
        validate=validate,
        device=options.device,
        overwrite=options.overwrite,
        resuming=_resuming(checkpoint, asked, options, [package], probes),
    )
    if matrix is not None:
        on_matrix(matrix)
    return made


def export_domain_packages(
    checkpoint: Checkpoint,
    output: Path,
    specs: Sequence[str],
    options: ExportOptions,
    steps: Steps | None = None,
    on_matrix: Callable[[ImportanceMatrix], None] = lambda matrix: None,
) -> dict[str, Exported]:
    """Export a package for each of the options' domains, in one pass over the checkpoint.

    By name, in `output / name`; else as `export_package`.
    """
    steps = steps or QUIET
    asked = _checked(specs, options)
    packages, matrices = {}, []
    for name, places in options.domains.items():
        packages[name], matrix = _package(checkpoint, asked, options, places, steps)
        matrices.append(matrix)
    if options.targets.share_trunk:
        packages = _with_one_trunk(packages)
    probes, validate = _judging(Product.whole(checkpoint), asked, options, steps)
    made = export_domains(
        packages,
        output,
        probes,
        steps,
        validate=validate,
        device=options.device,
        overwrite=options.overwrite,
        resuming=_resuming(checkpoint, asked, options, list(packages.values()), probes),
    )
    for matrix in matrices:
        if matrix is not None:
            on_matrix(matrix)
    return made


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


def resolve_auto(
    checkpoint: Checkpoint, options: ExportOptions, steps: Steps
) -> tuple[ExportOptions, Found]:
    """Find how many experts to keep, in a pass of its own: options that say so, and the table.

    Raises EmoExportError where no count that was tried is within the limit.
    """
    from emo_export.reference.probes import domain_names

    need(CONVERT, "convert", "export")
    options.check()
    auto = options.auto
    if auto is None:
        raise ValueError("the options say how many experts are kept")
    prepare_torch(options.device, checkpoint.nbytes)
    product = Product.whole(checkpoint)
    sample = read_sample(options.text(options.calibration), product)
    probes, _ = _judging(product, [], options, steps)
    if probes is None:
        raise ValueError("nothing to judge by")
    kinds = domain_names(sample.texts.files)
    found = find_keep(
        checkpoint,
        sample,
        kinds,
        auto.method,
        auto.seed,
        probes,
        auto.loss,
        steps,
        options.device,
    )
    keep = None if found.keep is None else Keep(found.keep)
    selection = None if keep is None else Selection(keep, auto.method, auto.seed)
    return replace(options, auto=None, selection=selection), found


def _checked(specs: Sequence[str], options: ExportOptions) -> list[Spec]:
    need(CONVERT, "convert", "export")
    options.check()
    return [Spec.parse(spec) for spec in specs]


def _package(
    checkpoint: Checkpoint,
    asked: Sequence[Spec],
    options: ExportOptions,
    places: tuple[Path, ...],
    steps: Steps,
) -> tuple[Package, ImportanceMatrix | None]:
    """What one folder is to hold, with calibration text from `places`; and its importance."""
    weighed = any(FAMILIES[spec.family].weighs_columns for spec in asked)
    product, choice = Product.whole(checkpoint), None
    calibration, matrix = None, None
    sequences: Sequence[Ids] = ()
    if options.selection is not None:
        product = options.selection.awaiting(checkpoint)
    if options.imatrix is not None:
        matrix = read_importance(options.imatrix, product, options.targets.arch)
    elif places:
        sample = read_sample(options.text(places), product)
        steps.on_texts(sample.texts)
        sequences = sample.sequences
        calibration = start_calibration(sample, product, options.device)
        # Text that is there to choose experts need not be of use to a quantiser, too.
        matrix = calibration.matrix if weighed or options.selection is None else None
    if options.selection is not None and calibration is not None:
        choice = start_choice(options.selection, calibration, checkpoint)
    measure = Measure(
        None if matrix is None else calibration or matrix,
        listeners=() if calibration is None else (calibration,),
        choice=choice,
        save=partial(_save, matrix, product, options.targets.arch),
    )
    make = target_maker(asked, product, options.targets, matrix)
    recipe = {
        "calibration text": digest_of(sequences),
        "choice of experts": str((options.selection, product.kept)),
        "importance matrix": "" if options.imatrix is None else digest(options.imatrix),
    }
    return Package(product, make, measure, recipe), matrix


def _judging(
    product: Product, asked: Sequence[Spec], options: ExportOptions, steps: Steps
) -> tuple[Probes | None, Validate | None]:
    """What an export is judged by, and what judges it; torch is made ready."""
    if options.golden or options.calibration or options.domains:
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
    return probes, partial(validate_new, on_stage=steps.on_stage) if validates else None


def _resuming(
    checkpoint: Checkpoint,
    asked: Sequence[Spec],
    options: ExportOptions,
    packages: Sequence[Package],
    probes: Probes | None,
) -> Resuming:
    """All that the files of an export depend on."""
    target = str([*map(str, asked), options.targets, options.validate, options.device])
    recipe = _recipe(checkpoint, target, probes)
    for name in packages[0].recipe:
        recipe[name] = str([package.recipe[name] for package in packages])
    return Resuming(recipe, options.resume)


def _recipe(checkpoint: Checkpoint, target: str, probes: Probes | None) -> dict[str, str]:
    """What all files made of a checkpoint depend on, by what a user calls it."""
    files = [*checkpoint.files, checkpoint.path / "config.json"]
    stats = [(file.name, file.stat().st_size, file.stat().st_mtime_ns) for file in files]
    return {
        "checkpoint": str([str(checkpoint.path.resolve()), *stats]),
        "version": str(sorted(tool_versions().items())),
        "target": target,
        "held-out text": "" if probes is None else digest_of(probes.sequences),
    }


def start_choice(selection: Selection, calibration: Calibration, source: Source) -> Choice:
    """What chooses the experts of a product by the text that goes along."""
    from emo_export.selection.choice import Choice

    return Choice(calibration.states, source.config, selection)


def prune_checkpoint(
    checkpoint: Checkpoint, output: Path, options: PruneOptions, steps: Steps
) -> Pruned:
    """A checkpoint with the experts that a text needs. Raises EmoExportError."""
    need(["torch"], "convert", "prune")
    prepare_torch(options.device, checkpoint.nbytes)
    product = options.selection.awaiting(checkpoint)
    sample = read_sample(options.text, product)
    steps.on_texts(sample.texts)
    calibration = start_calibration(sample, product, options.device)
    choice = start_choice(options.selection, calibration, checkpoint)
    probes = _loss_probes(product, options, steps)
    writing = partial(make_safetensors, product, max_shard_size=options.max_shard_size)
    recipe = _recipe(checkpoint, str((options.max_shard_size, options.device)), probes)
    recipe["calibration text"] = digest_of(sample.sequences)
    recipe["choice of experts"] = str(options.selection)
    return prune(
        product,
        output,
        writing,
        calibration,
        choice,
        probes,
        steps,
        options.device,
        Resuming(recipe, options.resume),
    )


def judge_domains(
    checkpoint: Checkpoint,
    options: DomainOptions,
    selections: Sequence[Selection],
    steps: Steps,
) -> list[Chosen]:
    """Choose on each file of the calibration text, and on all together; judge on each kind."""
    from emo_export.reference.probes import choose_probes, domain_names

    prepare_torch(options.device, checkpoint.nbytes)
    product = Product.whole(checkpoint)
    texts = find_texts(options.calibration)
    steps.on_texts(texts)
    names = domain_names(texts.files)
    places: dict[str, tuple[Path, ...]] = {
        name: (file,) for name, file in zip(names, texts.files, strict=True)
    }
    if len(places) > 1:
        places[ALL] = tuple(texts.files)
    samples = {
        name: read_sample(
            CalibrationText(
                files, options.calibration_tokens * len(files), options.seed, options.text_field
            ),
            product,
        )
        for name, files in places.items()
    }
    heldout = heldout_texts(options.heldout, product.path)
    steps.on_texts(heldout)
    field = options.text_field if options.heldout else FIELD
    probes = choose_probes(product, heldout.files, options.heldout_tokens, None, field)
    return choose_on_each(checkpoint, samples, selections, probes, steps, options.device)


def prune_target(
    path: Path, targets: Sequence[str], output: Path, options: PruneOptions, steps: Steps
) -> Pruned:
    """A .gguf file or an ONNX folder with the experts that a text needs, its bytes copied.

    `path` is one, or an exported folder with one target or with one of `targets`. The result, at
    `output`, is of the same kind. Raises EmoExportError.
    """
    need(["torch"], "convert", "prune")
    folder, found = chosen_targets(path, targets)
    if len(found) != 1:
        raise EmoExportError(
            f"{path}: has {len(found)} targets, {', '.join(found)}; choose one with --target"
        )
    entry = next(iter(found.values()))
    package = FAMILIES[entry.spec.family].package(entry, folder / entry.path)
    prepare_torch(options.device, package.nbytes)
    product = options.selection.awaiting(package)
    with package.tokenizer() as encode:
        sample = read_sample(options.text, product, encode)
        steps.on_texts(sample.texts)
        probes = _loss_probes(product, options, steps, encode)
    calibration = start_calibration(sample, product, options.device)
    choice = start_choice(options.selection, calibration, package)
    return prune_package(
        package, product, output, calibration, choice, probes, steps, options.device
    )


def _loss_probes(
    product: Product, options: PruneOptions, steps: Steps, encode: Encode | None = None
) -> Probes | None:
    """The held-out text on which the loss is measured, if it is."""
    if not options.loss:
        return None
    from emo_export.reference.probes import choose_probes

    heldout = heldout_texts(options.heldout, product.path)
    steps.on_texts(heldout)
    field = options.text.field if options.heldout else FIELD
    return choose_probes(product, heldout.files, options.heldout_tokens, None, field, encode)


def digest_of(sequences: Sequence[Ids]) -> str:
    """SHA-256 of token ids (T,) each."""
    found = hashlib.sha256()
    for ids in sequences:
        found.update(len(ids).to_bytes(8, "little") + np.ascontiguousarray(ids, "<i8").tobytes())
    return found.hexdigest()


def _save(matrix: ImportanceMatrix | None, product: Product, arch: str | None, to: Path) -> None:
    if matrix is not None:
        save_importance(to, matrix, product, arch)


def fresh_golden(
    checkpoint: Checkpoint,
    device: str,
    steps: Steps,
    folder: Path,
    targets: Mapping[str, TargetEntry],
    stored: Golden | None,
    kept: Sequence[Sequence[int]] | None = None,
) -> tuple[Golden, dict[str, EmoExportError]]:
    """The reference computed now, on the token ids of the stored golden where there is one.

    The weights of each target are read back from its file; with it the targets of which that
    can't be done (damaged, or of another model), and why. `kept`: the experts of the checkpoint
    that the targets have (None: all).
    """
    from emo_export.reference.probes import Probes, choose_probes

    product = Product.whole(checkpoint) if kept is None else Product.keeping(checkpoint, kept)
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
    (run,) = run_floats([Line(product)], probes, steps.on_bytes, device)
    golden = golden_of(run, artifacts, probes, steps, device, unreadable)
    return golden, unreadable


def heldout_texts(given: Sequence[Path], source: Path) -> Texts:
    """The files named, the files of the folders named, or those of a checkpoint's heldout/."""
    inside = source / "heldout"
    return find_texts(given or ([inside] if inside.is_dir() else []))


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
