"""What the command line joins: specs to schemes and writers, and importance to both.

Only the command line may know the converters; heavy imports stay inside functions.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from emo_export.cli.targets import parse_spec
from emo_export.errors import EmoExportError
from emo_export.model.recipes import BLOCKS, Part

if TYPE_CHECKING:
    from emo_export.converters.gguf.tokenizer import GgufTokenizer
    from emo_export.exporting import Rows, Target
    from emo_export.model.config import EmoConfig
    from emo_export.model.importance import ImportanceMatrix
    from emo_export.model.product import Product
    from emo_export.model.scheme import QuantScheme


def scheme_of(spec: str, product: Product, entry: Mapping[str, Any]) -> QuantScheme:
    """The formats of an exported target; refuses by name what this version doesn't know.

    `entry` is what a manifest says of it: the recipe that was used, the architecture.
    """
    kind, type_name = parse_spec(spec)
    if kind == "gguf":
        from emo_export.converters.gguf.formats import GGML_FORMATS
        from emo_export.converters.gguf.scheme import gguf_scheme

        recipe = _recipe(spec, entry, GGML_FORMATS)
        return gguf_scheme(type_name, product.config, recipe, entry.get("arch"))
    from emo_export.converters.onnx.formats import NBITS_FORMATS
    from emo_export.converters.onnx.scheme import onnx_scheme

    if "recipe" not in entry and not type_name.startswith("f32"):
        raise EmoExportError(
            f"{spec}: its emo_export.json has no recipe, the type of each part, so what it should "
            "compute can't be told; it was made by an early emo-export: export it again"
        )
    return onnx_scheme(type_name, product.config, _recipe(spec, entry, NBITS_FORMATS))


def _recipe(spec: str, entry: Mapping[str, Any], known: Collection[str]) -> dict[Part, str]:
    """What a manifest says of a target's types, checked."""
    recipe = {}
    for role, name in entry.get("recipe", {}).items():
        if role not in list(Part) or name not in known:
            raise EmoExportError(
                f"{spec}: its recipe gives {role} the type {name}, which this version does not "
                "know; was manifest.json changed, or made by a newer emo-export?"
            )
        recipe[Part(role)] = name
    return recipe


@dataclass(frozen=True)
class TargetOptions:
    """What the options of `export` say of the targets."""

    context: int | None = None
    accuracy_level: int = 4
    last_logits: bool = False
    arch: str | None = None
    tensor_types: tuple[str, ...] = ()
    block_size: int | None = None
    plain_attention: bool = False


def target_maker(
    specs: Sequence[str],
    product: Product,
    options: TargetOptions,
    importance: ImportanceMatrix | None = None,
) -> Callable[[Path], list[Target]]:
    """Check every target now; return what makes their writers once there is a folder."""
    from emo_export.converters.gguf.tokenizer import read_tokenizer

    config = product.config
    names = [":".join(parse_spec(spec)) for spec in specs]
    if len(set(names)) != len(names):
        raise EmoExportError(f"--to names a target twice: {', '.join(specs)}")
    is_gguf = any(name.startswith("gguf:") for name in names)
    entry = _gguf_entry(product, options, importance) if is_gguf else {}
    _check_options(names, options, importance)
    schemes = _schemes(names, product, options, entry.get("arch"))
    if is_gguf:
        from emo_export.converters.gguf.scheme import check_importance
        from emo_export.model.names import Role, Slot

        # A calibration is still empty here, and will measure the head.
        head = importance is None or not importance.sums or Slot(Role.HEAD) in importance.sums
        for name, scheme in schemes.items():
            if name.startswith("gguf:"):
                check_importance(scheme, importance is not None, head)
    length = config.context_length(options.context)
    tokenizer = read_tokenizer(product.path, config) if is_gguf else None

    def make(folder: Path) -> list[Target]:
        return [
            _gguf_target(name, scheme, product, folder, tokenizer, length, entry, importance)
            if name.startswith("gguf:")
            else _onnx_target(name, scheme, product, folder, length, options)
            for name, scheme in schemes.items()
        ]

    return make


def _check_options(
    names: Sequence[str], options: TargetOptions, importance: ImportanceMatrix | None
) -> None:
    """Refuse options that none of the targets takes."""
    given: dict[str, tuple[str, object]] = {
        "--arch": ("gguf", options.arch),
        "--calibration or --imatrix": ("gguf", importance),
        "--block-size": ("onnx", options.block_size),
    }
    for option, (kind, value) in given.items():
        if value and not any(name.startswith(kind) for name in names):
            raise EmoExportError(f"{option} is for {kind} targets only, and there is none")
    if options.block_size and not any(_has_blocks(name) for name in names):
        raise EmoExportError(
            "--block-size is for int4 and int8 in the graphs @qmoe and @if, and no target is one"
        )
    if options.plain_attention and not any(name.endswith("@if") for name in names):
        raise EmoExportError("--plain-attention is for the graph @if, and no target has it")


