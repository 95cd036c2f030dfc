"""The light install, as someone has it who asks an index for it: size, start, first token.

    python -m tests.bench.install [--python PATH]... [--package FOLDER]

Builds sdist and wheel, has twine look at both, and serves them as an index on this machine's
loopback, beside pip's own. For each Python and each engine a fresh venv installs
`emo-export[EXTRA]` from there by name. Bytes are those of all files in site-packages, compiled
modules too, that were not there before. Seconds are medians of runs that take turns; the first
token's are from the start of the process, without those that opening the model takes. CPU seconds
tell how much of that is other programs of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from pathlib import Path

import click

from emo_export.base.tied import tied
from emo_export.runtimes.devices.pyz import GLIBC
from tests.kit.paths import NANO, ROOT

ENGINES = {"llama": "gguf:q4_0", "ort": "onnx:int4"}
ENGINE_PARTS = {"xllamacpp", "onnxruntime", "numpy", "numpy.libs", "flatbuffers", "google"}
RUNS = 9
ARM64_PYTHON = "3.13"  # of Raspberry Pi OS 13
TOOLS = ("build>=1.2,<2", "twine>=7,<8")
LOAD = """
import sys, time
from pathlib import Path
from emo_export.runtimes.opening import open_runtime
import numpy
began, cpu = time.perf_counter(), time.process_time()
open_runtime(Path(sys.argv[1]), None)
print(time.perf_counter() - began, time.process_time() - cpu)
"""


@dataclass(frozen=True)
class Venv:
    """A fresh environment in which one extra was installed by name."""

    folder: Path
    version: str
    extra: str
    nbytes: int
    engine_bytes: int

    def program(self, name: str) -> str:
        return str(self.folder / "bin" / name)


def copy_tracked(tree: Path) -> None:
    """What a clone of this repository has, with the changes of this working tree."""
    tracked = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    for name in filter(None, tracked.stdout.split("\0")):
        copy = tree / name
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(ROOT / name, copy, follow_symlinks=False)


@contextmanager
def index() -> Iterator[str]:
    """Build and check both distributions; the URL of an index that has them."""
    with tempfile.TemporaryDirectory(prefix="emo-export-index-") as top:
        tree, page = Path(top) / "tree", Path(top) / "simple" / "emo-export"
        page.mkdir(parents=True)
        copy_tracked(tree)
        _run(sys.executable, "-m", "venv", Path(top) / "tools")
        tools = Path(top) / "tools" / "bin"
        _run(tools / "pip", "install", "-q", *TOOLS)
        _run(tools / "python", "-m", "build", "-q", "--outdir", page, tree)
        _run(tools / "python", "-m", "twine", "check", "--strict", *page.iterdir())
        command = [sys.executable, "-m", "http.server", "--bind", "127.0.0.1", "0"]
        server = subprocess.Popen(
            [command[0], "-u", *command[1:]],
            cwd=top,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            preexec_fn=tied(),
        )
        try:
            assert server.stdout is not None
            said = server.stdout.readline()  # Serving HTTP on 127.0.0.1 port 40123 …
            yield f"http://127.0.0.1:{int(said.split()[5])}/simple/"
        finally:
            server.terminate()
            server.wait()


def install(python: str, extra: str, url: str, folder: Path) -> Venv:
    """Make a venv and install the extra, by name, from the index."""
    _run(python, "-m", "venv", folder)
    site = next(folder.glob("lib/python*/site-packages"))
    before = {path for path in site.rglob("*") if path.is_file()}
    options = ["--no-cache-dir", "--extra-index-url", url]
    _run(folder / "bin" / "pip", "install", "-q", *options, f"emo-export[{extra}]")
    made = [path for path in site.rglob("*") if path.is_file() and path not in before]
    of_engine = [path for path in made if path.relative_to(site).parts[0] in ENGINE_PARTS]
    code = "import platform; print(platform.python_version())"
    version = _run(folder / "bin" / "python", "-c", code).strip()
    return Venv(folder, version, extra, _bytes(made), _bytes(of_engine))


@dataclass(frozen=True)
class Times:
    """Seconds of one turn: until something is printed, and of the CPU until the end."""

    version: float
    version_cpu: float
    token: float
    token_cpu: float
    load: float
    load_cpu: float


def seconds_to_first_byte(*command: str) -> tuple[float, float]:
    """From the start of a process to what it prints first, and CPU seconds of all of it."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, preexec_fn=tied()
    )
    assert process.stdout is not None
    with process.stdout as stdout:
        first = stdout.read(1)
        seconds = time.perf_counter() - began
        stdout.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode or not first:
        raise click.ClickException(f"{' '.join(command)}: exit {process.returncode}")
    return seconds, used.ru_utime + used.ru_stime


