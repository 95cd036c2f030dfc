"""Types of single layers: in schemes, in files and read back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.families import target_maker
from emo_export.families.options import TargetOptions
from emo_export.files.target_entry import TargetEntry
from emo_export.line import Line, Output
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Role, Slot
from emo_export.model.product import Product
from emo_export.model.recipes import Part, Recipe
from emo_export.pipeline import stream
from emo_export.report.recipes import shown_types
from emo_export.spec import Spec
from tests.kit.synth import make_checkpoint

RECIPES: dict[str, Recipe] = {
    "onnx:auto": {
        Part.EMBED: "int4b32",
        Part.HEAD: "int4b64",
        Part.ATTENTION: ("int8b64", "int4b32"),
        Part.EXPERT: ("int4b32", "int8b32"),
        Part.EXPERT_DOWN: ("int4b32", "int8b32"),
        Part.SHARED_EXPERT: ("int8b32", "int4b32"),
    },
    "gguf:auto": {
        Part.EMBED: "q4_0",
        Part.HEAD: "q8_0",
        Part.ATTENTION: ("q5_0", "q8_0"),
        Part.EXPERT: ("q4_0", "q5_1"),
        Part.EXPERT_DOWN: ("q8_0", "q4_1"),
        Part.SHARED_EXPERT: ("q8_0", "q8_0"),
    },
}
CASES = [("onnx:auto", "onnx:auto"), ("onnx:auto@if", "onnx:auto"), ("gguf:auto", "gguf:auto")]


@pytest.mark.parametrize(("name", "recipe"), CASES)
def test_a_file_holds_what_its_recipe_says(name: str, recipe: str, tmp_path: Path) -> None:
    product = Product.whole(Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")))
    spec, types = Spec.parse(name), RECIPES[recipe]
    (target,) = target_maker([spec], product, TargetOptions(chosen={spec: types}))(tmp_path)
    target.writer.open()
    stream([Line(product, [Output(target.writer)])])
    target.writer.close()
    entry = TargetEntry.from_dict(spec, target.entry.as_dict() | {"recipe": _listed(types)})
    assert dict(entry.recipe or {}) == {part.value: t for part, t in types.items()}
    rows = target.read_back()
    for slot in (Slot(Role.Q, 0), Slot(Role.Q, 1), Slot(Role.DOWN, 0, 2), Slot(Role.UP, 1, 3)):
        part = {Role.Q: Part.ATTENTION, Role.DOWN: Part.EXPERT_DOWN, Role.UP: Part.EXPERT}
        kind = target.writer.format_of(slot)
        assert kind.name == types[part[slot.role]][slot.layer]
        stop = 64 if slot.role != Role.UP else 32
        wanted = kind.dequantize(kind.quantize(product.rows(slot, 0, stop)))
        np.testing.assert_array_equal(rows(slot, 0, stop), wanted)


def _listed(types: Recipe) -> dict[str, object]:
    return {part.value: t if isinstance(t, str) else list(t) for part, t in types.items()}


def test_recipes_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    config = Checkpoint.open(make_checkpoint(tmp_path / "checkpoint")).config
    spec, types = Spec.parse("onnx:auto"), RECIPES["onnx:auto"]
    with pytest.raises(EmoExportError, match=r"no type of its own for embed.*--recipe FILE"):
        onnx_scheme(spec, config)
    with pytest.raises(EmoExportError, match="3 types for attention, this model 2 layers"):
        onnx_scheme(spec, config, {**types, Part.ATTENTION: ("f32",) * 3})
    with pytest.raises(EmoExportError, match="2 types for head"):
        onnx_scheme(spec, config, {**types, Part.HEAD: ("f32",) * 2})
    with pytest.raises(EmoExportError, match="must have the same type"):
        onnx_scheme(spec, config, {**types, Part.EXPERT: "int4b32"})
    with pytest.raises(EmoExportError, match="auto is possible as onnx:auto@qmoe"):
        onnx_scheme(Spec.parse("onnx:auto@standard"), config)
    with pytest.raises(ValueError, match="gives head the type"):
        TargetEntry.from_dict(spec, {"path": "onnx-auto", "recipe": {"head": [1]}})


def test_types_in_words() -> None:
    assert shown_types("q6_k") == "q6_k"
    assert shown_types(("q6_k", "q6_k", "q4_k", "q6_k")) == "q6_k in 0-1, q4_k in 2, q6_k in 3"
