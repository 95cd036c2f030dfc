"""ONNX folders for ONNX Runtime, as a family of targets."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.install import need
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.families.recipe import known_recipe, refuse_unused
from emo_export.files.onnx_needs import REQUIREMENTS
from emo_export.model.recipes import AUTO, BLOCKS, ROWS_OF_2_BITS, Part
from emo_export.spec import ONNX, Spec

if TYPE_CHECKING:
    from emo_export.budget.sites import Candidates
    from emo_export.exporting.target import Rows, Target
    from emo_export.families.options import TargetOptions
    from emo_export.families.package import Package
    from emo_export.files.target_entry import TargetEntry
    from emo_export.interfaces import Runtime
    from emo_export.model.config import EmoConfig
    from emo_export.model.importance import ImportanceMatrix
    from emo_export.model.product import Product
    from emo_export.model.scheme import QuantScheme
    from emo_export.parity.result import NotCompared
    from emo_export.text.tokenizer import Encode

CANDIDATES = (
    ("int8b128", "int4b128", "int4b64", "int4b32"),
    ("int8b64", "int4b64", "int4b32"),
    ("int8b32", "int4b32"),
    ("int8b16", "int4b16"),
    ("f32",),
)
"""What is tried for a budget: the first line whose blocks all divide the rows."""
ROUTED = {"int2b128": ROWS_OF_2_BITS}
"""And for the routed experts of the graph `qmoe`."""


class Onnx:
    """The family; see `emo_export.families.Family`."""

    def check(self, config: EmoConfig) -> None:
        """Raise EmoExportError where our graphs can't express a model."""
        from emo_export.converters.onnx.scheme import onnx_scheme

        onnx_scheme(Spec(ONNX, "f32"), config)

    def check_options(self, specs: Sequence[Spec], options: TargetOptions) -> None:
        """Refuse --block-size and --plain-attention where no target has blocks or branches."""
        if not specs:
            refuse_unused("onnx", {"--block-size": options.block_size})
        if options.block_size and not any(map(_has_blocks, specs)):
            raise EmoExportError(
                "--block-size is for int8, int4 and int2 in the graphs @qmoe and @if, and no "
                "target is one"
            )
        if options.plain_attention and not any(spec.graph == "if" for spec in specs):
            raise EmoExportError("--plain-attention is for the graph @if, and no target has it")

    def taken(self, spec: Spec, options: TargetOptions) -> TargetOptions:
        """Without --arch, and what this graph and type have not."""
        return replace(
            options,
            arch=None,
            block_size=options.block_size if _has_blocks(spec) else None,
            plain_attention=options.plain_attention and spec.graph == "if",
        )

    def overriding(self) -> Collection[str]:
        """The types of both lengths of name: int4, and int4b32 with its block."""
        from emo_export.converters.onnx.scheme import OVERRIDING

        return OVERRIDING

    def candidates(self, spec: Spec) -> Candidates:
        """8 bits, whose blocks make no difference, 4 in blocks of three lengths, 2 for experts."""
        from emo_export.budget.sites import Candidates
        from emo_export.converters.onnx.formats import NBITS_FORMATS

        if spec.graph != "qmoe":
            return Candidates(CANDIDATES, NBITS_FORMATS)
        return Candidates(CANDIDATES, NBITS_FORMATS, (Part.EXPERT, Part.EXPERT_DOWN), ROUTED)

    def makers(
        self,
        specs: Sequence[Spec],
        product: Product,
        options: TargetOptions,
        importance: ImportanceMatrix | None,
        overrides: Mapping[Part, str],
    ) -> dict[Spec, Callable[[Path], Target]]:
        """Check every target now; return what makes each once there is a folder."""
        from emo_export.converters.onnx.data import TRUNK
        from emo_export.converters.onnx.grids import grid_of
        from emo_export.converters.onnx.scheme import onnx_scheme
        from emo_export.converters.onnx.writer import OnnxWriter
        from emo_export.exporting.target import Target
        from emo_export.files.target_entry import TargetEntry
        from emo_export.model.overrides import check_overrides

        config, block = product.config, options.block_size or BLOCKS[0]
        schemes = {
            spec: onnx_scheme(spec, config, options.chosen.get(spec, overrides), block)
            for spec in specs
        }
        for spec, scheme in schemes.items():
            check_overrides(() if spec in options.chosen else overrides, scheme, "ONNX")
        context = config.context_length(options.context)

        def make(spec: Spec, folder: Path) -> Target:
            scheme, place = schemes[spec], f"onnx-{spec.place}"
            writer = OnnxWriter(
                folder / place,
                product,
                scheme,
                context=context,
                accuracy_level=options.accuracy_level,
                last_only=options.last_logits,
                plain_attention=options.plain_attention,
                split=options.share_trunk,
            )
            entry = TargetEntry(
                spec,
                place,
                {part.value: name for part, name in scheme.used_recipe.items()},
                scheme.fallbacks,
                graph=spec.graph,
                onnxruntime=writer.kind.onnxruntime_min,
                logits_to_keep=1 if options.last_logits else 0,
                no_genai=writer.no_genai,
                trunk=f"{place}/{TRUNK}" if writer.trunk else None,
                rounding=options.rounding,
            )
            weights = partial(_weights, folder / place, config, scheme)
            return Target(entry, writer, scheme, weights, grid_of, writer.trunk)

        return {spec: partial(make, spec) for spec in specs}

    def weights_of(self, entry: TargetEntry, path: Path, config: EmoConfig) -> Rows:
        """The weights of a folder, whose recipe says how its initializers are packed."""
        return _weights(path, config, _scheme_told(entry, config))

    def package(self, entry: TargetEntry, path: Path) -> Package:
        """A folder, with its own config.json, tokenizer and emo_export.json."""
        from emo_export.converters.onnx.read_back import OnnxWeights
        from emo_export.converters.onnx.writer import OnnxWriter
        from emo_export.families.package import Package
        from emo_export.model.config import EmoConfig

        # There it is a type that transformers knows.
        raw = {**read_json(path / "config.json"), "model_type": "emo"}
        config = EmoConfig.from_dict(raw, str(path / "config.json"))
        needs = read_json(path / REQUIREMENTS)
        weights = OnnxWeights(path, config, _scheme_told(entry, config))

        def writer(product: Product, place: Path) -> OnnxWriter:
            return OnnxWriter(
                place,
                product,
                _scheme_told(entry, product.config),
                context=config.context_length(),
                accuracy_level=needs.get("accuracy_level") or 0,
                last_only=needs.get("logits_to_keep") == 1,
                plain_attention=entry.spec.graph == "if" and not needs.get("share_kv_buffer"),
            )

        files = [path / "model.onnx.data", path / "model.onnx"]
        return Package(path, raw, config, weights, files, partial(_encoding, path, config), writer)

    @contextmanager
    def exact(
        self, path: Path, threads: int | None
    ) -> Iterator[Callable[[], Runtime] | NotCompared]:
        """The graph with operators that leave activations as they are."""
        from emo_export.parity.result import MISSING, NotCompared

        if importlib.util.find_spec("onnx") is None:
            yield NotCompared(MISSING)
            return
        from emo_export.converters.onnx.exact import SESSION_OPTIONS, exact_graph
        from emo_export.runtimes.ort.model import OnnxModel

        model = path / "model.onnx"
        try:
            graph = exact_graph(model)
        except Exception as error:  # protobuf's DecodeError shares no base class but Exception
            raise EmoExportError(f"{model}: cannot be read as an ONNX model ({error})") from error
        yield partial(
            OnnxModel, path, threads=threads, session_options=SESSION_OPTIONS, graph=graph
        )

    def need_engine(self, what: str) -> None:
        """Raise MissingDependencyError where ONNX Runtime is not installed."""
        need(["onnxruntime"], "ort", f"{what} ONNX (or pass --no-validate)")


