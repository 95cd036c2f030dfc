"""A small part of the benches of faults and of long runs: they print what they promise."""

from __future__ import annotations

import shutil
import subprocess
import sys

import pytest

from tests.kit.paths import ROOT


def bench(name: str, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", f"tests.bench.{name}", *words]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("gcc") is None, reason="gcc is missing: apt install gcc")
@pytest.mark.parametrize("number", range(3))
def test_nothing_is_lost_by_a_fault(number: int) -> None:
    """Ten kills and one of each other fault, in parts."""
    done = bench("faults", "--kills", "10", "--each", "1", "--part", f"{number}/3")
    assert done.returncode == 0, done.stderr
    rows = [line.split(" | ") for line in done.stdout.splitlines()]
    assert len(rows) > 5 and all(row[-1] == "0 |" for row in rows[1:])


@pytest.mark.slow
def test_a_loop_leaves_nothing_behind() -> None:
    few = ("--validations", "6", "--tokens", "600", "--limit", "5000000")
    done = bench("endurance", "--exports", "6", *few)  # so few that caches still fill
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("\n| ") >= 9
