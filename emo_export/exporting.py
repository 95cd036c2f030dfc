"""The main job: one pass over a checkpoint into every target, with golden logits and manifest."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export import __version__
from emo_export.base.disk import check_space, size_of, writing
from emo_export.card import model_card
from emo_export.card_running import modelfile, modelfile_name
from emo_export.errors import EmoExportError
from emo_export.files.manifest import Manifest, digest, staging, write_manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import F32, Writer
from emo_export.model.chat_templates import DEFAULT, chat_templates
from emo_export.model.names import Slot
from emo_export.model.product import Product
from emo_export.model.scheme import QuantScheme
from emo_export.parity.golden import FULL, ORIGINAL, Golden
from emo_export.parity.result import Result, as_json
from emo_export.pipeline import Choosing, Line, Listener, Measured, Output, stream

if TYPE_CHECKING:
    from emo_export.reference.probes import Probes
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

    @property
    def name(self) -> str:
        """`gguf:q4_0`."""
        return str(self.entry.spec)

    @property
    def nbytes(self) -> int:
        """Bytes of all declared tensors."""
        return sum(decl.nbytes for decl in self.writer.declarations())

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
    """What `export` made: the manifest and the parity of each target (empty: not validated)."""

    manifest: Manifest
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

    `listeners` go along over the float weights of the product; `choice` tells which experts it has.
    """

    measured: Measured | None = None
    listeners: Sequence[Listener] = ()
    choice: Choosing | None = None
    save: Callable[[Path], None] = lambda folder: None


NOTHING = Measure()


def export(
    product: Product,
    out: Path,
    make_targets: Callable[[Path], Sequence[Target]],
    probes: Probes | None,
    steps: Steps,
    *,
    validate: Validate | None,
    measure: Measure = NOTHING,
    device: str = "cpu",
    overwrite: bool = False,
) -> Exported:
    """Export to every target; `out` appears only when everything in it is whole.

    Without `probes` there is no reference, no golden.npz and nothing to validate. Parity outside
    the tolerance doesn't hide the result: it is in the folder's parity.json and card, and in the
    returned results. Raises EmoExportError with nothing left behind.
    """
    with staging(out, overwrite) as folder:
        targets = make_targets(folder)
        steps.on_start(targets, product.source.nbytes)
        variants = len(targets) + (0 if product.is_whole else 1)
        golden_bytes = 0 if probes is None else probes.golden_bytes(variants, product.config)
        check_space(out, sum(target.nbytes for target in targets) + golden_bytes)
        golden = _write_targets(product, targets, probes, steps, device, measure)
        measure.save(folder)
        entries = {target.name: target.entry for target in targets}
        results: Sequence[Result] = ()
        if golden is not None:
            golden.save(folder / "golden.npz")
        if golden is not None and validate is not None:
            steps.on_stage("validating with the engines (an interrupt now discards the export)")
            results = validate(folder, entries, golden)
            write_parity(folder / "parity.json", results)
        source = _source(product)
        sizes = {spec: size_of(folder / entry.path) for spec, entry in entries.items()}
        title = out.name.encode("utf-8", "replace").decode("utf-8")
        card = model_card(product, title, entries, sizes, results)
        with writing(folder / "README.md"):
            (folder / "README.md").write_text(card, encoding="utf-8")
        _write_modelfiles(folder, entries, product.path)
        manifest = write_manifest(folder, source, _tools(), entries)
    return Exported(manifest, tuple(results))


def _write_modelfiles(folder: Path, entries: Mapping[str, TargetEntry], source: Path) -> None:
    """A Modelfile for Ollama beside each GGUF file."""
    has_template = DEFAULT in chat_templates(source)
    for entry in entries.values():
        if entry.context is not None:  # told of GGUF alone
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


def make_golden(
    product: Product,
    artifacts: Mapping[str, Callable[[], Rows]],
    probes: Probes,
    steps: Steps,
    device: str,
    making: Line | None = None,
    on_streamed: Callable[[], None] = lambda: None,
    unreadable: dict[str, EmoExportError] | None = None,
) -> Golden:
    """The reference on the float weights, while `making` goes along, and on what artifacts hold.

    Of a product that leaves experts out, the full model has a variant of its own. `on_streamed` is
    called between the two, to finish the files that are then read back. A weight of an artifact is
    read only where a token needs it. `unreadable` gets why an artifact can't be read, which then
    has no variant; without it that is raised, as EmoExportError.
    """
    from emo_export.reference.passes import greedy
    from emo_export.reference.probes import VariantSink

    config = product.config
    making = making or Line(product)
    original = VariantSink(config, probes)
    lines = [replace(making, listeners=[*making.listeners, original.listening(device)])]
    full = None if product.is_whole else VariantSink(product.source.config, probes)
    if full is not None:
        lines.append(Line(Product.whole(product.source), listeners=[full.listening(device)]))
    stream(lines, steps.on_bytes)
    on_streamed()
    variants = {ORIGINAL: original.variant()}
    if full is not None:
        variants[FULL] = full.variant()
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
        usage=original.usage,
    )


def _write_targets(
    product: Product,
    targets: Sequence[Target],
    probes: Probes | None,
    steps: Steps,
    device: str,
    measure: Measure,
) -> Golden | None:
    writers = [target.writer for target in targets]
    outputs = [Output(writer, measure.measured) for writer in writers]
    making = Line(product, outputs, measure.listeners, measure.choice)
    golden = None

    def close() -> None:
        steps.on_stage("flushing to disk")
        for writer in writers:
            writer.close()

    try:
        for writer in writers:
            writer.open()
        if probes is None:
            stream([making], steps.on_bytes)
            close()
        else:
            artifacts = {t.name: t.read_back for t in targets if not t.is_lossless}
            golden = make_golden(product, artifacts, probes, steps, device, making, close)
    except BaseException:
        for writer in writers:
            writer.abort()
        raise
    return golden


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


def _tools() -> dict[str, str]:
    found = {"emo-export": __version__}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