def measured(venvs: Sequence[Venv], package: Path) -> list[Times]:
    """The medians of each venv."""
    found: list[list[Times]] = [[] for _ in venvs]
    paths = {name: entry["path"] for name, entry in _targets(package).items()}
    for turn in range(RUNS + 1):
        for venv, times in zip(venvs, found, strict=True):
            target = ENGINES[venv.extra]
            emo = venv.program("emo-export")
            version = seconds_to_first_byte(emo, "--version")
            prompt = ["run", str(package), "def main(", "-n", "1", "--target", target]
            token = seconds_to_first_byte(emo, *prompt)
            load = _run(venv.program("python"), "-c", LOAD, package / paths[target]).split()
            if turn:  # the first reads files from the disk
                times.append(Times(*version, *token, *map(float, load)))
    columns = [zip(*map(astuple, times), strict=True) for times in found]
    return [Times(*map(statistics.median, column)) for column in columns]


def on_arm64(url: str, folder: Path) -> Iterator[tuple[str, int, int]]:
    """Extra, bytes of all that its wheels hold for arm64, and of those the engine and numpy."""
    pip = [sys.executable, "-m", "pip", "install", "-q", "--no-cache-dir", "--no-compile"]
    pip += ["--only-binary=:all:", "--implementation=cp", f"--python-version={ARM64_PYTHON}"]
    pip += [f"--abi=cp{ARM64_PYTHON.replace('.', '')}", "--abi=abi3", "--abi=none"]
    pip += [f"--platform=manylinux_2_{minor}_aarch64" for minor in GLIBC]
    pip += ["--platform=manylinux2014_aarch64", "--extra-index-url", url]
    for extra in ENGINES:
        site = folder / f"arm64-{extra}"
        _run(*pip, "--target", site, f"emo-export[{extra}]")
        made = [path for path in site.rglob("*") if path.is_file()]
        of_engine = [path for path in made if path.relative_to(site).parts[0] in ENGINE_PARTS]
        yield extra, _bytes(made), _bytes(of_engine)


def _targets(package: Path) -> dict[str, dict[str, str]]:
    targets: dict[str, dict[str, str]] = json.loads((package / "manifest.json").read_text("utf-8"))[
        "targets"
    ]
    return targets


def _bytes(files: Sequence[Path]) -> int:
    return sum(path.stat().st_size for path in files)


def _run(*command: object) -> str:
    done = subprocess.run([*map(str, command)], capture_output=True, text=True, cwd="/")
    if done.returncode:
        raise click.ClickException(f"{' '.join(map(str, command))}:\n{done.stdout}{done.stderr}")
    return done.stdout


@click.command()
@click.option("--python", "pythons", multiple=True, default=(sys.executable,))
@click.option("--package", type=click.Path(path_type=Path), help="Of emo-nano.  [default: made]")
def main(pythons: tuple[str, ...], package: Path | None) -> None:
    """Print what each install takes."""
    with tempfile.TemporaryDirectory(prefix="emo-export-install-") as top, index() as url:
        if package is None:
            package = Path(top) / "nano"
            targets = [word for target in ENGINES.values() for word in ("--to", target)]
            _run(sys.executable, "-m", "emo_export", "export", NANO, "-o", package, *targets)
        venvs = [
            install(python, extra, url, Path(top) / f"{number}-{extra}")
            for number, python in enumerate(pythons)
            for extra in ENGINES
        ]
        times = measured(venvs, package)
        click.echo("Python   extra      MB  of which engine  --version s (CPU)", nl=False)
        click.echo("  first token s (CPU)  load s (CPU)")
        for venv, it in zip(venvs, times, strict=True):
            sizes = f"{venv.nbytes / 1e6:6.1f}  {venv.engine_bytes / 1e6:15.1f}"
            version = f"{it.version:11.3f} ({it.version_cpu:.2f})"
            token = f"{it.token - it.load:13.3f} ({it.token_cpu - it.load_cpu:.2f})"
            load = f"{it.load:6.3f} ({it.load_cpu:.2f})"
            click.echo(f"{venv.version:8} {venv.extra:6} {sizes}  {version}  {token}  {load}")
        for extra, nbytes, of_engine in on_arm64(url, Path(top)):
            sizes = f"{nbytes / 1e6:6.1f}  {of_engine / 1e6:15.1f}"
            click.echo(f"{ARM64_PYTHON:8} {extra:6} {sizes}  on arm64, nothing compiled")


if __name__ == "__main__":
    main()
