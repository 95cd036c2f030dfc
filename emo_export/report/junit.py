"""Reports of devices as JUnit XML, the form in which CI services read test results.

Only what the readers of Jenkins, GitLab and GitHub's actions share is used: the elements and
attributes of Jenkins' junit-10.xsd. Durations are not known and left out. Names of suites and
cases hold no figures, so that a service can follow one case from run to run.
"""

from __future__ import annotations

import io
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from emo_export import __version__
from emo_export.base.disk import write_whole
from emo_export.base.shown import shown
from emo_export.parity.result import NOT_ENOUGH
from emo_export.report.sentences import MORE_TEXT, about_row, beside, faults, intervals, tokenizer

if TYPE_CHECKING:
    from emo_export.parity.result import Result, Row

WIDTH = 100  # columns of the table in system-out


class _Case(NamedTuple):
    """One test case: what it is called, and what is wrong (nothing when it passed)."""

    name: str
    verdict: str = ""  # the element: "failure", "error" or "skipped"
    kind: str = ""
    lines: tuple[str, ...] = ()


def write_junit(path: Path, results: Sequence[Result], package: str) -> None:
    """Write JUnit XML under `path`, which never stands for half a file.

    Raises EmoExportError when it can't be written.
    """
    write_whole(path, junit_xml(results, package))


def junit_xml(results: Sequence[Result], package: str) -> bytes:
    """JUnit XML in UTF-8: a suite for each device and target, a case for each comparison.

    `package` names the exported folder and begins every class name. A limit that was exceeded is a
    `failure` (memory too), a run that did not come to its end an `error`, and a comparison whose
    text was too short to tell is `skipped`: neither a failure nor a pass.
    """
    root = ET.Element("testsuites", name="emo-export validate")
    for result in results:
        root.append(_suite(result, package))
    for count in ("tests", "failures", "errors"):  # the root has no count of what was skipped
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    ET.indent(root)
    return bytes(ET.tostring(root, encoding="utf-8", xml_declaration=True)) + b"\n"


def _suite(result: Result, package: str) -> ET.Element:
    cases = list(_cases(result))
    name = _clean(f"{package}.{result.device}.{result.target}")
    suite = ET.Element("testsuite", name=name, tests=str(len(cases)))
    for count, verdict in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
        suite.set(count, str(sum(case.verdict == verdict for case in cases)))
    properties = ET.SubElement(suite, "properties")
    for key, value in _facts(result):
        ET.SubElement(properties, "property", name=_clean(key), value=_clean(value))
    for case in cases:
        element = ET.SubElement(suite, "testcase", classname=name, name=_clean(case.name))
        if case.verdict:
            message = _clean(case.lines[0])
            wrong = ET.SubElement(element, case.verdict, type=case.kind, message=message)
            wrong.text = _clean("\n".join(case.lines))
    ET.SubElement(suite, "system-out").text = _clean(_table(result))
    return suite


def _cases(result: Result) -> Iterator[_Case]:
    """The run itself, each comparison, the tokenizer."""
    if not result.rows:
        verdict, kind = (
            ("failure", "DeviceFailure") if result.too_little else ("error", "DidNotRun")
        )
        yield _Case("run", verdict, kind, tuple(faults(result)))
        return
    yield _case("run", "DeviceFailure", beside(result))
    for row in result.rows:
        name = f"against {row.against}, {row.arithmetic} arithmetic, {row.mode}"
        told = about_row(row)
        if row.verdict == NOT_ENOUGH:
            yield _Case(name, "skipped", "NotEnoughText", (*told, MORE_TEXT, _figures(row)))
        else:
            yield _case(name, "ParityError", told and [*told, _figures(row)])
    yield _case("tokenizer", "ParityError", list(tokenizer(result.tokenizer)))


def _case(name: str, kind: str, failures: list[str]) -> _Case:
    return _Case(name, "failure", kind, tuple(failures)) if failures else _Case(name)


def _figures(row: Row) -> str:
    found = row.measured
    limits = ", ".join(f"{name} {value:g}" for name, value in row.limits.items())
    return (
        f"measured: mean KL {found.kl_mean:.3e}, largest {found.kl_max:.3e}, top-1 "
        f"{found.top1:.4f}, largest logit error {found.max_abs:.3e} over {found.positions} "
        f"positions ({found.near_ties} on near ties, scored apart); limits: {limits}"
        + (f"; within 95%: {found_within}" if (found_within := intervals(row)) else "")
    )


def _facts(result: Result) -> Iterator[tuple[str, str]]:
    """Versions, kernels, settings and memory that the figures hang on."""
    yield "emo-export", __version__
    yield "device", result.device
    yield "kind", result.kind
    yield "target", result.target
    yield "command", result.command
    yield "repeat", result.repeat
    groups = {"machine": result.machine, "kernels": result.kernels, "engine": result.engine}
    for group, facts in groups.items():
        for key, value in facts.items():
            yield f"{group}.{key}", str(value)
    yield from _flat("memory", result.memory or {})
    yield from _flat("speed", result.speed or {})


def _flat(prefix: str, facts: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Nested facts under names with dots; samples over time are for the HTML page."""
    for key, value in facts.items():
        if isinstance(value, Mapping):
            yield from _flat(f"{prefix}.{key}", value)
        elif isinstance(value, list | tuple) and key != "samples":
            yield f"{prefix}.{key}", ", ".join(map(str, value))
        elif isinstance(value, str | int | float | bool):
            yield f"{prefix}.{key}", str(value)


def _table(result: Result) -> str:
    """What the terminal shows of this target."""
    from rich.console import Console

    from emo_export.report.text import details, facts

    text = io.StringIO()
    page = Console(file=text, width=WIDTH, color_system=None, force_terminal=False, markup=False)
    for line in dict.fromkeys((*details([result], page), *facts([result]), *beside(result))):
        page.print(line, markup=False, highlight=False, soft_wrap=True)
    return "\n".join(line.rstrip() for line in text.getvalue().splitlines())


def _clean(text: str) -> str:
    """The text as it may be shown, and without what else XML 1.0 has no place for."""
    return shown(text).replace("\ufffe", r"\ufffe").replace("\uffff", r"\uffff")
