"""What this machine has and lacks for each command: versions, engines, CPU, memory, disk.

Nothing here fails because something else is broken: a library that can't be loaded is a finding.
"""

from __future__ import annotations

import contextlib
import operator
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from emo_export.base.install import DISTRIBUTION, install_command
from emo_export.base.tied import tied
from emo_export.bench.onnx_probe import NO_GRAPH, PROBE, described

BASE = ""  # what every install has, as if it were an extra
USES: Mapping[str, str] = {
    BASE: "every command",
    "ort": "run and validate ONNX",
    "llama": "run and validate GGUF",
    "convert": "export, validate --reference",
    "serve": "serve, chat by a template",
}
HUB = "huggingface_hub"
HUB_USE = "fetching checkpoints by their Hugging Face id"
ENGINES = {"ort": "onnxruntime loads", "llama": "llama.cpp loads"}
PROBE_SECONDS = 120
SIMD: Mapping[str, Sequence[str]] = {
    "x86": ("avx2", "avx512_vnni", "avx_vnni"),
    "arm": ("asimddp", "i8mm", "sve"),
}
"""CPU flags that choose the kernels of quantised matrices; the first makes 8-bit ones fast."""
CPU_KEYS = ("processor", "model name", "Model", "flags", "Features", "physical id", "core id")
MIN_MEMORY, MIN_DISK = 1_000_000_000, 2_000_000_000

OPERATORS = {">=": operator.ge, "<=": operator.le, "==": operator.eq, "<": operator.lt}


@dataclass(frozen=True)
class Check:
    """One finding: what was found, whether it will do, for what it matters, how to mend it."""

    name: str
    found: str
    ok: bool
    needed_for: str
    remedy: str = ""


def examine(llama_info: Callable[[], str] | None = None, root: Path = Path("/")) -> list[Check]:
    """Check everything. `llama_info` loads llama.cpp and returns its system info line.

    `root` is where proc/ and sys/ lie; what this system does not tell is reported as unknown.
    """
    wanted = requirements()
    checks = [_python(), *_libraries(wanted), _onnxruntime()]
    if llama_info is not None:
        checks.append(_llama(llama_info))
    checks += [*cpu_checks(root), memory_check(root), *_disks(), _hub()]
    return checks + list(_commands(wanted, {check.name for check in checks if not check.ok}))


def satisfies(version: str, wanted: str) -> bool:
    """Whether a version lies within bounds like `>=1.2,<2`; only its leading numbers count."""
    for bound in filter(None, wanted.replace(" ", "").split(",")):
        match = re.fullmatch(r"(>=|<=|==|<)([\d.]+)", bound)
        if match is None or not OPERATORS[match[1]](_numbers(version), _numbers(match[2])):
            return False
    return True


def _numbers(version: str) -> tuple[int, ...]:
    match = re.match(r"\d+(\.\d+)*", version)
    numbers = [int(part) for part in match[0].split(".")] if match else []
    while numbers and numbers[-1] == 0:
        numbers.pop()
    return tuple(numbers)


def requirements() -> dict[str, dict[str, str]]:
    """Extra -> library -> version bounds, from the installed metadata (BASE: without extra).

    Empty when emo-export is not installed as a package.
    """
    try:
        lines = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}
    direct: dict[str, dict[str, str]] = {extra: {} for extra in USES}
    for line in lines:
        spec, _, marker = line.partition(";")
        extra = re.search(r"extra == ['\"]([\w-]+)['\"]", marker)
        name = re.match(r"[\w.-]+(\[.*\])?", spec.strip())
        if name:
            bounds = spec.strip()[name.end() :].strip(" ()")
            direct.setdefault(extra[1] if extra else BASE, {})[name[0]] = bounds
    return {extra: dict(_expanded(extra, direct)) for extra in USES}


def _expanded(extra: str, direct: Mapping[str, Mapping[str, str]]) -> Iterator[tuple[str, str]]:
    """The libraries of an extra, with those of our other extras that it names."""
    for name, bounds in direct[extra].items():
        own = re.fullmatch(re.escape(DISTRIBUTION) + r"\[(.*)\]", name)
        if own is None:
            yield name, bounds
        else:
            for inner in own[1].split(","):
                yield from _expanded(inner.strip(), direct)


