"""GGUF files for llama.cpp, as a family of targets."""

from __future__ import annotations

import importlib.util
import math
import shutil
import tempfile
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.base.install import need
from emo_export.base.scratch import Scratch
from emo_export.errors import EmoExportError
from emo_export.families.recipe import known_recipe, refuse_unused
from emo_export.files.gguf_header import read_gguf
from emo_export.spec import Spec

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
    from emo_export.model.recipes import Part
    from emo_export.parity.result import NotCompared
    from emo_export.text.tokenizer import Encode

CANDIDATES = (
    ("q8_0", "q6_k", "q5_k", "q4_k", "iq4_xs", "q3_k", "q2_k"),
    ("q8_0", "q5_1", "q5_0", "q4_1", "q4_0", "iq4_nl", "mxfp4"),
    ("f16",),
)
"""What is tried for a budget: the first line whose blocks all divide the rows."""


class Gguf:
    """The family; see `emo_export.families.Family`."""

    def check(self, config: EmoConfig) -> None:
        """Raise EmoExportError where none of llama.cpp's graphs can express a model."""
        from emo_export.converters.gguf.scheme import gguf_scheme

        gguf_scheme("f32", config)

    def check_options(self, specs: Sequence[Spec], options: TargetOptions) -> None:
        """Refuse --arch where there is no GGUF target."""
        if not specs:
            refuse_unused("gguf", {"--arch": options.arch})

    def taken(self, spec: Spec, options: TargetOptions) -> TargetOptions:
        """Without those of ONNX graphs."""
        return replace(options, block_size=None, plain_attention=False)

    def overriding(self) -> Collection[str]:
        """Every ggml type that is written."""
        from emo_export.converters.gguf.formats import GGML_FORMATS

        return tuple(GGML_FORMATS)

    def candidates(self, spec: Spec) -> Candidates:
        """Types of 8 to 2 bits; for rows that K-quants' blocks do not divide, those of 32."""
        from emo_export.budget.sites import Candidates
        from emo_export.converters.gguf.formats import GGML_FORMATS

        return Candidates(CANDIDATES, GGML_FORMATS)

    def makers(
        self,
        specs: Sequence[Spec],
        product: Product,
        options: TargetOptions,
        importance: ImportanceMatrix | None,
        overrides: Mapping[Part, str],
    ) -> dict[Spec, Callable[[Path], Target]]:
        """Check every target now; return what makes each once there is a folder."""
        from emo_export.converters.gguf.graph import choose_arch
        from emo_export.converters.gguf.grids import grid_of
        from emo_export.converters.gguf.scheme import check_importance, gguf_scheme
        from emo_export.converters.gguf.tokenizer import read_tokenizer
        from emo_export.converters.gguf.writer import GgufWriter
        from emo_export.exporting.target import Target
        from emo_export.files.gguf_parts import part_name
        from emo_export.files.target_entry import ImportanceSource, TargetEntry
        from emo_export.model.importance import IMATRIX
        from emo_export.model.names import Role, Slot
        from emo_export.model.overrides import check_overrides

        config = product.config
        arch = choose_arch(config, options.arch)
        schemes = {
            spec: gguf_scheme(spec.type, config, options.chosen.get(spec, overrides), arch)
            for spec in specs
        }
        # A calibration is still empty here, and will measure the head.
        head = importance is None or not importance.sums or Slot(Role.HEAD) in importance.sums
        for spec, scheme in schemes.items():
            check_overrides(() if spec in options.chosen else overrides, scheme, "GGUF")
            check_importance(scheme, importance is not None, head)
        context = config.context_length(options.context)
        tokenizer = read_tokenizer(product.path, config)
        made = None
        if importance is not None:
            made = ImportanceSource(IMATRIX, importance.source, importance.tokens)

        def make(spec: Spec, folder: Path) -> Target:
            scheme, stem = schemes[spec], f"model-{spec.type.upper()}"
            names = [part_name(stem, number, 2) for number in range(2)]
            place, trunk = names if options.share_trunk else (f"{stem}.gguf", None)
            writer = GgufWriter(
                folder / place,
                config,
                scheme,
                arch=arch,
                tokenizer=tokenizer,
                model_name=product.path.resolve().name,
                context=context,
                importance=importance,
                split=options.share_trunk,
            )
            entry = TargetEntry(
                spec,
                place,
                {part.value: name for part, name in scheme.used_recipe.items()},
                scheme.fallbacks,
                arch=arch,
                context=context,
                importance=made,
                trunk=trunk,
                rounding=options.rounding,
            )
            weights = partial(_weights, folder / place, config)
            twin = 4 * sum(math.prod(decl.shape) for decl in writer.declarations())
            return Target(entry, writer, scheme, weights, grid_of, writer.trunk, twin)

        return {spec: partial(make, spec) for spec in specs}

    def weights_of(self, entry: TargetEntry, path: Path, config: EmoConfig) -> Rows:
        """The weights of a file; one by itself, of which no recipe is told, is what it is."""
        if entry.recipe is None:
            return _weights(path, config)
        from emo_export.converters.gguf.formats import GGML_FORMATS
        from emo_export.converters.gguf.read_back import GgufWeights, check_arch
        from emo_export.converters.gguf.scheme import gguf_scheme

        check_arch(path, str(entry.arch))
        recipe = known_recipe(entry, GGML_FORMATS)
        scheme = gguf_scheme(entry.spec.type, config, recipe, entry.arch)
        return GgufWeights(path, config, scheme).rows

    def package(self, entry: TargetEntry, path: Path) -> Package:
        """A file, whose config is told by its keys; llama.cpp encodes text with its tokenizer."""
        from emo_export.converters.gguf.copying import CopyingWriter
        from emo_export.converters.gguf.read_back import GgufWeights
        from emo_export.converters.gguf.told import config_told
        from emo_export.families.package import Package
        from emo_export.model.config import EmoConfig

        raw = config_told(path)
        config = EmoConfig.from_dict(raw, str(path))
        weights = GgufWeights(path, config)

        encoding = partial(_encoding, path, config.vocab_size)

        def writer(product: Product, place: Path) -> CopyingWriter:
            return CopyingWriter(place, product, entry.spec, path, weights)

        return Package(path, raw, config, weights, [path], encoding, writer)

    @contextmanager
    def exact(
        self, path: Path, threads: int | None
    ) -> Iterator[Callable[[], Runtime] | NotCompared]:
        """A twin of the file in float32, for as long as it is needed."""
        from emo_export.files.gguf_parts import read_model
        from emo_export.parity.result import MISSING, SPACE, NotCompared
        from emo_export.runtimes.opening import open_runtime

        if importlib.util.find_spec("gguf") is None:
            yield NotCompared(MISSING)
            return
        from emo_export.converters.gguf.twin import write_float_twin

        twin_bytes = 4 * sum(math.prod(tensor.shape) for tensor in read_model(path).tensors)
        if twin_bytes * 1.05 > shutil.disk_usage(tempfile.gettempdir()).free:
            yield NotCompared(SPACE, twin_bytes, tempfile.gettempdir())
            return
        with Scratch("twin") as folder:
            twin = folder / "twin.gguf"
            write_float_twin(path, twin)
            yield partial(open_runtime, twin, threads, parity=True)

    def need_engine(self, what: str) -> None:
        """Raise MissingDependencyError where llama.cpp is not installed."""
        need(["xllamacpp"], "llama", f"{what} GGUF (or pass --no-validate)")


@contextmanager
def _encoding(path: Path, vocab_size: int) -> Iterator[Encode]:
    import numpy as np

    from emo_export.converters.gguf.copying import TokenizerAlone
    from emo_export.runtimes.opening import open_runtime, tokenizer_of

    need(["xllamacpp"], "llama", "reading text with the tokenizer in a GGUF file")
    if read_gguf(path).keys.get("tokenizer.ggml.model") in (None, "none"):
        raise EmoExportError(
            f"{path}: has no tokenizer, so that no text can be read for it; prune the checkpoint"
        )
    with Scratch("tokenizer") as folder:
        alone = folder / "tokenizer.gguf"
        TokenizerAlone(alone, path, vocab_size).outline()
        runtime = open_runtime(alone, 1, context=1)
        try:
            tokenizer = tokenizer_of(alone, runtime)
            yield lambda text: np.array(tokenizer.encode(text), dtype=np.int64)
        finally:
            runtime.close()


def _weights(path: Path, config: EmoConfig) -> Rows:
    from emo_export.converters.gguf.read_back import GgufWeights

    return GgufWeights(path, config).rows
