"""The requirements that travel to a device are those of pyproject.toml."""

from __future__ import annotations

import tomllib

from emo_export.base.engine_packages import BASE, ENGINES, module_of, requirements_for
from tests.kit.paths import ROOT


def test_they_are_those_of_the_extras() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    assert list(ENGINES["gguf"]) == extras["llama"]
    assert list(ENGINES["onnx"]) == extras["ort"]
    assert set(BASE) < set(project["dependencies"])


def test_each_is_imported_under_its_own_name() -> None:
    named = [module_of(line) for line in requirements_for(("onnx", "gguf"))]
    assert named == ["numpy", "onnxruntime", "xllamacpp"]
    assert requirements_for(("gguf", "gguf")) == (*BASE, *ENGINES["gguf"])
