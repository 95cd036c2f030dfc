"""What a target is: `gguf:TYPE` or `onnx:TYPE[@GRAPH]`, as the user writes it after --to."""

from __future__ import annotations

from dataclasses import dataclass

from emo_export.errors import EmoExportError

GGUF, ONNX = "gguf", "onnx"
GRAPHS = {GGUF: ("",), ONNX: ("qmoe", "if", "standard")}
"""The graphs of each family; the first is the default, which a target does not name."""


@dataclass(frozen=True)
class Spec:
    """A family of files, a type and, for ONNX, a graph (empty: the default).

    `str` gives its name: `gguf:q4_0`, `onnx:int4`, `onnx:int4@if`.
    """

    family: str
    type: str
    graph: str = ""

    def __post_init__(self) -> None:
        """Raises KeyError for an unknown family. A graph is not looked at, nor is the type."""
        object.__setattr__(self, "graph", self.graph or GRAPHS[self.family][0])

    def __str__(self) -> str:
        """The name; `Spec.parse` reads it."""
        named = self.graph != GRAPHS[self.family][0]
        return f"{self.family}:{self.type}" + (f"@{self.graph}" if named else "")

    @property
    def place(self) -> str:
        """The name without the family, as a part of a file name: `int4-if`."""
        return str(self).removeprefix(f"{self.family}:").replace("@", "-")

    @classmethod
    def parse(cls, text: str) -> Spec:
        """Read what was written after --to. Raises EmoExportError for what is not a target."""
        if "," in text:
            raise EmoExportError(f"--to {text}: one target each; repeat --to for the next")
        family, _, rest = text.lower().partition(":")
        type_name, at, graph = rest.partition("@")
        if family not in GRAPHS or not type_name:
            raise EmoExportError(
                f"--to {text}: expected gguf:TYPE or onnx:TYPE[@GRAPH], as in gguf:q4_0"
            )
        if at and (not graph or graph not in GRAPHS[family]):
            known = ", ".join(f"@{name}" for name in GRAPHS[ONNX])
            raise EmoExportError(f"--to {text}: graph {graph!r} is not known; onnx has {known}")
        return cls(family, type_name, graph)
