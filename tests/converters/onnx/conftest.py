"""The page of examples/web, built, served and opened, for its tests."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from emo_export.runtimes.generate import generate
from emo_export.runtimes.ort.tokenizer import HfTokenizer
from emo_export.runtimes.sampling import GREEDY
from tests.converters.onnx.test_to_onnx import exact
from tests.kit.browsing import Browser, Site, browser, serving
from tests.kit.packages import package
from tests.kit.paths import NANO
from tests.kit.web_page import FOLDER, show
from tests.kit.web_tools import EXAMPLE, TESTS, lay_out, node


@pytest.fixture(scope="module")
def made() -> Path:
    """A package that a browser can open one target of."""
    return package(NANO, ("onnx:int4@if", "gguf:q8_0"), "--last-logits", "--no-validate")


@pytest.fixture(scope="module")
def built(made: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, with the package beside the page."""
    example = lay_out(tmp_path_factory.mktemp("example") / "web", EXAMPLE)
    place = example.parent / "site"
    named = example.parent / "nano"
    named.symlink_to(made)
    assert node(example / "build.mjs", place, named) == f"wrote {place}\n"
    return place


@pytest.fixture
def site(built: Path) -> Iterator[Site]:
    with serving(Site(built)) as up:
        yield up


@pytest.fixture(scope="module")
def session(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return lay_out(tmp_path_factory.mktemp("browser") / "web", TESTS) / "session.mjs"


@pytest.fixture
def phone(session: Path, site: Site, tmp_path: Path) -> Iterator[Browser]:
    """The page on a narrow screen."""
    with browser(session, tmp_path / "profile", 360, "dark") as page:
        show(page, site)
        yield page


@pytest.fixture(scope="module")
def said(made: Path) -> str:
    """What follows `def main(` by our runtime with float activations, as in onnxruntime-web."""
    folder = made / FOLDER
    tokenizer = HfTokenizer(folder)
    ids = tokenizer.encode("def main(")
    return "".join(generate(exact(folder), tokenizer, ids, GREEDY, max_tokens=16).texts())