def _scheme_told(entry: TargetEntry, config: EmoConfig) -> QuantScheme:
    from emo_export.converters.onnx.formats import NBITS_FORMATS
    from emo_export.converters.onnx.scheme import onnx_scheme

    if entry.recipe is None and entry.spec.type != "f32":
        raise EmoExportError(
            f"{entry.spec}: its emo_export.json has no recipe, the type of each part, so what "
            "it should compute can't be told; it was made by an early emo-export: export it again"
        )
    return onnx_scheme(entry.spec, config, known_recipe(entry, NBITS_FORMATS))


@contextmanager
def _encoding(folder: Path, config: EmoConfig) -> Iterator[Encode]:
    from emo_export.text.tokenizer import open_tokenizer, why_no_tokenizer

    encode = open_tokenizer(folder, config.vocab_size)
    if encode is None:
        raise EmoExportError(f"{folder}: {why_no_tokenizer(folder)}, so that no text can be read")
    yield encode


def _weights(folder: Path, config: EmoConfig, scheme: QuantScheme) -> Rows:
    from emo_export.converters.onnx.read_back import OnnxWeights

    return OnnxWeights(folder, config, scheme).rows


def _has_blocks(spec: Spec) -> bool:
    return spec.type not in ("f32", AUTO) and spec.graph != "standard"
