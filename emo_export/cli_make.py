"""What the command line joins: specs to schemes and writers, and importance to both.

Only the command line may know the converters; heavy imports stay inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export.cli_targets import parse_spec
from emo_export.errors import EmoExportError

if TYPE_CHECKING:
    from emo_export.checkpoint import Checkpoint
    from emo_export.converters.gguf_tokenizer import GgufTokenizer
    from emo_export.export import Target
    from emo_export.importance import ImportanceMatrix
    from emo_export.scheme import QuantScheme


def scheme_of(
    spec: str, checkpoint: Checkpoint, entry: Mapping[str, Any] | None = None
) -> QuantScheme:
    """The formats of a target for this checkpoint; refuses by name what it can't express.

    `entry` is what a manifest says of the target: the recipe that was used, the architecture.
    """
    kind, type_name = parse_spec(spec)
    if kind == "gguf":
        from emo_export.converters.ggml_formats import GGML_FORMATS
        from emo_export.converters.gguf_scheme import gguf_scheme
        from emo_export.recipes import Part

        recipe = {}
        for role, name in (entry or {}).get("recipe", {}).items():
            if role not in list(Part) or name not in GGML_FORMATS:
                raise EmoExportError(
                    f"{spec}: its recipe gives {role} the type {name}, which this version does not "
                    "know; was manifest.json changed, or made by a newer emo-export?"
                )
            recipe[Part(role)] = name
        return gguf_scheme(type_name, checkpoint.config, recipe, (entry or {}).get("arch"))
    from emo_export.converters.to_onnx import onnx_scheme

    return onnx_scheme(type_name, checkpoint.config)


@dataclass(frozen=True)
class TargetOptions:
    """What the options of `export` say of the targets."""

    context: int | None = None
    accuracy_level: int = 4
    last_logits: bool = False
    arch: str | None = None
    tensor_types: tuple[str, ...] = ()


def target_maker(
    specs: Sequence[str],
    checkpoint: Checkpoint,
    options: TargetOptions,
    importance: ImportanceMatrix | None = None,
) -> Callable[[Path], list[Target]]:
    """Check every target now; return what makes their writers once there is a folder."""
    from emo_export.converters.gguf_tokenizer import read_tokenizer

    config = checkpoint.config
    names = [":".join(parse_spec(spec)) for spec in specs]
    if len(set(names)) != len(names):
        raise EmoExportError(f"--to names a target twice: {', '.join(specs)}")
    is_gguf = any(name.startswith("gguf:") for name in names)
    gguf_entry = _gguf_entry(checkpoint, options, importance, is_gguf)
    schemes = {name: scheme_of(name, checkpoint, gguf_entry) for name in names}
    if is_gguf:
        from emo_export.converters.gguf_scheme import check_importance, check_overrides
        from emo_export.names import Role, Slot

        # A calibration is still empty here, and will measure the head.
        head = importance is None or not importance.sums or Slot(Role.HEAD) in importance.sums
        for name, scheme in schemes.items():
            if name.startswith("gguf:"):
                check_overrides(gguf_entry["recipe"], scheme)
                check_importance(scheme, importance is not None, head)
    length = config.context_length(options.context)
    tokenizer = read_tokenizer(checkpoint.path, config) if is_gguf else None
    entry = {key: value for key, value in gguf_entry.items() if key != "recipe"}

    def make(folder: Path) -> list[Target]:
        return [
            _gguf_target(name, scheme, checkpoint, folder, tokenizer, length, entry, importance)
            if name.startswith("gguf:")
            else _onnx_target(name, scheme, checkpoint, folder, length, options)
            for name, scheme in schemes.items()
        ]

    return make


def _gguf_entry(
    checkpoint: Checkpoint,
    options: TargetOptions,
    importance: ImportanceMatrix | None,
    is_gguf: bool,
) -> dict[str, Any]:
    """What the manifest says of every GGUF target; `recipe` holds the overridden roles only."""
    given = {
        "--arch": options.arch,
        "--tensor-type": options.tensor_types,
        "--calibration or --imatrix": importance,
    }
    if not is_gguf:
        unused = [name for name, value in given.items() if value]
        if unused:
            raise EmoExportError(f"{unused[0]} is for gguf targets only, and there is none")
        return {}
    from emo_export.converters.gguf_graph import choose_arch
    from emo_export.converters.gguf_scheme import parse_overrides
    from emo_export.importance import IMATRIX

    entry: dict[str, Any] = {
        "recipe": parse_overrides(options.tensor_types),
        "arch": choose_arch(checkpoint.config, options.arch),
        "context": checkpoint.config.context_length(options.context),
    }
    if importance is not None:
        text = {"source": importance.source, "tokens": importance.tokens}
        entry["importance"] = {"file": IMATRIX, **text}
    return entry


def _gguf_target(
    spec: str,
    scheme: QuantScheme,
    checkpoint: Checkpoint,
    folder: Path,
    tokenizer: GgufTokenizer | None,
    context: int,
    entry: Mapping[str, Any],
    importance: ImportanceMatrix | None,
) -> Target:
    from emo_export.converters.to_gguf import GgufWriter
    from emo_export.export import Target

    place = f"model-{scheme.type_name.upper()}.gguf"
    writer = GgufWriter(
        folder / place,
        checkpoint.config,
        scheme,
        arch=entry["arch"],
        tokenizer=tokenizer,
        model_name=checkpoint.path.resolve().name,
        context=context,
        importance=importance,
    )
    return Target(spec, place, writer, scheme, entry)


def _onnx_target(
    spec: str,
    scheme: QuantScheme,
    checkpoint: Checkpoint,
    folder: Path,
    context: int,
    options: TargetOptions,
) -> Target:
    from emo_export.converters.to_onnx import OnnxWriter
    from emo_export.export import Target

    place = f"onnx-{scheme.type_name.replace('@', '-')}"
    writer = OnnxWriter(
        folder / place,
        checkpoint.path,
        checkpoint.config,
        scheme,
        context=context,
        accuracy_level=options.accuracy_level,
        last_only=options.last_logits,
    )
    kind = writer.kind
    return Target(
        spec, place, writer, scheme, {"graph": kind.name, "onnxruntime": kind.onnxruntime_min}
    )
