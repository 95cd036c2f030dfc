"""Names of targets as people type them: what was meant where one is not known."""

from __future__ import annotations

import difflib
from collections.abc import Sequence

import click

from emo_export.errors import EmoExportError
from emo_export.model.recipes import AUTO, GGUF_RECIPES, ONNX_RECIPES
from emo_export.spec import GGUF, ONNX, Spec

NAMES = {
    *(str(Spec(GGUF, kind)) for kind in (*GGUF_RECIPES, AUTO)),
    *(str(Spec(ONNX, kind, graph)) for graph, kinds in ONNX_RECIPES.items() for kind in kinds),
    *(str(Spec(ONNX, AUTO, graph)) for graph in ONNX_RECIPES),
}
"""Every target."""


def meant(text: str) -> str | None:
    """The target that a name without family or with a slip stands for; None where none is near."""
    for name in sorted(NAMES):
        if name.partition(":")[2] == text.lower():
            return name
    near = difflib.get_close_matches(text.lower(), sorted(NAMES), 1, cutoff=0.8)
    return near[0] if near else None


def check(ctx: click.Context, param: click.Parameter, given: Sequence[str]) -> Sequence[str]:
    """The targets as they were given. Raises EmoExportError, with what was meant, for a slip.

    What is wrong with a graph is told where graphs are known.
    """
    for text in given:
        near = meant(text)
        if text.lower() not in NAMES and "@" not in text and near is not None:
            raise EmoExportError(f"--to {text}: there is no such target; did you mean {near}?")
    return given
