"""`--device ssh://…` against a real sshd: what is judged there, and what stays."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.devices.device import Device
from emo_export.runtimes.devices.ssh.remote import SshDevice, clean_remote
from tests.kit.device_runs import judged_on
from tests.kit.ssh_server import SshServer
from tests.runtimes.devices.ssh.far import put_program, targets_of

DEVICE: type[Device] = SshDevice  # mypy checks the protocol here
pytestmark = pytest.mark.slow


def test_a_package_is_judged_there_and_only_the_copy_stays(
    server: SshServer, folder: Path, device: SshDevice, said: list[str]
) -> None:
    targets = targets_of(folder)
    stored = json.loads((folder / "parity.json").read_text("utf-8"))["targets"]
    reports = judged_on(device, folder, targets)
    assert [report.target for report in reports] == list(targets)
    for found, expected in zip(reports, stored, strict=True):
        assert found.passed and found.device == server.url
        rows = {(r["against"], r["arithmetic"], r["mode"]): r for r in expected["rows"]}
        for row in found.rows:
            same = rows[row.against, row.arithmetic, row.mode]["measured"]
            assert row.measured.kl_mean == pytest.approx(same["kl_mean"], rel=1e-6, abs=1e-15)
        assert found.machine["ssh"].startswith("OpenSSH") and found.machine["numpy"]
    device.close()
    left = {path.split("/")[2] for path in server.left_behind() if path.count("/") > 1}
    assert left == {"packages"}
    assert server.left_behind() >= {".cache/emo-export/packages"}
    assert {path.split("/")[1] for path in server.left_behind() if "/" in path} == {"emo-export"}


def test_speed_is_measured_there(
    server: SshServer, folder: Path, device: SshDevice, programs: Path
) -> None:
    targets = targets_of(folder)
    short = {"prefill": 8, "decode": 4, "depth": 2, "rounds": 1, "threads": 1}
    place = device.place(folder, targets)
    paths = {spec: f"{place}/{entry.path}" for spec, entry in targets.items()}
    found = {spec: device.speed(spec, path, short) for spec, path in paths.items()}
    for spec, engine in (("gguf:f32", "llama.cpp"), ("onnx:f32", "ONNX Runtime")):
        assert found[spec]["decode_tokens_per_second"] > 0
        assert found[spec]["engine"]["engine"] == engine
        assert found[spec]["memory"]["resident"] > 1 << 20
    with pytest.raises(EmoExportError, match="exceed the context"):
        device.speed("gguf:f32", paths["gguf:f32"], {"prefill": 10**6})
    killed = 'case "$*" in *on_device_bench*) kill -9 $$ ;; esac'
    put_program(programs, "python3", f'{killed}\nexec "{sys.executable}" "$@"')
    with pytest.raises(EmoExportError, match="onnx:f32: ended by SIGKILL"):
        device.speed("onnx:f32", paths["onnx:f32"], short)


def test_a_second_time_nothing_is_sent_and_clean_removes_all(
    server: SshServer, folder: Path, device: SshDevice, said: list[str]
) -> None:
    device.place(folder, targets_of(folder))
    device.close()
    assert any(text.startswith("copying ") for text in said)
    said.clear()
    place = Path(device.place(folder, targets_of(folder)))
    device.close()
    assert not any(text.startswith("copying ") for text in said)
    (place / "golden.npz").write_bytes(b"changed there")
    device.place(folder, targets_of(folder))
    device.close()
    sent = [text.split()[1] for text in said if text.startswith("copying ")]
    assert sent == ["golden.npz"]
    assert (place / "golden.npz").read_bytes() == (folder / "golden.npz").read_bytes()
    held = sum(path.stat().st_size for path in server.cache.rglob("*") if path.is_file())
    assert clean_remote(server.url) == ([str(server.cache / "packages")], held)
    assert server.left_behind() <= {".cache"}


def test_only_the_targets_that_were_asked_for_are_sent(
    folder: Path, device: SshDevice, said: list[str]
) -> None:
    targets = targets_of(folder)
    place = Path(device.place(folder, {"onnx:f32": targets["onnx:f32"]}))
    there = {path.name for path in place.iterdir() if not path.name.startswith(".")}
    assert there == {"manifest.json", "golden.npz", "onnx-f32"}
    (place / "of-an-older-export.gguf").touch()
    device.place(folder, targets)
    assert targets["gguf:f32"].path in {path.name for path in place.iterdir()}
    assert not (place / "of-an-older-export.gguf").exists()


def test_a_folder_of_a_run_that_was_killed_is_swept(
    server: SshServer, folder: Path, device: SshDevice
) -> None:
    old, young = (server.cache / "runs" / name for name in ("old", "young"))
    for left in (old, young):
        left.mkdir(parents=True)
        (left / "runtime.zip").touch()
    half = server.cache / ".venv-0123-4"
    half.mkdir()
    for left in (old, half):
        os.utime(left, (0, 0))
    device.place(folder, targets_of(folder))
    assert not old.exists() and not half.exists() and young.exists()


def test_an_engine_that_is_missing_is_told_before_anything_is_copied(
    server: SshServer, folder: Path, device: SshDevice, programs: Path
) -> None:
    put_program(programs, "python3", f'exec "{sys.executable}" -S "$@"')
    with pytest.raises(MissingDependencyError, match="lacks numpy, xllamacpp; add --setup"):
        device.place(folder, {"gguf:f32": targets_of(folder)["gguf:f32"]})
    device.close()
    assert server.left_behind() <= {".cache"}


def test_a_machine_that_will_not_do_is_refused_before_anything_is_written(
    server: SshServer, folder: Path, device: SshDevice, programs: Path
) -> None:
    put_program(programs, "uname", '[ "$1" = -m ] && exec echo armv7l; exec /usr/bin/uname "$@"')
    with pytest.raises(EmoExportError, match="machine of type armv7l"):
        device.place(folder, targets_of(folder))
    assert not server.left_behind()
