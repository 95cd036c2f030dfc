"""The main job: one pass over a source into every target, with golden logits and manifest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.disk import allocated, check_space, free_on
from emo_export.exporting.float_runs import FloatRun, golden_of, run_floats
from emo_export.exporting.folder import complete, write_parity
from emo_export.exporting.package import ALONE, Package
from emo_export.exporting.provenance import Provenance
from emo_export.exporting.steps import Steps
from emo_export.exporting.target import Target
from emo_export.files.domains import check_links, share, write_domains
from emo_export.files.manifest import Manifest, is_export
from emo_export.files.target_entry import TargetEntry
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result
from emo_export.pipeline import Saving, Traffic, stream
from emo_export.resuming import Progress, Resuming, staged

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes

Validate = Callable[[Path, Mapping[str, TargetEntry], Golden], Sequence[Result]]


@dataclass(frozen=True)
class Exported:
    """What `export` made: the manifest and the parity of each target (empty: not validated).

    `traffic` is of the one pass over the weights, whatever else was made in it.
    """

    manifest: Manifest
    traffic: Traffic
    results: tuple[Result, ...] = field(default=())

    @property
    def passed(self) -> bool:
        """Every target was judged and is within its limits."""
        return all(result.passed for result in self.results)


def export(
    packages: Mapping[str, Package],
    out: Path,
    probes: Probes | None,
    steps: Steps,
    *,
    validate: Validate | None,
    provenance: Provenance,
    device: str = "cpu",
    overwrite: bool = False,
    resuming: Resuming | None = None,
) -> dict[str, Exported]:
    """Export packages of one source in one pass; `out` appears only when all in it is whole.

    `packages` go to a folder in `out` each, by the name of a domain; a package that is
    `ALONE` is `out` itself. Without `probes` there is no reference, no golden.npz and nothing to
    validate. Parity outside the tolerance doesn't hide the result: it is in the folder's
    parity.json and card, and in the returned results. Raises EmoExportError with nothing left
    behind. Interrupted with `resuming`, it leaves a hidden folder that the same call goes on with.
    """
    with staged(out, overwrite, is_export, steps.on_stage, resuming) as (folder, progress):
        begun = [_begin(name, package, folder, out, steps) for name, package in packages.items()]
        if any(target.entry.trunk is not None for one in begun for target in one.targets):
            check_links(folder)
        _check_space(begun, folder, out, probes, progress, validate, steps)
        targets = [target for one in begun for target in one.targets]
        steps.on_start(targets, begun[0].package.product.source.nbytes)
        traffic = Traffic()
        runs = _write_targets(begun, probes, steps, device, traffic, progress)
        _share_trunks(begun)
        made = [
            _finish(one, run, probes, validate, device, traffic, provenance)
            for one, run in zip(begun, runs, strict=True)
        ]
        if ALONE not in packages:
            write_domains(folder, list(packages))
    return dict(zip(packages, made, strict=True))


@dataclass(frozen=True)
class _Begun:
    """A package whose files have a place."""

    package: Package
    folder: Path
    title: str
    targets: Sequence[Target]
    steps: Steps


def _begin(domain: str, package: Package, folder: Path, out: Path, steps: Steps) -> _Begun:
    inside = folder / domain
    inside.mkdir(exist_ok=True)
    title = out.name.encode("utf-8", "replace").decode("utf-8")
    targets = [replace(target, domain=domain) for target in package.make_targets(inside)]
    return _Begun(
        package, inside, f"{title}, {domain}" if domain else title, targets, steps.of_domain(domain)
    )


def _check_space(
    begun: Sequence[_Begun],
    folder: Path,
    out: Path,
    probes: Probes | None,
    progress: Progress | None,
    validate: Validate | None,
    steps: Steps,
) -> None:
    """Of the targets, golden.npz, and what the last step, validating, takes in TMPDIR for a while.

    The latter is told alone: a target is then not compared with exact arithmetic.
    """
    needed = -allocated(folder)  # what an interrupted run has written
    for one in begun:
        product, variants = one.package.product, len(one.targets)
        needed += sum(target.nbytes for target in one.targets)
        if probes is not None:
            variants += 0 if product.is_whole else 1
            needed += probes.golden_bytes(variants, product.config)
    check_space(out, needed)
    if progress is not None:
        progress.needed = needed
    twin = max((target.twin_nbytes for one in begun for target in one.targets), default=0)
    temporary = Path(tempfile.gettempdir())
    disk, free = free_on(temporary)
    free -= needed if disk == free_on(folder)[0] else 0
    if validate is not None and probes is not None and free < twin:
        steps.on_stage(
            f"{temporary}: has {free / 1e6:.1f} MB free, and comparing GGUF with exact arithmetic "
            f"needs {twin / 1e6:.1f} MB: it will be left out; set TMPDIR to a larger disk"
        )


def _write_targets(
    begun: Sequence[_Begun],
    probes: Probes | None,
    steps: Steps,
    device: str,
    traffic: Traffic,
    saving: Saving | None,
) -> Sequence[FloatRun | None]:
    """Write every target of all packages in one pass."""
    writers = [target.writer for one in begun for target in one.targets]
    lines = [one.package.line(one.targets) for one in begun]
    runs: Sequence[FloatRun | None] = [None] * len(lines)
    try:
        for writer in writers:
            writer.open()
        if probes is None:
            stream(lines, steps.on_bytes, traffic, saving)
        else:
            runs = run_floats(lines, probes, steps.on_bytes, device, traffic, saving)
        steps.on_stage("flushing to disk")
        for writer in writers:
            writer.close()
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return runs


def _share_trunks(begun: Sequence[_Begun]) -> None:
    """Store what is equal in all packages once: under the first one's name and the others'."""
    for one in begun[1:]:
        for target, first in zip(one.targets, begun[0].targets, strict=True):
            if target.entry.trunk is not None and first.entry.trunk is not None:
                share(begun[0].folder / first.entry.trunk, one.folder / target.entry.trunk)


def _finish(
    begun: _Begun,
    run: FloatRun | None,
    probes: Probes | None,
    validate: Validate | None,
    device: str,
    traffic: Traffic,
    provenance: Provenance,
) -> Exported:
    """Everything of a folder that comes after its weights; the manifest last."""
    folder, steps = begun.folder, begun.steps
    begun.package.measure.save(folder)
    entries = {target.name: target.entry for target in begun.targets}
    results: Sequence[Result] = ()
    if run is not None and probes is not None:
        artifacts = {t.name: t.read_back for t in begun.targets if not t.is_lossless}
        golden = golden_of(run, artifacts, probes, steps, device)
        steps.on_stage("writing golden.npz")
        golden.save(folder / "golden.npz")
        if validate is not None:
            steps.on_stage("validating with the engines")
            results = validate(folder, entries, golden)
            write_parity(folder / "parity.json", results)
    steps.on_stage("computing digests")
    package = begun.package
    origin = provenance.origin(package.product, package.facts)
    manifest = complete(folder, package.product, begun.title, entries, results, origin)
    return Exported(manifest, traffic, tuple(results))
