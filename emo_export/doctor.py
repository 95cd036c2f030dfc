"""What this machine has and lacks for each command: versions, engines, CPU, memory, disk.

Nothing here fails because something else is broken: a library that can't be loaded is a finding.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

DISTRIBUTION = "emo-export"
BASE = ""  # what every install has, as an "extra"
NEEDED_FOR: Mapping[str, str] = {
    BASE: "everything",
    "ort": "run, validate and bench of ONNX",
    "llama": "run, validate and bench of GGUF",
    "convert": "export, prune, validate --reference",
}
EXTRA_OF = {"huggingface_hub": "fetching checkpoints from the hub"}
PROBE_SECONDS = 60
PROBE_ONNXRUNTIME = (
    "import onnxruntime; print(onnxruntime.__version__, *onnxruntime.get_available_providers())"
)
SIMD: Mapping[str, tuple[str, ...]] = {
    "x86": ("avx2", "avx512_vnni", "avx_vnni"),
    "arm": ("asimddp", "i8mm", "sve"),
}
"""CPU flags that choose the kernels of quantised matrices; without the first they are slow."""
MIN_MEMORY = 1_000_000_000
MIN_DISK = 5_000_000_000

Versions = tuple[tuple[int, ...], int]


@dataclass(frozen=True)
class Check:
    """One finding: what was found, whether it will do, for what it matters, how to mend it."""

    name: str
    found: str
    ok: bool
    needed_for: str
    remedy: str = ""


def examine(
    llama_info: Callable[[], str] | None = None, root: Path = Path("/")
) -> list[Check]:
    """Check everything. `llama_info` loads llama.cpp and returns its system info line.

    `root` is where proc/ and sys/ lie.
    """
    libraries = list(_libraries())
    onnxruntime = _onnxruntime()
    llama = _llama(llama_info)
    checks = [_python(), *libraries, onnxruntime, llama]
    return [*checks, *_cpu(root), _memory(root), *_disks(), _hub(), *_commands(checks)]


def _python() -> Check:
    found = platform.python_version()
    wanted = _metadata("Requires-Python") or ">=3.11"
    remedy = f"install Python {wanted}"
    return Check("python", found, satisfies(found, wanted), NEEDED_FOR[BASE], remedy)


def _metadata(key: str) -> str | None:
    try:
        return metadata.metadata(DISTRIBUTION).get(key)
    except metadata.PackageNotFoundError:
        return None


def requirements() -> dict[str, tuple[str, list[str]]]:
    """Library -> (version range, extras that ask for it), from the installed metadata.

    Empty when emo-export is not installed as a distribution.
    """
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    direct: dict[str, list[tuple[str, str]]] = {}
    for line in lines:
        spec, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        direct.setdefault(extra[1] if extra else BASE, []).append(_split(spec))
    found: dict[str, tuple[str, list[str]]] = {}
    for extra_name in NEEDED_FOR:
        for name, versions in _expanded(extra_name, direct):
            known = found.setdefault(name, (versions, []))
            known[1].append(extra_name)
    return found


def _split(spec: str) -> tuple[str, str]:
    """`name[extra]>=1,<2` -> (name[extra], >=1,<2)."""
    match = re.match(r"\s*([\w.-]+(?:\[[^\]]*\])?)\s*\(?([^)]*)\)?", spec)
    return (match[1], match[2].strip()) if match else (spec.strip(), "")


def _expanded(extra: str, direct: Mapping[str, list[tuple[str, str]]]) -> Iterator[tuple[str, str]]:
    """The libraries of an extra, those of emo-export's other extras that it names included."""
    for name, versions in direct.get(extra, ()):
        own = re.fullmatch(re.escape(DISTRIBUTION) + r"\[(.*)\]", name)
        for inner in own[1].split(",") if own else ():
            yield from _expanded(inner.strip(), direct)
        if not own:
            yield name, versions


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies in a range of >=, <=, <, >, == and != bounds (PEP 440, simply).

    A local label (+cpu) does not count; a pre-release is older than its release.
    """
    checks: Mapping[str, Callable[[Versions, Versions], bool]] = {
        ">=": lambda a, b: a >= b,
        "<=": lambda a, b: a <= b,
        "==": lambda a, b: a == b,
        "!=": lambda a, b: a != b,
        ">": lambda a, b: a > b,
        # PEP 440: <1.32 leaves out 1.32rc1 as well.
        "<": lambda a, b: a < b and not (a[0] == b[0] and b[1] == 0),
    }
    for bound in filter(None, (part.strip() for part in wanted.split(","))):
        match = re.fullmatch(r"(>=|<=|==|!=|<|>)\s*([\w.+-]+)", bound)
        if match is None or not checks[match[1]](_numbers(version), _numbers(match[2])):
            return False
    return True


def _numbers(version: str) -> Versions:
    """1.31.0rc1 -> ((1, 31), -1): numbers without trailing zeros, and -1 for a pre-release."""
    match = re.match(r"v?(\d+(?:\.\d+)*)(.*)", version.partition("+")[0])
    if match is None:
        return (), -1
    numbers = tuple(int(part) for part in match[1].split("."))
    while numbers and numbers[-1] == 0:
        numbers = numbers[:-1]
    rest = match[2].lstrip(".-_")
    return numbers, 0 if not rest else 1 if rest.startswith("post") else -1


def _libraries() -> Iterator[Check]:
    wanted = requirements()
    if not wanted:
        remedy = f"pip install {DISTRIBUTION}, or pip install -e . in its source"
        yield Check(DISTRIBUTION, "not installed as a package", False, NEEDED_FOR[BASE], remedy)
    for name, (versions, extras) in wanted.items():
        use = EXTRA_OF.get(name) or "; ".join(NEEDED_FOR[extra] for extra in extras)
        package = f"{DISTRIBUTION}[{extras[0]}]" if extras[0] else DISTRIBUTION
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            yield Check(name, "not installed", False, use, f'pip install "{package}"')
            continue
        ok = satisfies(found, versions)
        note = found if ok else f"{found}, needed {versions}"
        yield Check(name, note, ok, use, "" if ok else f'pip install "{name}{versions}"')


def _onnxruntime() -> Check:
    """Load it in a process of its own: a wheel with the wrong instructions ends its process."""
    name, use = "onnxruntime loads", NEEDED_FOR["ort"]
    remedy = 'pip install --force-reinstall "emo-export[ort]"'
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, "-c", PROBE_ONNXRUNTIME]
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=environment,
            check=False,
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, f"could not be tried ({error})", False, use, remedy)
    if done.returncode:
        last = (done.stderr.strip().splitlines() or [f"exit {done.returncode}"])[-1]
        return Check(name, f"no: {last}", False, use, remedy)
    return Check(name, done.stdout.strip(), "CPUExecutionProvider" in done.stdout, use, remedy)


def _llama(info: Callable[[], str] | None) -> Check:
    name, use = "llama.cpp loads", NEEDED_FOR["llama"]
    remedy = 'pip install --force-reinstall "emo-export[llama]"'
    if info is None:
        return Check(name, "not tried", False, use, remedy)
    try:
        return Check(name, " ".join(info().split()), True, use)
    except Exception as error:  # whatever a broken library raises is the finding
        return Check(name, f"no: {error}", False, use, remedy)
