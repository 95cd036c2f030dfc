"""`--device ssh://…` against a real sshd on this machine, as whoever runs the tests."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from emo_export.devices import Device
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.manifest import Manifest
from emo_export.runtimes import remote_copy
from emo_export.runtimes.remote import SshDevice, clean_remote
from emo_export.runtimes.remote_bench import remote_speeds
from emo_export.runtimes.ssh_link import COMMAND, SshLink
from tests.device_runs import judged_on
from tests.packages import SMALL_TARGETS, package
from tests.ssh_server import SshServer, ssh_server

DEVICE: type[Device] = SshDevice  # mypy checks the protocol here
pytestmark = pytest.mark.slow
BIG = 32 << 20
SECONDS = f"61.{os.getpid()}"  # which tells our own from others
SLEEP = f'case "$*" in *on_device*) exec sleep {SECONDS} ;; esac'


def put_program(folder: Path, name: str, script: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / name).write_text(f"#!/bin/sh\n{script}\n", "utf-8")
    (folder / name).chmod(0o755)


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a session finds on its PATH before the system's: a test may replace it."""
    return tmp_path_factory.mktemp("bin")


@pytest.fixture(scope="module")
def shared(tmp_path_factory: pytest.TempPathFactory, programs: Path) -> Iterator[SshServer]:
    folder = tmp_path_factory.mktemp("ssh") / "server"
    with ssh_server(folder, {"PATH": f"{programs}:{os.environ['PATH']}"}) as server:
        yield server


