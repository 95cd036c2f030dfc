"""The families of files on a device: what opening, measuring and judging ask of each.

The half that needs no torch, onnx or gguf. What an export asks is in `emo_export.families`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

from emo_export.errors import EmoExportError
from emo_export.files.memory_need import Need
from emo_export.files.read_per_token import PerToken
from emo_export.files.run_memory import Running
from emo_export.files.target_entry import TargetEntry
from emo_export.interfaces import Rewinding, Runtime, Tokenizer
from emo_export.model.config import EmoConfig
from emo_export.runtimes.llama.family import LlamaFamily
from emo_export.runtimes.ort.family import OrtFamily
from emo_export.spec import GGUF, ONNX, Spec


class LightFamily(Protocol):
    """One family. A path is that of one target: its file or its folder."""

    @property
    def extra(self) -> str:
        """The extra of emo-export that installs its engine."""

    @property
    def memory_factor(self) -> float:
        """Bytes of memory for each byte of a target, about."""

    @property
    def packs_weights(self) -> bool:
        """Whether its engine packs weights, and so takes --cache-prepacked, and spins."""

    @property
    def reserves_cache(self) -> bool:
        """Whether its engine takes memory for the whole context when it opens."""

    @property
    def kv_caches(self) -> tuple[str, ...]:
        """Types of the KV cache that its engine takes, the one that it has by itself first."""

    def is_at(self, path: Path) -> bool:
        """Whether a target of this family lies at a path, by its kind of file alone."""

    def entry_of(self, path: Path) -> TargetEntry:
        """What a target says of itself, away from its manifest.

        Raises EmoExportError when export did not make it.
        """

    def files(self, path: Path) -> list[Path]:
        """The files whose bytes are the model."""

    def need(self, path: Path, context: int | None = None, kv_cache: str | None = None) -> Need:
        """The memory that it takes at `context` positions (default: the model's own).

        `kv_cache`: a type in place of the engine's own. Raises EmoExportError for a context that
        the model does not have, for a type that engine or model can't have, and for files that
        export did not make.
        """

    def per_token(self, path: Path, kv_cache: str | None = None) -> PerToken:
        """Bytes that a decode step reads; `kv_cache` and errors as of `need`."""

    def other_sizes(self, path: Path, spec: Spec) -> dict[Spec, int]:
        """Target -> bytes of its tensors, for every recipe of the same engine and graph.

        `spec` is the target at `path`.
        """

    def running(self, path: Path, need: Need, config: EmoConfig) -> Running:
        """What a user's run takes, estimated; an outline without weights will do."""

    def weighs(self, spec: Spec) -> bool:
        """Whether importance of the inputs makes a type better."""

    def need_engine(self) -> None:
        """Raise MissingDependencyError where the engine is not installed."""

    def open(
        self,
        path: Path,
        threads: int | None,
        *,
        parity: bool,
        context: int | None,
        prepacked: Path | None,
        spin: bool,
        kv_cache: str | None,
    ) -> Rewinding:
        """Open it, as LlamaCpp and OnnxModel describe; what has no meaning for one is left out."""

    def tokenizer(self, path: Path, runtime: Runtime) -> Tokenizer:
        """The tokenizer of an opened model."""

    def kernels(self) -> Mapping[str, str]:
        """Operator -> arithmetic that the engine computes on this CPU, where it chooses."""


LIGHT: Mapping[str, LightFamily] = {GGUF: LlamaFamily(), ONNX: OrtFamily()}


def family_at(path: Path) -> LightFamily:
    """The family of the target at a path. Raises EmoExportError when there is none."""
    for family in LIGHT.values():
        if family.is_at(path):
            return family
    raise EmoExportError(
        f"{path}: is no .gguf file, no folder with model.onnx and no folder that export made"
    )
