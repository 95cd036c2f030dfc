"""What a path is: a checkpoint, a .gguf, an exported ONNX folder or a whole exported folder.

Only headers, JSON and a few rows of weights are read. Facts are what the files say; warnings and
findings are what is wrong in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.domains import NAME as DOMAINS
from emo_export.files.domains import is_domains, read_domains
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.inspect.finding import Finding
from emo_export.inspect.gguf import gguf_inspection
from emo_export.inspect.onnx import MODEL, has_tokenizer, onnx_facts
from emo_export.model.chat_templates import chat_templates
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import DEFAULT_CONTEXT, EmoConfig, LayerShape
from emo_export.model.names import shape_of, slots
from emo_export.model.notes import Note
from emo_export.model.scheme import part_of
from emo_export.parity.result import NOT_ENOUGH

ACCEPTED = (
    "a Hugging Face checkpoint folder (config.json), a .gguf file, an ONNX folder "
    f"({MODEL}) or a folder that export made ({MANIFEST}, {DOMAINS})"
)
NESTED = "contents"  # the key of facts of a package's targets

Row = tuple[str, str, str]


@dataclass(frozen=True)
class Inspection:
    """What was found: `kind` is checkpoint, gguf, onnx, package or domains.

    `facts` can go into JSON.

    `notes` tell what is unusual in a checkpoint and yet certain.
    `judgement` (one line) and `findings` are there for GGUF files, alone or in a package; the
    findings that are more than notes are among the warnings, too.
    """

    kind: str
    title: str
    facts: Mapping[str, Any]
    warnings: list[str] = field(default_factory=list)
    judgement: str = ""
    findings: list[Finding] = field(default_factory=list)
    notes: tuple[Note, ...] = ()

    @property
    def rows(self) -> list[Row]:
        """The facts as lines of a table: section, name, value."""
        return [row for section, value in self.facts.items() for row in _rows(section, value)]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)


def inspect_path(path: Path, expressible: Mapping[str, str] | None = None) -> Inspection:
    """Tell what a path is. `expressible` (target -> verdict) is added to a checkpoint's facts.

    Raises EmoExportError when it is nothing known, or so damaged that nothing can be said of it.
    """
    try:
        return _inspect(path, expressible or {})
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error


def _inspect(path: Path, expressible: Mapping[str, str]) -> Inspection:
    warnings: list[str] = []
    if path.is_dir():
        if (path / MANIFEST).is_file():
            return _package(path)
        if is_domains(path):
            return _domains(path)
        if (path / MODEL).is_file():
            facts = onnx_facts(path, warnings)
            return Inspection("onnx", f"ONNX folder {path}", facts, warnings)
        if (path / "config.json").is_file():
            return _checkpoint(path, expressible)
        held = ", ".join(sorted(p.name for p in path.iterdir())[:5]) or "nothing"
        raise EmoExportError(f"{path}: is a folder with {held}; expected {ACCEPTED}")
    if path.is_file() and path.suffix == ".gguf":
        facts, judgement, findings = gguf_inspection(path)
        warnings += [finding.text for finding in findings if finding.level != "note"]
        return Inspection("gguf", f"GGUF file {path}", facts, warnings, judgement, findings)
    if path.is_file() and path.name == MODEL:
        return _inspect(path.parent, expressible)
    found = "is no model" if path.is_file() else "is neither a file nor a folder"
    if path.suffix == ".npz":
        found = "holds the reference's logits; inspect the folder that it lies in"
    raise EmoExportError(f"{path}: {found}; expected {ACCEPTED}")


def _checkpoint(path: Path, expressible: Mapping[str, str]) -> Inspection:
    config = EmoConfig.from_json(path / "config.json")
    found = Inspection("checkpoint", f"EMO checkpoint {path}", facts := _model(config))
    warn = found.warnings.append
    if config.max_position_embeddings < 0:
        warn(
            "max_position_embeddings is -1 (unknown): export takes "
            f"{DEFAULT_CONTEXT} unless --context says otherwise"
        )
    notes: tuple[Note, ...] = ()
    try:
        checkpoint = Checkpoint.open(path)
    except EmoExportError as error:
        warn(str(error))
    else:
        notes = checkpoint.notes
        facts["storage"] = {
            "types": dict(Counter(tensor.dtype for tensor in checkpoint.values())),
            "bytes": checkpoint.nbytes,
            "files": len(checkpoint.files),
        }
        parts: Counter[str] = Counter()
        for slot in slots(config):
            parts[part_of(slot, config).value] += checkpoint.at(slot).nbytes
        facts["bytes_by_part"] = dict(parts)
    facts["pruning"] = _pruning(path, config, found.warnings)
    facts["tokenizer"] = {"present": has_tokenizer(path, found.warnings)}
    try:
        facts["tokenizer"]["chat_templates"] = list(chat_templates(path))
    except EmoExportError as error:
        warn(str(error))
    if not _has_eos(path, config, found.warnings):
        warn("no eos_token_id in config.json or generation_config.json: text would not end")
    if expressible:
        facts["targets"] = dict(expressible)
    return replace(found, notes=notes)


def _has_eos(path: Path, config: EmoConfig, warnings: list[str]) -> bool:
    file = path / "generation_config.json"
    other = _json(file, warnings).get("eos_token_id") if file.is_file() else None
    return bool(config.eos_token_ids) or other is not None


def _json(path: Path, warnings: list[str]) -> Mapping[str, Any]:
    """A JSON object; an empty one and a warning when it is damaged."""
    try:
        return read_json(path)
    except EmoExportError as error:
        warnings.append(str(error))
        return {}


def _model(config: EmoConfig) -> dict[str, Any]:
    """Shape, parameters and experts. Active: the weights that a token reads (one embedding row)."""
    total = sum(math.prod(shape_of(slot, config)) for slot in slots(config))
    expert = 3 * config.hidden_size * config.intermediate_size
    sparse = [layer for layer in config.layers if not layer.is_dense]
    idle = sum(layer.num_experts - layer.num_experts_per_tok for layer in sparse) * expert
    if not config.tie_word_embeddings:
        idle += (config.vocab_size - 1) * config.hidden_size
    names = (
        "num_hidden_layers hidden_size intermediate_size dense_intermediate_size "
        "num_attention_heads num_key_value_heads head_dim vocab_size tie_word_embeddings"
    ).split()
    shape = {name: getattr(config, name) for name in names}
    shape |= {"max_position_embeddings": config.max_position_embeddings}
    shape |= {"context": config.context_length()}
    experts = [
        {"layers": f"{first}-{last}" if last > first else str(first), **_experts(layer)}
        for layer, first, last in _runs(config.layers)
    ]
    parameters = {"total": total, "active_per_token": total - idle}
    return {"shape": shape, "parameters": parameters, "experts": experts}


def _runs(layers: tuple[LayerShape, ...]) -> Iterable[tuple[LayerShape, int, int]]:
    for layer, run in groupby(enumerate(layers), key=lambda pair: pair[1]):
        numbers = [index for index, _ in run]
        yield layer, numbers[0], numbers[-1]


def _experts(layer: LayerShape) -> dict[str, Any]:
    if layer.is_dense:
        return {"experts": 0}
    always = list(layer.always_active_experts)
    shared = 0 if always else layer.num_shared_experts
    counts = {"experts": layer.num_experts, "shared": shared, "always_active": always}
    return counts | {"per_token": layer.num_experts_per_tok}


def _pruning(path: Path, config: EmoConfig, warnings: list[str]) -> dict[str, Any] | None:
    file = path / "pruning_metadata.json"
    if not file.is_file():
        return None
    raw = _json(file, warnings)
    kept = raw.get("experts_kept_per_layer")
    counts = [len(k) if isinstance(k, list) else -1 for k in kept] if isinstance(kept, list) else []
    if counts != [layer.num_experts for layer in config.layers]:
        warnings.append(f"{file}: keeps other numbers of experts than config.json has")
    names = ("original_model", "prune_keep_k", "pruning_method", "num_shared_experts")
    return {name: raw[name] for name in names if name in raw}


def _package(path: Path) -> Inspection:
    manifest = Manifest.load(path)
    targets: dict[str, Any] = {}
    facts = {"source": manifest.source, "targets": targets, "tools": manifest.tools}
    facts["files"] = {"count": len(manifest.files), "bytes": _size(path)}
    found = Inspection("package", f"folder that emo-export made: {path}", facts)
    parity = _parity(path, found.warnings)
    for spec, target in manifest.targets.items():
        place = path / target.path
        pairs = target.fallbacks.values()
        targets[spec] = {
            "path": target.path,
            "bytes": _size(place),
            "recipe": target.recipe,
            "fallbacks": dict(Counter(" -> ".join(pair) for pair in pairs)),
            "parity": parity.get(spec, "not measured"),
        }
        targets[spec] |= _contents(spec, place, found)
    for entry in manifest.files:
        file = path / entry.path
        if not file.is_file():
            found.warnings.append(f"{entry.path} is missing, the manifest has it")
        elif file.stat().st_size != entry.bytes:
            size = file.stat().st_size
            found.warnings.append(f"{entry.path} has {size} bytes, the manifest says {entry.bytes}")
    return found


def _domains(path: Path) -> Inspection:
    """Packages of several domains: what each is, and the disk that they share."""
    facts: dict[str, Any] = {}
    found = Inspection("domains", f"packages of domains that emo-export made: {path}", facts)
    for name in read_domains(path):
        try:
            inside = _package(path / name)
        except EmoExportError as error:
            found.warnings.append(str(error))
            continue
        found.warnings.extend(f"{name}: {warning}" for warning in inside.warnings)
        targets = inside.facts["targets"]
        facts[name] = {
            "bytes": inside.facts["files"]["bytes"],
            **{spec: target["parity"] for spec, target in targets.items()},
        }
    stats = [file.stat() for file in path.rglob("*") if file.is_file()]
    once = {stat.st_ino: stat.st_size for stat in stats}
    facts["disk"] = {
        "bytes": sum(once.values()),
        "saved_bytes": sum(stat.st_size for stat in stats) - sum(once.values()),
    }
    return found


def _contents(spec: str, place: Path, package: Inspection) -> dict[str, Any]:
    """The judgement and the facts of one target; what is wrong with it is told of the package."""
    if (place / MANIFEST).is_file():
        package.warnings.append(f"{spec}: {place} is a whole exported folder, not a target of one")
        return {NESTED: {}}
    try:
        inside = _inspect(place, {})
    except EmoExportError as error:
        package.warnings.append(f"{spec}: {error}")
        return {NESTED: {}}
    package.warnings.extend(f"{spec}: {warning}" for warning in inside.warnings)
    package.findings.extend(replace(finding, target=spec) for finding in inside.findings)
    return {"judgement": inside.judgement or None, NESTED: inside.facts}


def _parity(path: Path, warnings: list[str]) -> dict[str, str]:
    """Target -> verdict, from parity.json."""
    file = path / "parity.json"
    if not file.is_file():
        golden = "" if (path / "golden.npz").is_file() else " --reference CHECKPOINT"
        warnings.append(
            f"has no parity.json: its parity was not measured (emo-export validate {path}{golden})"
        )
        return {}
    try:
        reports = read_json(file)["targets"]
        verdicts = {str(r["target"]): _told(r) for r in reports}
    except (EmoExportError, KeyError, TypeError) as error:
        warnings.append(f"{file}: is not a parity report of emo-export ({error})")
        return {}
    wrong = {"FAILED": "failed its parity check", NOT_ENOUGH: "had not enough text to be judged"}
    warnings.extend(
        f"{target}: {wrong[verdict]}; see parity.json"
        for target, verdict in verdicts.items()
        if verdict != "passed"
    )
    return verdicts


def _told(report: Mapping[str, Any]) -> str:
    """The verdict of one target; a report without the word is of an older emo-export."""
    if report["passed"]:
        return "passed"
    return NOT_ENOUGH if report.get("verdict") == NOT_ENOUGH else "FAILED"


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _rows(section: str, value: Any) -> Iterable[Row]:
    if isinstance(value, list):
        for entry in value:
            yield section, "", _text(section, entry)
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            if isinstance(inner, Mapping) and NESTED in inner:
                yield from _rows(name, inner)
            elif inner is not None and name != NESTED:
                yield section, name, _text(name if name.endswith("bytes") else section, inner)
    elif value is not None:
        yield section, "", _text(section, value)


def _text(kind: str, value: Any) -> str:
    """One value for people; `kind` tells whether a number counts bytes."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return size_text(value) if "bytes" in kind else f"{value:,}" if value > 9999 else str(value)
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_text(name, inner)}" for name, inner in value.items()) or "none"
    if isinstance(value, list | tuple):
        return ", ".join(_text(kind, inner) for inner in value) or "none"
    return str(value)


def size_text(nbytes: int) -> str:
    """Bytes in the unit that fits, three digits: 2.41 GB, 15.7 MB, 600 B."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if nbytes >= size:
            return f"{nbytes / size:,.{max(0, 3 - len(str(nbytes // size)))}f} {unit}"
    return f"{nbytes} B"