@pytest.fixture
def server(
    shared: SshServer, programs: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[SshServer]:
    """The server with nothing of ours in its home, and this Python as the python3 there."""
    put_program(programs, "python3", f'exec "{sys.executable}" "$@"')
    put_program(programs, "uname", '[ "$1" = -m ] && exec echo x86_64; exec /usr/bin/uname "$@"')
    monkeypatch.setenv(COMMAND, shared.ssh)
    yield shared
    subprocess.run(["rm", "-rf", str(shared.home / ".cache")], check=True)


@pytest.fixture(scope="module")
def folder(golden: Path) -> Path:
    return package(golden / "base", SMALL_TARGETS)


@pytest.fixture
def said() -> list[str]:
    return []


@pytest.fixture
def device(server: SshServer, said: list[str]) -> Iterator[SshDevice]:
    found = SshDevice(server.url, said.append)
    yield found
    found.close()


def targets_of(folder: Path) -> Mapping[str, Mapping[str, Any]]:
    return Manifest.load(folder).targets


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < end, "it did not come"
        time.sleep(0.005)


def running(server: SshServer, what: str) -> list[int]:
    """Processes on this machine whose command line has both the server's home and `what`."""
    found = []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            line = (place / "cmdline").read_bytes().decode(errors="replace")
        except OSError:
            continue
        if str(server.home) in line and what in line:
            found.append(int(place.name))
    return found


def test_a_package_is_judged_there_and_only_the_copy_stays(
    server: SshServer, folder: Path, device: SshDevice, said: list[str]
) -> None:
    targets = targets_of(folder)
    stored = json.loads((folder / "parity.json").read_text("utf-8"))["targets"]
    reports = judged_on(device, folder, targets)
    assert [report.target for report in reports] == list(targets)
    for found, expected in zip(reports, stored, strict=True):
        assert found.passed and found.report is not None and found.device == server.url
        rows = {(r["against"], r["arithmetic"], r["mode"]): r for r in expected["rows"]}
        for row in found.report.rows:
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
    found = remote_speeds(device, folder, targets, short)
    assert list(found) == list(targets)
    for spec, engine in (("gguf:f32", "llama.cpp"), ("onnx:f32", "ONNX Runtime")):
        assert found[spec]["decode_tokens_per_second"] > 0
        assert found[spec]["engine"]["engine"] == engine
        assert found[spec]["memory"]["resident"] > 1 << 20
    with pytest.raises(EmoExportError, match="exceed the context"):
        remote_speeds(device, folder, targets, {"prefill": 10**6})
    killed = 'case "$*" in *on_device_bench*) kill -9 $$ ;; esac'
    put_program(programs, "python3", f'{killed}\nexec "{sys.executable}" "$@"')
    with pytest.raises(EmoExportError, match="onnx:f32: ended by SIGKILL"):
        remote_speeds(device, folder, {"onnx:f32": targets["onnx:f32"]}, short)


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
    assert clean_remote(server.url) == held
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
    assert str(targets["gguf:f32"]["path"]) in {path.name for path in place.iterdir()}
    assert not (place / "of-an-older-export.gguf").exists()


class Counting(SshLink):
    """A connection that counts what it sends."""

    sent = 0

    def ask(self, request: Mapping[str, Any], body: bytes | memoryview = b"") -> dict[str, Any]:
        self.sent += len(body)
        return super().ask(request, body)


@pytest.fixture
def big(tmp_path: Path, folder: Path) -> Path:
    """A package with a file that takes a moment to send."""
    made = tmp_path / "big"
    subprocess.run(["cp", "-r", str(folder), str(made)], check=True)
    (made / "golden.npz").write_bytes(os.urandom(BIG))
    return made


def test_a_copy_goes_on_where_the_connection_was_lost(
    server: SshServer, big: Path, monkeypatch: pytest.MonkeyPatch, said: list[str]
) -> None:
    links: list[Counting] = []

    def link(*arguments: Any) -> SshLink:
        links.append(Counting(*arguments))
        return links[-1]

    def part() -> int:
        return sum(path.stat().st_size for path in server.cache.glob("packages/*/golden*.part"))

    def cut_it() -> None:
        wait_for(lambda: part() > BIG // 8)
        server.cut()

    monkeypatch.setattr("emo_export.runtimes.remote.SshLink", link)
    targets = targets_of(big)
    cutter = threading.Thread(target=cut_it)
    cutter.start()
    device = SshDevice(server.url, said.append)
    with pytest.raises(EmoExportError, match="connection was lost; start again"):
        device.place(big, targets)
    cutter.join()
    device.close()
    wait_for(lambda: not running(server, "runtime.zip") and not list(server.cache.glob("runs/*")))
    there = part()
    assert BIG // 8 < there < BIG
    again = SshDevice(server.url, said.append)
    try:
        place = Path(again.place(big, targets))
    finally:
        again.close()
    others = sum(path.stat().st_size for path in place.rglob("*") if path.is_file())
    others -= sum((place / name).stat().st_size for name in (".digests.json", ".lock"))
    assert links[-1].sent == others - there
    assert (place / "golden.npz").read_bytes() == (big / "golden.npz").read_bytes()
    assert part() == 0


def test_a_part_with_other_bytes_is_found_out(
    server: SshServer, big: Path, device: SshDevice, said: list[str]
) -> None:
    place = Path(device.place(big, targets_of(big)))
    device.close()
    from emo_export.manifest import digest
    from emo_export.runtimes.far_files import part_of

    (place / "golden.npz").unlink()
    part_of(place / "golden.npz", digest(big / "golden.npz")).write_bytes(b"x" * 1000)
    device.place(big, targets_of(big))
    assert (place / "golden.npz").read_bytes() == (big / "golden.npz").read_bytes()
    assert [text for text in said if "of which 0.0 MB are there" in text]


def test_a_connection_lost_in_a_run_is_no_result_and_leaves_nothing(
    server: SshServer, folder: Path, device: SshDevice, programs: Path
) -> None:
    place = device.place(folder, targets_of(folder))
    put_program(programs, "python3", f"{SLEEP}\nexit 1")

    def cut_it() -> None:
        wait_for(lambda: bool(sleeping()))
        server.cut()

    cutter = threading.Thread(target=cut_it)
    cutter.start()
    with pytest.raises(EmoExportError, match="connection was lost"):
        device.run([place, "gguf:f32"])
    cutter.join()
    wait_for(lambda: not sleeping() and not list(server.cache.glob("runs/*")))


def sleeping() -> list[str]:
    found = subprocess.run(["ps", "-eo", "args"], capture_output=True, text=True, check=True)
    return [line for line in found.stdout.splitlines() if line.strip() == f"sleep {SECONDS}"]


def test_an_interrupt_ends_what_runs_there(server: SshServer, folder: Path, programs: Path) -> None:
    put_program(programs, "python3", f'{SLEEP}\nexec "{sys.executable}" "$@"')
    code = (
        "import sys\nfrom pathlib import Path\nfrom emo_export.manifest import Manifest\n"
        "from emo_export.runtimes.remote import SshDevice\n"
        "device = SshDevice(sys.argv[1], print)\nfolder = Path(sys.argv[2])\n"
        "try:\n    place = device.place(folder, Manifest.load(folder).targets)\n"
        "    device.run([place, 'gguf:f32'])\nfinally:\n    device.close()\n"
    )
    command = [sys.executable, "-c", code, server.url, str(folder)]
    process = subprocess.Popen(
        command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, start_new_session=True
    )
    try:
        wait_for(lambda: bool(sleeping()))
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does: to ssh as well
        assert b"KeyboardInterrupt" in process.communicate(timeout=30)[1]
    finally:
        process.kill()
    wait_for(lambda: not sleeping() and not list(server.cache.glob("runs/*")))
    assert not (server.cache / "runs").exists()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGILL])
