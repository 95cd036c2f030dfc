"""The families of targets: what an export asks of each, and the registry of both.

What a device needs of them too (opening, sizes, memory) is in `runtimes/families.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from emo_export.errors import EmoExportError
from emo_export.families.gguf import Gguf
from emo_export.families.onnx import Onnx
from emo_export.model.recipes import AUTO
from emo_export.spec import GGUF, ONNX, Spec

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

Make = Callable[[Path], "Target"]
"""An export's folder -> the target in it."""


class Family(Protocol):
    """What `export` and `validate` ask of a family. Its modules are imported when it is used."""

    def check(self, config: EmoConfig) -> None:
        """Raise EmoExportError where no target of the family can express a model."""

    def check_options(self, specs: Sequence[Spec], options: TargetOptions) -> None:
        """Refuse options that none of `specs`, the family's targets, takes."""

    def taken(self, spec: Spec, options: TargetOptions) -> TargetOptions:
        """Without the options of other targets, which `check_options` would refuse for one."""

    def overriding(self) -> Collection[str]:
        """The types that --tensor-type may give a part."""

    def candidates(self, spec: Spec) -> Candidates:
        """The types that a target of the type `auto` may have."""

    def makers(
        self,
        specs: Sequence[Spec],
        product: Product,
        options: TargetOptions,
        importance: ImportanceMatrix | None,
        overrides: Mapping[Part, str],
    ) -> dict[Spec, Make]:
        """Check every target now; return what makes each once there is a folder."""

    def weights_of(self, entry: TargetEntry, path: Path, config: EmoConfig) -> Rows:
        """The weights that the exported target at `path` holds.

        Raises EmoExportError for a file of another model or of types that are not known.
        """

    def package(self, entry: TargetEntry, path: Path) -> Package:
        """The exported target at `path` as a source, from which experts can be left out.

        Raises EmoExportError for what can't be told of it, and for what export did not make.
        """

    def exact(
        self, path: Path, threads: int | None
    ) -> AbstractContextManager[Callable[[], Runtime] | NotCompared]:
        """How to run the target at `path` with float activations, or why that can't be."""

    def need_engine(self, what: str) -> None:
        """Raise MissingDependencyError, which names `what`, where its engine is not installed."""


FAMILIES: Mapping[str, Family] = {GGUF: Gguf(), ONNX: Onnx()}


def target_maker(
    asked: Sequence[Spec],
    product: Product,
    options: TargetOptions,
    importance: ImportanceMatrix | None = None,
) -> Callable[[Path], list[Target]]:
    """Check every target now; return what makes their writers once there is a folder."""
    from emo_export.model.overrides import parse_overrides

    if len(set(asked)) != len(asked):
        raise EmoExportError(f"--to names a target twice: {', '.join(map(str, asked))}")
    by_family = {name: [s for s in asked if s.family == name] for name in FAMILIES}
    for name, family in FAMILIES.items():
        family.check_options(by_family[name], options)
    named = {s.family for s in asked if s.type != AUTO}
    if options.tensor_types and not named:
        raise EmoExportError("--tensor-type is for named types; those of auto are found")
    types = {name: FAMILIES[name].overriding() for name in FAMILIES if name in named}
    overrides = parse_overrides(options.tensor_types, types)
    makers: dict[Spec, Make] = {}
    for name, ours in by_family.items():
        if ours:
            changed = overrides.get(name, {})
            makers |= FAMILIES[name].makers(ours, product, options, importance, changed)
    return lambda folder: [makers[spec](folder) for spec in asked]