def _has_blocks(spec: str) -> bool:
    kind, type_name = parse_spec(spec)
    return kind == "onnx" and not type_name.startswith("f32") and "@standard" not in type_name


def _schemes(
    names: Sequence[str], product: Product, options: TargetOptions, arch: str | None
) -> dict[str, QuantScheme]:
    """The formats of each target, with the types that were asked for."""
    from emo_export.converters.gguf.formats import GGML_FORMATS
    from emo_export.converters.gguf.scheme import gguf_scheme
    from emo_export.converters.onnx.scheme import OVERRIDING, onnx_scheme
    from emo_export.model.overrides import check_overrides, parse_overrides

    types = {"gguf": tuple(GGML_FORMATS), "onnx": OVERRIDING}
    kinds = {name: name.partition(":")[0] for name in names}
    overrides = parse_overrides(
        options.tensor_types, {kind: types[kind] for kind in sorted(set(kinds.values()))}
    )
    schemes = {}
    for name, kind in kinds.items():
        type_name, changed = name.partition(":")[2], overrides[kind]
        if kind == "gguf":
            scheme = gguf_scheme(type_name, product.config, changed, arch)
        else:
            block = options.block_size or BLOCKS[0]
            scheme = onnx_scheme(type_name, product.config, changed, block)
        check_overrides(changed, scheme, kind.upper())
        schemes[name] = scheme
    return schemes


def _gguf_entry(
    product: Product, options: TargetOptions, importance: ImportanceMatrix | None
) -> dict[str, Any]:
    """What the manifest says of every GGUF target."""
    from emo_export.converters.gguf.graph import choose_arch
    from emo_export.model.importance import IMATRIX

    entry: dict[str, Any] = {
        "arch": choose_arch(product.config, options.arch),
        "context": product.config.context_length(options.context),
    }
    if importance is not None:
        text = {"source": importance.source, "tokens": importance.tokens}
        entry["importance"] = {"file": IMATRIX, **text}
    return entry


def _gguf_target(
    spec: str,
    scheme: QuantScheme,
    product: Product,
    folder: Path,
    tokenizer: GgufTokenizer | None,
    context: int,
    entry: Mapping[str, Any],
    importance: ImportanceMatrix | None,
) -> Target:
    from emo_export.converters.gguf.writer import GgufWriter
    from emo_export.exporting import Target

    place = f"model-{scheme.type_name.upper()}.gguf"
    writer = GgufWriter(
        folder / place,
        product.config,
        scheme,
        arch=entry["arch"],
        tokenizer=tokenizer,
        model_name=product.path.resolve().name,
        context=context,
        importance=importance,
    )
    read_back = partial(_gguf_weights, folder / place, product.config)
    return Target(spec, place, writer, scheme, read_back, entry)


def _onnx_target(
    spec: str,
    scheme: QuantScheme,
    product: Product,
    folder: Path,
    context: int,
    options: TargetOptions,
) -> Target:
    from emo_export.converters.onnx.writer import OnnxWriter
    from emo_export.exporting import Target

    place = f"onnx-{scheme.type_name.replace('@', '-')}"
    writer = OnnxWriter(
        folder / place,
        product,
        scheme,
        context=context,
        accuracy_level=options.accuracy_level,
        last_only=options.last_logits,
        plain_attention=options.plain_attention,
    )
    kind = writer.kind
    entry = {
        "graph": kind.name,
        "onnxruntime": kind.onnxruntime_min,
        "logits_to_keep": 1 if options.last_logits else 0,
        "no_genai": writer.no_genai,
    }
    read_back = partial(_onnx_weights, folder / place, product.config, scheme)
    return Target(spec, place, writer, scheme, read_back, entry)


def weights_of(spec: str, path: Path, product: Product, entry: Mapping[str, Any]) -> Rows:
    """The weights that an exported target holds; `entry` as in `scheme_of`.

    Raises EmoExportError for a file of another model.
    """
    if parse_spec(spec)[0] == "gguf":
        if "recipe" not in entry:  # a file by itself is what it is
            return _gguf_weights(path, product.config)
        from emo_export.converters.gguf.read_back import GgufWeights, check_arch

        check_arch(path, str(entry.get("arch")))
        return GgufWeights(path, product.config, scheme_of(spec, product, entry)).rows
    return _onnx_weights(path, product.config, scheme_of(spec, product, entry))


def _gguf_weights(path: Path, config: EmoConfig) -> Rows:
    from emo_export.converters.gguf.read_back import GgufWeights

    return GgufWeights(path, config).rows


def _onnx_weights(folder: Path, config: EmoConfig, scheme: QuantScheme) -> Rows:
    from emo_export.converters.onnx.read_back import OnnxWeights

    return OnnxWeights(folder, config, scheme).rows