def test_a_signal_that_ends_a_run_comes_home(
    folder: Path, device: SshDevice, programs: Path, number: signal.Signals
) -> None:
    place = device.place(folder, targets_of(folder))
    put_program(programs, "python3", f"kill -{int(number)} $$")
    assert device.run([place, "gguf:f32"]).code == -number
    put_program(programs, "python3", f"sh -c 'kill -{int(number)} $$'; exit $?")
    assert device.run([place, "gguf:f32"]).code == -number


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


def test_a_disk_that_is_too_small_is_refused_with_the_numbers(
    server: SshServer, folder: Path, device: SshDevice, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_copy, "SPARE", 10**18)
    with pytest.raises(EmoExportError, match=r"needs 10{10}\d{2}\.\d MB .* has \d+\.\d MB free"):
        device.place(folder, targets_of(folder))
    assert not list(server.cache.glob("packages/*/*.npz*"))


def test_a_disk_that_fills_up_is_told(
    server: SshServer, big: Path, device: SshDevice, programs: Path
) -> None:
    script = f'ulimit -f 20000; exec "{sys.executable}" "$@"'  # blocks of 512 bytes
    put_program(programs, "python3", script)
    with pytest.raises(EmoExportError, match="free some space there and start again") as refused:
        device.place(big, targets_of(big))
    assert "golden.npz" in str(refused.value)
    device.close()
    assert not (server.cache / "runs").exists()


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


def test_a_login_script_may_talk(folder: Path, device: SshDevice, programs: Path) -> None:
    put_program(programs, "sh", 'echo Welcome; echo "emo"; exec /bin/sh "$@"')
    try:
        assert device.place(folder, targets_of(folder))
    finally:
        (programs / "sh").unlink()


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("HostName=no-such-host.invalid", "there is no host of this name"),
        ("Port=1", "nothing answers there on ssh's port"),
        ("IdentityFile=/dev/null", "it does not let you in"),
        ("UserKnownHostsFile=/dev/null", "its host key is not known yet"),
        ("UserKnownHostsFile={folder}/changed", "its host key is not the one that is known"),
        ("ProxyCommand=exit 3", "ssh could not open a session there"),
    ],
)
def test_a_connection_that_fails_is_one_sentence_and_what_ssh_said(
    server: SshServer, monkeypatch: pytest.MonkeyPatch, option: str, said: str
) -> None:
    other = (server.folder / "user.pub").read_text("ascii")
    (server.folder / "changed").write_text(f"[127.0.0.1]:{server.port} {other}", "ascii")
    config = (server.folder / "client").read_text("utf-8")
    name, _, value = option.format(folder=server.folder).partition("=")
    first = f"Host *\n    {name} {value}\n"  # ssh takes the first value that it reads
    kept = [line for line in config.splitlines() if name not in line]
    (server.folder / "bad").write_text(first + "\n".join(kept[1:]) + "\n", "utf-8")
    monkeypatch.setenv(COMMAND, f"ssh -F {server.folder}/bad")
    url = "ssh://tester@127.0.0.1" if name == "Port" else server.url
    with pytest.raises(EmoExportError) as refused:
        clean_remote(url)
    sentence, *words = str(refused.value).splitlines()
    assert said in sentence and sentence.startswith(f"{url}: ")
    assert words


def test_without_ssh_its_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(COMMAND, "no-such-ssh -v")
    with pytest.raises(MissingDependencyError, match=r"no-such-ssh.*apt install openssh-client"):
        clean_remote("ssh://pi")
