"""What is fetched wrong is refused and leaves nothing; servers and files are the tests' own."""

from __future__ import annotations

import base64
import hashlib
import http.server
import io
import json
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.emulated import debian, engines
from emo_export.runtimes.devices.emulated.debian import Fetched
from emo_export.runtimes.devices.emulated.emulation import Version
from emo_export.runtimes.devices.emulated.fetch import Progress
from emo_export.runtimes.devices.emulated.pins import Pin, read_pins
from emo_export.runtimes.devices.emulated.place import MARK, locked
from emo_export.runtimes.devices.emulated.setup import Parts, make_parts

QUIET = Progress(lambda text: None)
pytestmark = pytest.mark.usefixtures("devices")


def test_a_package_is_held_to_its_pin_and_to_the_index(tmp_path: Path) -> None:
    deb = tmp_path / "libx_1%3a2.0_arm64.deb"
    deb.write_bytes(b"content")
    sha256 = digest(deb)
    pin = Pin("libx", "1:2.0", sha256, 7, "arm64")
    assert debian._checked(tmp_path, pin, pin) == Fetched(deb, pin, Version("1:2.0"))
    other = replace(pin, digest="0" * 64)
    with pytest.raises(EmoExportError, match="pinned is 0000"):
        debian._checked(tmp_path, other, pin)
    with pytest.raises(EmoExportError, match=f"fetched {sha256}, expected the SHA-256 0000"):
        debian._checked(tmp_path, other, other)
    older = replace(pin, version="1:1.9", digest="1" * 64)
    newer = debian._checked(tmp_path, older, pin)
    assert newer.version == Version("1:2.0", False, "not the pinned 1:1.9, signed by Debian")
    gone = replace(pin, version="1:3.0")
    with pytest.raises(EmoExportError, match="fetched nothing"):
        debian._checked(tmp_path, gone, gone)


@pytest.fixture
def registry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder that is served as npm's registry is."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def __init__(self, *arguments: object) -> None:
            super().__init__(*arguments, directory=str(tmp_path / "registry"))  # type: ignore[arg-type]

        def log_message(self, *_: object) -> None: ...

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("npm_config_registry", f"http://127.0.0.1:{server.server_port}/")
    yield tmp_path / "registry"
    server.shutdown()
    server.server_close()


def tarball(registry: Path, names: list[str]) -> Pin:
    """A package of npm with these files, published."""
    file = registry / "@x" / "llama" / "-" / "llama-1.0.tgz"
    file.parent.mkdir(parents=True)
    build = json.dumps({"buildOptions": {"llamaCpp": {"release": "b1"}}}).encode()
    with tarfile.open(file, "w:gz") as archive:
        for name in names:
            member = tarfile.TarInfo(name)
            content = build if name.endswith(".json") else b"so"
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("package/libggml.so")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    integrity = base64.b64encode(hashlib.sha512(file.read_bytes()).digest()).decode()
    return Pin("@x/llama", "1.0", f"sha512-{integrity}", file.stat().st_size)


LLAMA_FILES = [
    *("package/bins/_nlcBuildMetadata.json", "package/bins/libllama.v0.5.0.so"),
    *("package/bins/libggml-base.so", "package/bins/libggml-cpu-armv8.2_1.so"),
    *("package/bins/llama-addon.node", "package/bins/libllama-common.so"),
]


def test_the_libraries_of_an_npm_package(registry: Path, tmp_path: Path) -> None:
    pin = tarball(registry, [*LLAMA_FILES, "../../../libggml-cpu-evil.so"])
    seen: list[int] = []
    (tmp_path / "scratch").mkdir()
    (tmp_path / "part").mkdir()
    progress = Progress(lambda text: None, on_bytes=seen.append)
    file = engines.fetch_llama(pin, tmp_path / "scratch", progress)
    assert sum(seen) == pin.nbytes
    assert engines.unpack_llama(file, tmp_path / "part") == "b1"
    names = {path.name for path in (tmp_path / "part").iterdir()}
    assert names == {
        *("_nlcBuildMetadata.json", "libllama.v0.5.0.so", "libggml-base.so"),
        *("libggml-cpu-armv8.2_1.so", "libggml-cpu-evil.so"),
    }
    assert engines.libllama(tmp_path / "part").name == "libllama.v0.5.0.so"


def test_an_npm_package_that_was_changed_leaves_nothing(registry: Path, devices: Path) -> None:
    pin = replace(tarball(registry, LLAMA_FILES), digest="sha512-" + "A" * 86 + "==")
    pins = replace(read_pins(), llama=pin)
    parts = Parts(pins, {"llama": [pin]}, "3.13")
    with (
        pytest.raises(EmoExportError, match=r"has the digest sha512-.*; not used"),
        locked(devices, QUIET.on_stage),
    ):
        make_parts(parts, ["llama"], devices, QUIET)
    assert [path.name for path in devices.iterdir()] == [MARK]


def test_an_npm_package_of_another_layout(registry: Path, tmp_path: Path) -> None:
    pin = tarball(registry, [*LLAMA_FILES, "package/libllama.so"])
    (tmp_path / "part").mkdir()
    file = engines.fetch_llama(pin, tmp_path, QUIET)
    with pytest.raises(EmoExportError, match=r"2 files of the name libllama\.so"):
        engines.unpack_llama(file, tmp_path / "part")
    with pytest.raises(EmoExportError, match="can't be unpacked"):
        engines.unpack_llama(Path(__file__), tmp_path / "part")
    gone = replace(pin, version="9.9")
    with pytest.raises(EmoExportError, match=r"9\.9\.tgz could not be fetched .*not found"):
        engines.fetch_llama(gone, tmp_path, QUIET)


def arm64_wheel(folder: Path) -> Path:
    folder.mkdir()
    path = folder / "emotiny-1.0-cp313-cp313-manylinux_2_28_aarch64.whl"
    files = {
        "emotiny.py": "X = 1\n",
        # Asks for a Python that the one here is not: its tags tell which it is for.
        "emotiny-1.0.dist-info/METADATA": "Metadata-Version: 2.1\nName: emotiny\nVersion: 1.0\n"
        "Requires-Python: >=3.99\n",
        "emotiny-1.0.dist-info/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: false\n"
        "Tag: cp313-cp313-manylinux_2_28_aarch64\n",
    }
    record = "".join(f"{name},,\n" for name in [*files, "emotiny-1.0.dist-info/RECORD"])
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in (files | {"emotiny-1.0.dist-info/RECORD": record}).items():
            archive.writestr(name, content)
    return path


def test_wheels_are_held_to_their_digests(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = arm64_wheel(tmp_path / "wheels")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(path.parent))
    monkeypatch.setenv("PIP_USER", "1")
    pin = Pin("emotiny", "1.0", digest(path), path.stat().st_size)
    for name in ("good", "bad"):
        (tmp_path / name).mkdir()
    options = ("3.13", tmp_path / "good", tmp_path, QUIET)
    engines.install_wheels([pin], [], *options)
    assert engines.installed(tmp_path / "good") == {"emotiny": "1.0"}
    site = tmp_path / "bad"
    with pytest.raises(EmoExportError, match="could not be installed") as refused:
        wrong = replace(pin, digest="0" * 64)
        engines.install_wheels([wrong], [], "3.13", site, tmp_path, QUIET)
    assert pin.digest in str(refused.value)  # pip tells both digests
    assert list(site.iterdir()) == []