def _python() -> Check:
    found, wanted = platform.python_version(), ">=3.11"
    with contextlib.suppress(metadata.PackageNotFoundError, KeyError):
        wanted = metadata.metadata(DISTRIBUTION)["Requires-Python"] or wanted
    ok = satisfies(found, wanted)
    return Check("python", found, ok, USES[BASE], "" if ok else f"install Python {wanted}")


def _libraries(wanted: Mapping[str, Mapping[str, str]]) -> Iterator[Check]:
    if not wanted:
        remedy = f"pip install {DISTRIBUTION}"
        yield Check(DISTRIBUTION, "is not installed as a package", False, USES[BASE], remedy)
    names = dict.fromkeys(name for libraries in wanted.values() for name in libraries)
    for name in names:
        extras = [extra for extra, libraries in wanted.items() if name in libraries]
        use = HUB_USE if name == HUB else "; ".join(USES[extra] for extra in extras)
        bounds = wanted[extras[0]][name]
        try:
            found = str(metadata.version(name))
        except metadata.PackageNotFoundError:
            yield Check(name, "not installed", False, use, _install(extras[0]))
            continue
        if satisfies(found, bounds):
            yield Check(name, found, True, use)
        else:
            remedy = f'pip install "{name}{bounds}"'
            yield Check(name, f"{found}, needed is {bounds}", False, use, remedy)


def _install(extra: str) -> str:
    return install_command(extra) if extra else f"pip install {DISTRIBUTION}"


def _onnxruntime() -> Check:
    """Loaded in a process of its own: a wheel with instructions that this CPU lacks ends it."""
    name, use, remedy = ENGINES["ort"], USES["ort"], _install("ort")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", PROBE],
            capture_output=True,
            text=True,
            timeout=PROBE_SECONDS,
            env=environment,
            preexec_fn=None if sys.platform == "win32" else tied(),
        )
    except (OSError, subprocess.SubprocessError) as error:
        return Check(name, f"could not be tried: {error}", False, use, remedy)
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"its process ended with {done.returncode}"]
        return Check(name, f"no: {said[-1]}", False, use, remedy)
    found = described(done.stdout)
    ok = "CPUExecutionProvider" in done.stdout and not found.endswith(f" {NO_GRAPH}")
    return Check(name, found, ok, use, "" if ok else remedy)


def _llama(info: Callable[[], str]) -> Check:
    name, use = ENGINES["llama"], USES["llama"]
    try:
        return Check(name, " ".join(info().split()), True, use)
    except Exception as error:  # whatever a broken library raises is the finding
        said = " ".join(str(error).split()) or type(error).__name__
        return Check(name, f"no: {said}", False, use, _install("llama"))


def cpu_checks(root: Path = Path("/")) -> Iterator[Check]:
    """Which processor this is, and which of its instructions matter."""
    processors = _cpuinfo(root)
    seen = {key: value for fields in processors for key, value in fields.items()}
    model = seen.get("model name") or seen.get("Model") or platform.processor()
    usable = (
        {str(cpu) for cpu in os.sched_getaffinity(0)} if hasattr(os, "sched_getaffinity") else ()
    )
    mine = [p for p in processors if not usable or p["processor"] in usable]
    cores = {(p.get("physical id"), p.get("core id", p["processor"])) for p in mine}
    count = len(cores) or os.cpu_count() or 1
    found = f"{model or platform.machine()}, {count} physical core{'s' * (count > 1)}"
    yield Check("cpu", found, True, "speed")
    flags = (seen.get("flags") or seen.get("Features") or "").split()
    if not flags:
        yield Check("simd", "unknown on this system", True, "speed")
        return
    known = SIMD["x86" if "flags" in seen else "arm"]
    found = ", ".join(flag for flag in known if flag in flags) or "none that helps"
    ok = known[0] in flags
    remedy = "" if ok else f"no {known[0]}: take onnx:int4 or gguf:q4_0, 8-bit kernels are slow"
    yield Check("simd", found, ok, "speed", remedy)


