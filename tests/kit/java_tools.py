"""ONNX Runtime's and Hugging Face tokenizers' Java classes, set up in a cache by an ordinary user.

Both are in a jar that the package pyserini carries (pip checks its digest; 110 MB, of which 17 MB
are kept). Its Java binding is that of ONNX Runtime 1.17; it is tied to the ONNX Runtime that is
installed here, whose C interface serves older callers, so that every graph can be opened.
"""

from __future__ import annotations

import functools
import os
import platform
import shutil
import struct
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path

import onnxruntime

PACKAGE = "pyserini==2.4.0"
SHA256 = "45979fa5fc8d54a35dce15cfd59d4d3dc4b4b29d8f0442e1e1f3a9ab0a303541"
BINDING = "1.17.0"
KEPT = ("ai/onnxruntime/", "ai/djl/", "com/google/gson/", "org/slf4j/", "native/lib/tokenizers")
NATIVE = "libonnxruntime4j_jni.so"
MACHINES = {"x86_64": ("linux-x64", "linux-x86_64"), "aarch64": ("linux-aarch64",) * 2}


def unavailable() -> str | None:
    """Why Java can't be tried on this machine and what to install, or None."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return "the jar has libraries for Linux on x86-64 and arm64 only"
    if shutil.which("javac") is None or shutil.which("java") is None:
        return "there is no Java compiler: apt-get install default-jdk-headless"
    return None


@functools.cache
def jar() -> Path:
    """The classes, and the libraries for this machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "emo-export-tests"
    place = cache / f"java-{SHA256[:12]}.jar"
    if not place.is_file():
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=f".{place.name}-", dir=cache) as name:
            work = Path(name)
            _download(work)
            _pick(next(work.glob("*.tar.gz")), work / "kept.jar")
            (work / "kept.jar").rename(place)
    return place


def _download(work: Path) -> None:
    (work / "requirements.txt").write_text(f"{PACKAGE} --hash=sha256:{SHA256}\n", "utf-8")
    # Its own Python is newer than ours may be; nothing of it is installed.
    options = ["--no-deps", "--no-binary", ":all:", "--ignore-requires-python", "--no-cache-dir"]
    command = [sys.executable, "-m", "pip", "download", "-q", *options, "-d", str(work)]
    done = subprocess.run(
        [*command, "-r", str(work / "requirements.txt")],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"could not download {PACKAGE}: {done.stderr[-2000:]}")


def _pick(archive: Path, target: Path) -> None:
    """Keep what the example needs of the jar inside the archive."""
    binding, tokenizers = MACHINES[platform.machine()]
    libraries = (f"ai/onnxruntime/native/{binding}/{NATIVE}", f"native/lib/{tokenizers}/cpu/")
    with tarfile.open(archive) as outer:
        found = next(m for m in outer if m.name.endswith("-fatjar.jar"))
        content = outer.extractfile(found)
        assert content is not None
        with zipfile.ZipFile(content) as all_of_it, zipfile.ZipFile(target, "w") as kept:
            for name in all_of_it.namelist():
                is_library = name.endswith((".so", ".dylib", ".dll"))
                if name.startswith(libraries if is_library else KEPT):
                    kept.writestr(name, all_of_it.read(name))


def native_folder(folder: Path) -> Path:
    """A folder with the Java binding's library, tied to the ONNX Runtime installed here."""
    folder.mkdir()
    (engine,) = (Path(onnxruntime.__file__).parent / "capi").glob("libonnxruntime.so.*.*")
    version = engine.name.removeprefix("libonnxruntime.so.")
    with zipfile.ZipFile(jar()) as archive:
        name = next(n for n in archive.namelist() if n.endswith(NATIVE))
        binding = archive.read(name)
    if len(version) != len(BINDING):
        raise RuntimeError(f"ONNX Runtime {version}: its name doesn't fit in place of {BINDING}")
    old, new = _hash(f"VERS_{BINDING}"), _hash(f"VERS_{version}")
    assert binding.count(old) == 1 and BINDING.encode() in binding
    binding = binding.replace(BINDING.encode(), version.encode()).replace(old, new)
    (folder / NATIVE).write_bytes(binding)
    for link in ("libonnxruntime.so", engine.name):
        (folder / link).symlink_to(engine)
    return folder


def _hash(name: str) -> bytes:
    """The System V hash by which the dynamic loader looks a version up."""
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        high = value & 0xF0000000
        value = (value ^ high >> 24) & ~high & 0xFFFFFFFF
    return struct.pack("<I", value)


def compile_java(classes: Path, *sources: Path) -> None:
    """Compile with every warning. Raises RuntimeError with what javac said, if anything."""
    # Android's tools take the language of Java 8 whatever the phone.
    options = ["-source", "8", "-target", "8", "-Xlint:all,-options", "-Werror"]
    command = ["javac", *options, "-cp", str(jar()), "-d", str(classes), *map(str, sources)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(done.stderr)


def java(classes: Path, native: Path, cache: Path, *arguments: object) -> str:
    """Run a class with the jar -> what it prints. Raises RuntimeError when it fails."""
    path = f"{classes}{os.pathsep}{jar()}"
    settings = {"DJL_CACHE_DIR": str(cache), "OPT_OUT_TRACKING": "true", "DJL_OFFLINE": "true"}
    done = subprocess.run(
        ["java", f"-Donnxruntime.native.path={native}", "-cp", path, *map(str, arguments)],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, **settings, "LD_LIBRARY_PATH": str(native)},
        timeout=300,
        check=False,
    )
    if done.returncode != 0:
        raise RuntimeError(f"exit {done.returncode}\n{done.stderr[-4000:]}")
    return done.stdout
