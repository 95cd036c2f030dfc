"""The commands of docs/signing.md, with a key made here, where no network answers."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.kit.flipping import flip
from tests.kit.packages import quantised_package
from tests.kit.paths import ROOT
from tests.kit.side_environment import python_with

SIGNING = ("model-signing==1.1.1", "pyOpenSSL>=26,<27")


@pytest.mark.slow
def test_a_package_is_signed_and_checked_offline(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("openssl, which makes the key, is not installed: apt-get install openssl")
    text = (ROOT / "docs" / "signing.md").read_text("utf-8")
    install, sign, verify = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    assert "pip install" in install and "sign key" in sign
    out = shutil.copytree(quantised_package(), tmp_path / "out")
    (tmp_path / "bin").mkdir()
    ours = f'PYTHONPATH="{ROOT}" exec "{sys.executable}" -m emo_export'
    for name, start in (("python", f'exec "{python_with(SIGNING)}"'), ("emo-export", ours)):
        script = tmp_path / "bin" / name
        script.write_text(f'#!/bin/sh\n{start} "$@"\n')
        script.chmod(0o755)
    nowhere = "http://127.0.0.1:9"
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {
        "PATH": f"{tmp_path / 'bin'}{os.pathsep}{os.environ['PATH']}",
        "HTTP_PROXY": nowhere,
        "HTTPS_PROXY": nowhere,
    }

    def run(commands: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["sh", "-e", "-c", commands],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )

    signed = run(sign)
    assert signed.returncode == 0, signed.stderr
    good = run(verify)
    assert good.returncode == 0, good.stderr
    assert "every byte" in good.stdout
    first, second = verify.splitlines()
    flip(out / "model-Q4_0.gguf", 300_000)
    assert run(first).returncode == 1
    named = run(second)
    assert named.returncode == 1 and "in tensor" in named.stderr
    flip(out / "model-Q4_0.gguf", 300_000)
    (out / "more.txt").write_text("more")
    assert run(first).returncode == 1
    (out / "more.txt").unlink()
    assert run(first).returncode == 0
    run("openssl ecparam -name prime256v1 -genkey -noout -out other.pem")
    run("openssl ec -in other.pem -pubout -out key.pub")
    assert run(first).returncode == 1
