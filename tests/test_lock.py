"""What .ci/run installs is pinned, fits pyproject.toml, and is above advisories that we know."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests.kit.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LINES = (ROOT / ".ci" / "constraints.txt").read_text("utf-8").splitlines()
PINS = {
    canonicalize_name(name): Version(version)
    for name, _, version in (line.partition("==") for line in LINES if not line.startswith("#"))
}
INSTALLED = ("test", "lint")
"""The extras of which .ci/run installs no more than these have in them."""


def requirements() -> list[Requirement]:
    project = PROJECT["project"]
    return [Requirement(text) for text in (*PROJECT["build-system"]["requires"], *_of(project))]


def _of(project: dict[str, object]) -> Iterator[str]:
    extras, todo = project["optional-dependencies"], list(INSTALLED)
    assert isinstance(extras, dict) and isinstance(project["dependencies"], list)
    yield from project["dependencies"]
    while todo:
        for text in extras[todo.pop()]:
            if text.startswith("emo-export["):
                todo += Requirement(text).extras
            else:
                yield text


def test_every_dependency_has_one_version_within_its_range() -> None:
    assert len(PINS) == len(LINES) - 1 > 50
    for needed in requirements():
        pin = PINS[canonicalize_name(needed.name)]
        assert needed.specifier.contains(pin), f"{needed} has {pin}; run .ci/lock"
        assert pin.local is None  # a CPU build of torch is called +cpu on some machines alone


def floors() -> list[tuple[str, str, str]]:
    """The rows (package, floor, in which file) of the table in SECURITY.md."""
    text = (ROOT / "SECURITY.md").read_text("utf-8")
    return re.findall(r"^\| `([\w-]+)` \| ([\d.]+) \| (pyproject\.toml|lock) \|", text, re.M)


@pytest.mark.parametrize(("name", "floor", "where"), floors())
def test_floors_are_those_that_are_told(name: str, floor: str, where: str) -> None:
    least = Version(floor)
    assert PINS[canonicalize_name(name)] >= least
    ours = [one for one in requirements() if canonicalize_name(one.name) == name.lower()]
    if where == "pyproject.toml":
        begins = [Version(s.version) for one in ours for s in one.specifier if s.operator == ">="]
        assert begins and min(begins) >= least


def test_floors_are_told() -> None:
    assert len(floors()) >= 8


def test_ci_uses_the_lock() -> None:
    script = (ROOT / ".ci" / "run").read_text("utf-8")
    assert "export PIP_CONSTRAINT=$PWD/.ci/constraints.txt" in script
