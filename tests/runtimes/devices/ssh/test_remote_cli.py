"""`--device ssh://…` on the command line, from validating with every report to cleaning up."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from tests.kit.command import Emo
from tests.kit.ssh_server import SshServer
from tests.runtimes.devices.ssh.far import put_program

pytestmark = pytest.mark.slow


def test_a_package_is_judged_measured_reported_and_cleaned_away(
    emo: Emo, server: SshServer, folder: Path, tmp_path: Path
) -> None:
    page, junit = tmp_path / "r.html", tmp_path / "r.xml"
    options = ["--bench", "--threads", 1, "--html", page, "--junit", junit, "--json"]
    done = emo("validate", folder, "--device", server.url, *options)
    assert done.code == 0, done.err
    gguf, onnx = json.loads(done.out)["targets"]
    for report in (gguf, onnx):
        assert report["passed"] and report["speed"]["decode_tokens_per_second"] > 0
        assert report["machine"]["CPU features"] and report["machine"]["architecture"]
    assert gguf["engine"]["CPU backend"]
    assert any("MatMulNBits" in key for key in onnx["kernels"])
    assert server.url in page.read_text("utf-8")
    assert ElementTree.parse(junit).getroot().get("failures") == "0"
    done = emo("device", "clean", server.url)
    assert done.code == 0 and done.out.startswith(f"removed {server.cache / 'packages'}\n")
    assert done.out.endswith(" MB removed\n") and not server.cache.exists()
    assert emo("device", "clean", server.url).out == f"{server.url}: nothing to remove\n"


@pytest.mark.parametrize(
    ("script", "code", "said"),
    [
        ("*on_device\\ *) kill -ILL $$ ;;", 1, "ended by SIGILL: "),
        ("*on_device\\ *) kill -KILL $$ ;;", 1, "ended by SIGKILL: the system killed it"),
        ("*on_device\\ *) echo told >&2; exit 7 ;;", 2, "ended with code 7 and no answer: told"),
        ("*on_device_bench*) kill -KILL $$ ;;", 2, "gguf:f32: ended by SIGKILL"),
    ],
)
def test_what_ends_a_run_there_is_told_with_its_exit_code(
    emo: Emo, server: SshServer, folder: Path, programs: Path, script: str, code: int, said: str
) -> None:
    put_program(programs, "python3", f'case "$*" in {script} esac\nexec "{sys.executable}" "$@"')
    options = ["--target", "gguf:f32", "--bench", "--device-tokens", 16, "--json"]
    done = emo("validate", folder, "--device", server.url, *options)
    assert done.code == code and said in done.err + done.out
    (report,) = json.loads(done.out)["targets"]
    assert not report["passed"] and bool(report["crash"]) == (code == 1)


def test_memory_is_not_to_be_capped_there(emo: Emo, folder: Path) -> None:
    done = emo("validate", folder, "--device", "ssh://pi", "--ram", "1GB")
    assert done.code == 2 and "ssh://pi has the memory it has" in done.err
