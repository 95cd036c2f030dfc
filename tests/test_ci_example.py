"""examples/ci/github-actions.yml: its commands run in order, as a runner's shell would run them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from emo_export.cli.main import cli
from tests.kit.junit_schema import check_junit
from tests.kit.packages import package
from tests.kit.paths import NANO, ROOT

WORKFLOW: dict[str, Any] = yaml.safe_load(
    (ROOT / "examples" / "ci" / "github-actions.yml").read_text("utf-8")
)
JOBS: dict[str, dict[str, Any]] = WORKFLOW["jobs"]


def lines(job: str) -> list[str]:
    return [step["run"] for step in JOBS[job]["steps"] if "run" in step]


def test_it_is_a_workflow_for_both_processors() -> None:
    assert WORKFLOW[True].keys() == {"push", "pull_request"}  # YAML 1.1 reads `on` as true
    assert JOBS["parity"]["strategy"]["matrix"]["runner"] == ["ubuntu-24.04", "ubuntu-24.04-arm"]
    used = {step["uses"] for job in JOBS.values() for step in job["steps"] if "uses" in step}
    assert used == {
        "actions/cache@v5",
        "actions/checkout@v6",
        "actions/setup-python@v6",
        "actions/upload-artifact@v7",
    }
    assert "CHANGE-ME" in WORKFLOW["env"]["EMO_EXPORT"]  # there is no release to point at


@pytest.mark.parametrize("job", JOBS)
def test_every_option_exists_and_every_report_is_uploaded(job: str) -> None:
    for line in lines(job):
        if line.startswith("emo-export "):
            with pytest.raises(SystemExit) as stop:  # an unknown option is refused before --help
                cli.main([*line.split()[1:], "--help"], prog_name="emo-export")
            assert stop.value.code == 0, line
    written = set(re.findall(r"\S+\.(?:xml|html)\b", " ".join(lines(job))))
    (upload,) = (s["with"] for s in JOBS[job]["steps"] if "upload-artifact" in s.get("uses", ""))
    assert set(upload["path"].split()) == written


@pytest.mark.slow
def test_the_job_on_a_package(tmp_path: Path) -> None:
    """Everything but the installation, with `emo-export` and `python` found on the PATH."""
    made = package(NANO, ("gguf:q4_0", "onnx:int4"), "--heldout-tokens", "256")
    shutil.copytree(made, tmp_path / "mine")
    shutil.copy(ROOT / "examples" / "test_my_package.py", tmp_path)
    programs = tmp_path / "bin"
    programs.mkdir()
    for name, command in (("emo-export", "-m emo_export.cli.main"), ("python", "")):
        script = f'#!/bin/sh\nexec "{sys.executable}" {command} "$@"\n'
        (programs / name).write_text(script)
        (programs / name).chmod(0o755)
    env = os.environ | {
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "PYTEST_PLUGINS": "emo_export.pytest_plugin",
        "PACKAGE": WORKFLOW["env"]["PACKAGE"],
    }
    install, *rest = lines("parity")
    assert install.startswith("pip install ")
    for line in rest:
        done = subprocess.run(
            ["bash", "-e", "-c", line],
            cwd=tmp_path,
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{line}\n{done.stdout}{done.stderr}"
    names = {suite.attrib["name"] for suite in check_junit((tmp_path / "parity.xml").read_bytes())}
    assert names == {"mine.here.gguf:q4_0", "mine.here.onnx:int4"}
