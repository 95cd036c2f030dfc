"""What Jenkins' junit-10.xsd allows, as a table: no schema language is in Python's library."""

from __future__ import annotations

import xml.etree.ElementTree as ET

# element: (attributes that must be there, others that may, elements inside)
SCHEMA: dict[str, tuple[set[str], set[str], set[str]]] = {
    "testsuites": (set(), {"name", "time", "tests", "failures", "errors"}, {"testsuite"}),
    "testsuite": (
        {"name", "tests", "failures", "errors"},
        {
            "group",
            "time",
            "skipped",
            "timestamp",
            "hostname",
            "id",
            "package",
            "file",
            "log",
            "url",
        },
        {"testsuite", "properties", "testcase", "system-out", "system-err"},
    ),
    "properties": (set(), set(), {"property"}),
    "property": ({"name", "value"}, set(), set()),
    "testcase": (
        {"name"},
        {"time", "classname", "group"},
        {"skipped", "error", "failure", "system-out", "system-err"},
    ),
    "failure": (set(), {"type", "message"}, set()),
    "error": (set(), {"type", "message"}, set()),
    "skipped": (set(), {"type", "message"}, set()),
    "system-out": (set(), set(), set()),
}
TEXT = {"failure", "error", "skipped", "system-out"}


def check_junit(content: bytes) -> ET.Element:
    """Parse JUnit XML and hold it to the schema and to its own counts."""
    root = ET.fromstring(content)
    assert root.tag == "testsuites"
    for element in root.iter():
        must, may, inside = SCHEMA[element.tag]
        assert must <= set(element.keys()) <= must | may, element.attrib
        assert {child.tag for child in element} <= inside, element.tag
        if element.tag not in TEXT:
            assert not (element.text or "").strip() and not (element.tail or "").strip()
    for suite in root:
        cases = suite.findall("testcase")
        names = [(case.get("classname"), case.get("name")) for case in cases]
        assert len(set(names)) == len(names)
        assert suite.get("tests") == str(len(cases)) and cases
        for count, tag in (("failures", "failure"), ("errors", "error")):
            assert suite.get(count) == str(len(suite.findall(f"testcase/{tag}")))
    for count in ("tests", "failures", "errors"):
        assert root.get(count) == str(sum(int(suite.attrib[count]) for suite in root))
    return root