def _cpuinfo(root: Path) -> list[dict[str, str]]:
    """The processors of /proc/cpuinfo; lines about a whole board (`Model`) go to the last."""
    processors: list[dict[str, str]] = []
    for line in _read(root / "proc/cpuinfo").splitlines():
        key, _, value = (part.strip() for part in line.partition(":"))
        if key == "processor":
            processors.append({})
        if processors and key in CPU_KEYS:
            processors[-1][key] = value
    return processors


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def available_memory(root: Path = Path("/")) -> int | None:
    """Bytes that a new process can have, by /proc and its cgroup's limit; else None."""
    available = _memory_sizes(root).get("MemAvailable:")
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    if available is None or not limit.isdecimal():
        return available
    return min(available, int(limit))


def _memory_sizes(root: Path) -> dict[str, int]:
    lines = (line.split() for line in _read(root / "proc/meminfo").splitlines())
    return {parts[0]: int(parts[1]) * 1024 for parts in lines if len(parts) > 2}


def memory_check(root: Path = Path("/")) -> Check:
    """How much memory there is and how much is free."""
    sizes = _memory_sizes(root)
    total, available = sizes.get("MemTotal:"), sizes.get("MemAvailable:")
    if total is None or available is None:
        return Check("memory", "unknown on this system", True, "the model and its cache")
    found = f"{total / 1e9:.1f} GB, {available / 1e9:.1f} GB available"
    limit = _read(root / "sys/fs/cgroup/memory.max").strip()
    if limit.isdecimal() and int(limit) < total:
        found += f", limited to {int(limit) / 1e9:.1f} GB by a cgroup"
        available = min(available, int(limit))
    ok = available >= MIN_MEMORY
    remedy = "" if ok else "end other programs, or take a smaller model"
    return Check("memory", found, ok, "the model and its cache", remedy)


def _disks() -> Iterator[Check]:
    places = {"disk here": "."}
    with contextlib.suppress(OSError):  # gettempdir writes a file, which a full disk refuses
        places["disk for temporary files"] = tempfile.gettempdir()
    for name, place in places.items():
        try:
            free = shutil.disk_usage(place).free
        except OSError as error:
            yield Check(
                name, f"unknown: {error.strerror}", False, USES["convert"], "work elsewhere"
            )
            continue
        ok = free >= MIN_DISK
        remedy = "" if ok else "free some space, or work elsewhere"
        found = f"{free / 1e9:.1f} GB free in {Path(place).absolute()}"
        yield Check(name, found, ok, USES["convert"], remedy)


def _hub() -> Check:
    """Where huggingface_hub keeps what it fetches: the first of these variables that is set."""
    setting = os.environ.get
    home = setting("HF_HOME") or f"{setting('XDG_CACHE_HOME') or '~/.cache'}/huggingface"
    cache = Path(setting("HF_HUB_CACHE") or f"{home}/hub")
    with contextlib.suppress(RuntimeError):  # no home folder is known
        cache = cache.expanduser()
    state = "" if cache.is_dir() else " (not there yet; the first download makes it)"
    return Check("hub cache", f"{cache}{state}", True, HUB_USE)


def _commands(wanted: Mapping[str, Mapping[str, str]], broken: Iterable[str]) -> Iterator[Check]:
    """Which commands are ready, from what was found above."""
    for extra, libraries in wanted.items():
        if extra == BASE:
            continue
        needed = [*wanted[BASE], *libraries, *filter(None, [ENGINES.get(extra)])]
        yield _ready(USES[extra], [n for n in needed if n != HUB and n in broken], extra)
    if wanted:
        yield _ready(HUB_USE, [HUB] if HUB in broken else [], "convert")


def _ready(use: str, lacking: Sequence[str], extra: str) -> Check:
    if not lacking:
        return Check(f"ready: {use}", "yes", True, use)
    return Check(f"ready: {use}", f"no: {', '.join(lacking)}", False, use, _install(extra))
