"""The report of a validation as one HTML page that needs no network and no script.

A jinja2 template with autoescape makes it; every figure of a comparison carries the path at which
the JSON has it. Charts are inline SVG (emo_export.report.html.charts).
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export import __version__
from emo_export.base import disk
from emo_export.base.install import install_command
from emo_export.base.shown import shown
from emo_export.errors import MissingDependencyError
from emo_export.files.manifest import Manifest
from emo_export.parity.golden import ORIGINAL, Golden
from emo_export.parity.result import Result, worst
from emo_export.report import pruning, sentences
from emo_export.report.html import charts, memory_words
from emo_export.report.html import view as report_view
from emo_export.report.html import words as report_words
from emo_export.report.html.view import Numbered
from emo_export.report.recipes import shown_types

if TYPE_CHECKING:
    from jinja2 import Environment

TEMPLATES = (
    "report.html.j2",
    "report_macros.html.j2",
    "report_charts.html.j2",
    "report_device.html.j2",
    "sweep.html.j2",
    "report_usage.html.j2",
    "usage.html.j2",
    "bench.html.j2",
    "compare.html.j2",
    "compare.svg.j2",
    "compare_picture.svg.j2",
    "report.css",
)


def check_writable(path: Path) -> None:
    """Refuse, before the long work, a page that could not be made at its end.

    Raises MissingDependencyError without jinja2, EmoExportError where no file can be written.
    """
    _check_jinja()
    disk.check_writable(path)


def write_html(
    path: Path,
    results: Sequence[Result],
    *,
    package: Path,
    golden: Golden | None = None,
    manifest: Manifest | None = None,
    when: datetime | None = None,
) -> None:
    """Write the page of one validation of `package`; it appears under its name only when whole.

    `golden` adds expert usage, `manifest` versions and pruning; `when` is the time it states (now).
    Raises MissingDependencyError without jinja2, EmoExportError when it can't be written.
    """
    _check_jinja()
    text = html(results, package, golden, manifest, when or datetime.now(UTC))
    # A name of the file system need not be text that can be encoded.
    disk.write_whole(path, text.encode("utf-8", "replace"))


def _check_jinja() -> None:
    if importlib.util.find_spec("jinja2") is None:
        raise MissingDependencyError(f"the HTML report needs jinja2: {install_command('report')}")


def html(
    results: Sequence[Result],
    package: Path,
    golden: Golden | None,
    manifest: Manifest | None,
    when: datetime,
) -> str:
    """The page as text."""
    numbered = [Numbered(index, result) for index, result in enumerate(results)]
    devices = dict.fromkeys(result.device for result in results)
    return (
        environment()
        .get_template("report.html.j2")
        .render(
            verdict=worst(results),
            results=numbered,
            devices={name: [n for n in numbered if n.result.device == name] for name in devices},
            targets=list(dict.fromkeys(result.target for result in results)),
            name=package.resolve().name,
            usage=report_view.expert_usage(golden) if golden else [],
            manifest=manifest,
            version=__version__,
            when=when,
        )
    )


@functools.cache
def environment() -> Environment:
    """Templates with autoescape, in which what is not there is an error."""
    from jinja2 import DictLoader, Environment, StrictUndefined

    folder = resources.files("emo_export.report.html")
    environment = Environment(
        loader=DictLoader({name: folder.joinpath(name).read_text("utf-8") for name in TEMPLATES}),
        autoescape=True,
        finalize=lambda value: shown(value) if type(value) is str else value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "shown_types": shown_types,
        "charts": charts,
        "words": report_words,
        "memory_words": memory_words,
        "sentences": sentences,
        "pruning": pruning,
        "view": report_view,
        "original": ORIGINAL,
    }
    return environment
