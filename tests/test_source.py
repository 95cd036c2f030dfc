"""What our own source never does: run code that it read, or hand a text to a shell."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

import pytest

from tests.kit.paths import ROOT

PLACES = ("emo_export", "converters", "runtimes", "examples")
NEVER_CALLED = {
    "eval",
    "exec",
    "os.system",
    "os.popen",
    "subprocess.getoutput",
    "subprocess.getstatusoutput",
    "torch.load",
    "yaml.load",
    "yaml.unsafe_load",
    "runpy.run_path",
}
NEVER_IMPORTED = {"pickle", "cPickle", "dill", "joblib", "shelve", "marshal", "cloudpickle"}
WORKFLOW = ROOT / "examples" / "ci" / "github-actions.yml"
NEVER_TRUE = {"shell", "allow_pickle", "trust_remote_code"}
WORTH_PARSING = re.compile(
    r"eval|exec|os\.(system|popen)|getoutput|\.load\b|unsafe_load|run_path|Markup|pickle|dill|"
    r"joblib|shelve|marshal|shell=|trust_remote_code"
)
PASSING_AUTOESCAPE = {"Markup", "markupsafe.Markup"}


def calls(name: ast.expr) -> str:
    """The dotted name of what is called; empty where it is no name."""
    if isinstance(name, ast.Attribute):
        inner = calls(name.value)
        return f"{inner}.{name.attr}" if inner else ""
    return name.id if isinstance(name, ast.Name) else ""


def faults(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """(line, what it does)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = {alias.name for alias in node.names}
            names |= {node.module} if isinstance(node, ast.ImportFrom) and node.module else set()
            for name in names & NEVER_IMPORTED:
                yield node.lineno, f"imports {name}"
        elif isinstance(node, ast.Call):
            name = calls(node.func)
            if name in NEVER_CALLED | PASSING_AUTOESCAPE:
                yield node.lineno, f"calls {name}"
            if name.endswith("np.load") and not any(k.arg == "allow_pickle" for k in node.keywords):
                yield node.lineno, "leaves allow_pickle to numpy"
            for keyword in node.keywords:
                truth = isinstance(keyword.value, ast.Constant) and not keyword.value.value
                if keyword.arg in NEVER_TRUE and not truth:
                    yield node.lineno, f"gives {keyword.arg}"


def test_no_source_of_ours_runs_what_it_reads() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{line}: {what}"
        for place in PLACES
        for path in sorted((ROOT / place).rglob("*.py"))
        if WORTH_PARSING.search(source := path.read_text("utf-8"))
        for line, what in faults(ast.parse(source))
    ]
    assert found == []


@pytest.mark.parametrize(
    "source",
    [
        "eval('1')",
        "import pickle",
        "from pickle import load",
        "import os; os.system('true')",
        "run('x', shell=True)",
        "np.load(path)",
        "np.load(path, allow_pickle=allowed)",
        "torch.load(path)",
        "AutoModel.from_pretrained(name, trust_remote_code=1)",
    ],
)
def test_what_it_would_find(source: str) -> None:
    assert WORTH_PARSING.search(source)
    assert list(faults(ast.parse(source)))


def test_templates_switch_no_escaping_off() -> None:
    templates = list((ROOT / "emo_export").rglob("*.j2"))
    assert templates
    for path in templates:
        assert not re.search(r"\|\s*safe\b|autoescape", path.read_text("utf-8")), path


def test_the_workflow_for_others_may_only_read() -> None:
    workflow = WORKFLOW.read_text("utf-8")
    assert "\npermissions:\n  contents: read\n" in workflow
    assert "secrets." not in workflow and "permissions" not in workflow.replace(
        "permissions", "", 1
    )


def test_all_that_is_shown_goes_through_one_module() -> None:
    """`cli/output.py` spells out what would move a terminal; JSON has it escaped."""
    found = []
    for path in sorted((ROOT / "emo_export").rglob("*.py")):
        source = path.read_text("utf-8")
        if path.name == "output.py" or not re.search(r"Console\(|\.echo\(", source):
            continue
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Call):
                name, given = calls(node.func), node.args[0] if node.args else None
                to_file = any(keyword.arg == "file" for keyword in node.keywords)
                in_json = isinstance(given, ast.Call) and calls(given.func) == "json.dumps"
                if (name == "Console" and not to_file) or (name == "click.echo" and not in_json):
                    found.append(f"{path.relative_to(ROOT)}:{node.lineno}: {name}")
    assert found == []
