"""The main job: one pass over a checkpoint into every target, with golden logits and manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export import __version__
from emo_export.base.disk import check_space, size_of, writing
from emo_export.card import model_card
from emo_export.card_running import modelfile, modelfile_name
from emo_export.errors import EmoExportError
from emo_export.files.domains import check_links, share, write_domains
from emo_export.files.manifest import Manifest, digest, write_manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import F32, Writer
from emo_export.model.chat_templates import DEFAULT, chat_templates
from emo_export.model.names import Slot
from emo_export.model.product import Product
from emo_export.model.scheme import QuantScheme
from emo_export.parity.golden import FULL, ORIGINAL, Golden
from emo_export.parity.result import Result, as_json
from emo_export.pipeline import (
    Choosing,
    Line,
    Listener,
    Measured,
    Output,
    Saving,
    Traffic,
    TrunkMeasured,
    stream,
)
from emo_export.resuming import Progress, Resuming, staged

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes, VariantSink
    from emo_export.text.places import Texts

TOOLS = ("torch", "numpy", "gguf", "onnx", "onnxruntime", "xllamacpp", "tokenizers")


@dataclass(frozen=True)
class Target:
    """One output: what the manifest says of it, what writes it and with which formats.

    `read_back` gives the weights that the finished file holds.
    """

    entry: TargetEntry
    writer: Writer
    scheme: QuantScheme
    read_back: Callable[[], Rows]
    trunk: Collection[str] = ()
    """The tensors in its entry's trunk."""
    domain: str = ""
    """The domain whose folder it goes to, where an export makes several."""

    @property
    def name(self) -> str:
        """`gguf:q4_0`."""
        return str(self.entry.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all declared tensors."""
        return sum(decl.nbytes for decl in self.writer.declarations())

    @property
    def trunk_nbytes(self) -> int:
        """Bytes of the trunk's tensors."""
        decls = self.writer.declarations()
        return sum(decl.nbytes for decl in decls if decl.name in self.trunk)

    @property
    def is_lossless(self) -> bool:
        """Every matrix keeps float32, so the dequantised reference is the original's."""
        return all(kind.name == "f32" for kind in self.scheme.formats.values())


@dataclass(frozen=True)
class Steps:
    """What the caller hears of while the work goes on."""

    on_start: Callable[[Sequence[Target], int], None]
    on_bytes: Callable[[int], None]
    on_stage: Callable[[str], None]
    on_texts: Callable[[Texts], None] = lambda texts: None


QUIET = Steps(lambda targets, nbytes: None, lambda count: None, lambda text: None)


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


Rows = Callable[[Slot, int, int], F32]
"""(slot, first row, end row) -> rows (end - first, C) float32."""
Validate = Callable[[Path, Mapping[str, TargetEntry], Golden], Sequence[Result]]


@dataclass(frozen=True)
class Measure:
    """What is measured on the way: `measured` tells quantisers of inputs, `save` keeps it.

    `trunk` tells them, instead, of the inputs of matrices that several packages share.

    `listeners` go along over the float weights of the product; `choice` tells which experts it has.
    """

    measured: Measured | None = None
    trunk: TrunkMeasured | None = None
    listeners: Sequence[Listener] = ()
    choice: Choosing | None = None
    save: Callable[[Path], None] = lambda folder: None


NOTHING = Measure()


@dataclass(frozen=True)
class Package:
    """What one exported folder is to hold: targets of a product, and what is measured for them."""

    product: Product
    make_targets: Callable[[Path], Sequence[Target]]
    measure: Measure = NOTHING
    recipe: Mapping[str, str] = field(default_factory=dict)
    """What it depends on beside the source and the options, by what a user calls it."""


def export(
    package: Package,
    out: Path,
    probes: Probes | None,
    steps: Steps,
    *,
    validate: Validate | None,
    device: str = "cpu",
    overwrite: bool = False,
    resuming: Resuming | None = None,
) -> Exported:
    """Export to every target; `out` appears only when everything in it is whole.

    Without `probes` there is no reference, no golden.npz and nothing to validate. Parity outside
    the tolerance doesn't hide the result: it is in the folder's parity.json and card, and in the
    returned results. Raises EmoExportError with nothing left behind. Interrupted with `resuming`,
    it leaves a hidden folder that the same call goes on with.
    """
    with staged(out, overwrite, steps.on_stage, resuming) as (folder, progress):
        begun = _Begun(package, folder, _title(out), package.make_targets(folder), steps)
        (made,) = _make([begun], out, probes, steps, validate, device, progress)
    return made


def export_domains(
    packages: Mapping[str, Package],
    out: Path,
    probes: Probes | None,
    steps: Steps,
    *,
    validate: Validate | None,
    device: str = "cpu",
    overwrite: bool = False,
    resuming: Resuming | None = None,
) -> dict[str, Exported]:
    """Export several products of one source in one pass over it, each to a folder in `out`.

    Each folder is what `export` would make of its package; they appear together. Raises as
    `export` does.
    """
    with staged(out, overwrite, steps.on_stage, resuming) as (folder, progress):
        begun = []
        for name, package in packages.items():
            inside = folder / name
            inside.mkdir(exist_ok=True)
            targets = [replace(one, domain=name) for one in package.make_targets(inside)]
            title = f"{_title(out)}, {name}"
            begun.append(_Begun(package, inside, title, targets, _prefixed(steps, name)))
        if any(target.entry.trunk is not None for one in begun for target in one.targets):
            check_links(folder)
        made = _make(begun, out, probes, steps, validate, device, progress)
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


def _title(out: Path) -> str:
    return out.name.encode("utf-8", "replace").decode("utf-8")


def _prefixed(steps: Steps, domain: str) -> Steps:
    return replace(steps, on_stage=lambda text: steps.on_stage(f"{domain}: {text}"))


def _make(
    begun: Sequence[_Begun],
    out: Path,
    probes: Probes | None,
    steps: Steps,
    validate: Validate | None,
    device: str,
    progress: Progress | None,
) -> list[Exported]:
    source = begun[0].package.product.source
    needed = 0
    for one in begun:
        product, variants = one.package.product, len(one.targets)
        needed += sum(target.nbytes for target in one.targets)
        if probes is not None:
            variants += 0 if product.is_whole else 1
            needed += probes.golden_bytes(variants, product.config)
    steps.on_start([target for one in begun for target in one.targets], source.nbytes)
    traffic = Traffic()
    if progress is None or not progress.blocks:  # else the files are there, at their full size
        check_space(out, needed)
    runs = _write_targets(begun, probes, steps, device, traffic, progress)
    for one in begun[1:]:
        for target, first in zip(one.targets, begun[0].targets, strict=True):
            if target.entry.trunk is not None and first.entry.trunk is not None:
                share(begun[0].folder / first.entry.trunk, one.folder / target.entry.trunk)
    return [
        _finish(one, run, probes, validate, device, traffic)
        for one, run in zip(begun, runs, strict=True)
    ]


def _finish(
    begun: _Begun,
    run: FloatRun | None,
    probes: Probes | None,
    validate: Validate | None,
    device: str,
    traffic: Traffic,
) -> Exported:
    """Everything of a folder that comes after its weights; the manifest last."""
    folder, product, steps = begun.folder, begun.package.product, begun.steps
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
    sizes = {
        spec: sum(size_of(folder / path) for path in entry.paths) for spec, entry in entries.items()
    }
    card = model_card(product, begun.title, entries, sizes, results)
    with writing(folder / "README.md"):
        (folder / "README.md").write_text(card, encoding="utf-8")
    _write_modelfiles(folder, entries, product.path)
    manifest = write_manifest(folder, _source(product), tool_versions(), entries)
    return Exported(manifest, traffic, tuple(results))


def _write_modelfiles(folder: Path, entries: Mapping[str, TargetEntry], source: Path) -> None:
    """A Modelfile for Ollama beside each GGUF file."""
    has_template = DEFAULT in chat_templates(source)
    for entry in entries.values():
        if entry.context is not None and entry.trunk is None:  # told of GGUF alone, in one file
            path = folder / modelfile_name(entry.path)
            with writing(path):
                path.write_text(modelfile(entry.path, entry.context, has_template), "utf-8")


def write_parity(path: Path, results: Sequence[Result]) -> None:
    """Write parity.json: every comparison with its figures, limits and verdict."""
    # A list of numbers is easier to read, and shorter, on one line; no string has a line break.
    text = re.sub(
        r"\[\n[-+\d.eE,\snul]*\]",
        lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"),
        json.dumps(as_json(results), indent=2),
    )
    with writing(path):
        path.write_text(text + "\n", encoding="utf-8")


@dataclass(frozen=True)
class FloatRun:
    """What the float weights of a product say of the probes, and those of the full model.

    `full` is None for a product that leaves nothing out.
    """

    product: Product
    original: VariantSink
    full: VariantSink | None


def run_floats(
    lines: Sequence[Line],
    probes: Probes,
    on_bytes: Callable[[int], None],
    device: str,
    traffic: Traffic | None = None,
    saving: Saving | None = None,
) -> list[FloatRun]:
    """Stream lines of one source with the probes going along, the full model's once for all."""
    from emo_export.reference.probes import VariantSink

    whole = Product.whole(lines[0].product.source)
    full, beside = None, []
    if not all(line.product.is_whole for line in lines):
        full = VariantSink(whole.config, probes)
        beside = [Line(whole, listeners=[full.listening(device)])]
    runs, heard = [], []
    for line in lines:
        original = VariantSink(line.product.config, probes)
        runs.append(FloatRun(line.product, original, None if line.product.is_whole else full))
        heard.append(replace(line, listeners=[*line.listeners, original.listening(device)]))
    stream([*heard, *beside], on_bytes, traffic, saving)
    return runs


def golden_of(
    run: FloatRun,
    artifacts: Mapping[str, Callable[[], Rows]],
    probes: Probes,
    steps: Steps,
    device: str,
    unreadable: dict[str, EmoExportError] | None = None,
) -> Golden:
    """The reference of a product, whose float weights have been run, and on what artifacts hold.

    A weight of an artifact is read only where a token needs it. `unreadable` gets why an artifact
    can't be read, which then has no variant; without it that is raised, as EmoExportError.
    """
    from emo_export.reference.passes import greedy
    from emo_export.reference.probes import VariantSink

    product, config = run.product, run.product.config
    variants = {ORIGINAL: run.original.variant()}
    if run.full is not None:
        variants[FULL] = run.full.variant()
    for spec, read_back in artifacts.items():
        steps.on_stage(f"reference on the weights that {spec} holds")
        sink = VariantSink(config, probes)
        try:
            sink.listening(device).run(read_back())
        except EmoExportError as error:
            if unreadable is None:
                raise
            unreadable[spec] = error
        else:
            variants[spec] = sink.variant()
    steps.on_stage("greedy text of the reference")
    prompt, steps_after = probes.greedy_prompt, probes.greedy_steps
    return Golden(
        input_ids=probes.input_ids,
        heldout_ids=probes.heldout_ids,
        heldout_source=probes.heldout_source,
        text=probes.text,
        text_ids=probes.text_ids,
        stop_ids=probes.stop_ids,
        greedy_prompt=prompt,
        greedy=greedy(config, product.rows, prompt, steps_after, device),
        variants=variants,
        domains=probes.domains,
        usage=run.original.usage,
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
    lines = []
    for one in begun:
        measure = one.package.measure
        outputs = [
            Output(target.writer, measure.measured, trunk=measure.trunk) for target in one.targets
        ]
        lines.append(Line(one.package.product, outputs, measure.listeners, measure.choice))
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


def _source(product: Product) -> dict[str, Any]:
    """Where the weights came from, with enough to recognise them again."""
    checkpoint = product.source
    return {
        "name": checkpoint.path.name,
        "config_sha256": digest(checkpoint.path / "config.json"),
        "files": {file.name: file.stat().st_size for file in checkpoint.files},
        "pruning": product.pruning,
        "kept": None if product.is_whole else product.all_kept,
    }


def tool_versions() -> dict[str, str]:
    """Of this program and of what it converts with."""
    found = {"emo-export": __version__}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
