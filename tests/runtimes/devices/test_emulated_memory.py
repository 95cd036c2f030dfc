"""Memory of an emulated process, told from the emulator's own, beside what it is known to hold."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from emo_export.base.process_memory import EMULATOR, descendants, held_by, read_mappings
from emo_export.runtimes.devices.emulated.emulation import Emulation
from emo_export.runtimes.devices.emulated.setup import emulation
from emo_export.runtimes.devices.memory.cap import START, run_capped
from emo_export.runtimes.devices.memory.trial import try_memory
from emo_export.runtimes.families import family_at
from emo_export.spec import Spec
from tests.kit.exporting import exported
from tests.kit.paths import NANO, ROOT

pytestmark = pytest.mark.device
MB = 1_000_000
ANONYMOUS, FILE = 200 * MB, 300 * MB
CHILD = ROOT / "tests" / "kit" / "memory_child.py"
TOKENS = 32
# What qemu maps beside its heap and code cannot be told from the guest's.
UNTOLD = 12 * MB


@pytest.fixture(scope="module")
def emulated() -> Emulation:
    return emulation(on_stage=lambda text: None)


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "weights"
    path.write_bytes(os.urandom(FILE))
    return path


def command(emulated: Emulation, *rest: str) -> list[str]:
    settings = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    settings |= {"EMO_EXPORT_LIBLLAMA": str(emulated.libllama)}
    return emulated.command("cortex-a72", settings, *rest)


def child(emulated: Emulation, weights: Path) -> list[str]:
    arguments = [str(ANONYMOUS), str(weights), str(FILE), "1"]
    return command(emulated, str(CHILD), *arguments)


def test_a_known_amount(emulated: Emulation, weights: Path) -> None:
    done, found = run_capped(child(emulated, weights), os.environ, None, [weights], emulated=True)
    assert done.code == 0, done.stderr
    assert found.base is not None and found.at_peak is not None
    assert abs(found.peak_anonymous - found.base.anonymous - ANONYMOUS) < 0.02 * ANONYMOUS
    assert abs(found.at_peak.model - FILE) < 0.01 * FILE
    assert found.base.anonymous < 10 * MB + UNTOLD
    assert 10 * MB < found.emulator_bytes < 200 * MB


def test_a_limit_for_the_guest_alone(emulated: Emulation, weights: Path) -> None:
    """The emulator's share comes on top; beyond it the kernel ends the process."""
    room = ANONYMOUS + 60 * MB
    done, found = run_capped(child(emulated, weights), os.environ, room, [weights], emulated=True)
    assert done.code == 0 and not found.oom_killed, done.stderr
    if not found.enforced:
        pytest.skip(found.how)
    assert found.at_peak is not None and found.at_peak.model < FILE / 2
    tight = ANONYMOUS - START - 10 * MB
    done, found = run_capped(child(emulated, weights), os.environ, tight, [weights], emulated=True)
    assert done.code == -signal.SIGKILL and found.oom_killed


def test_beside_the_guests_own_list(emulated: Emulation, tmp_path: Path) -> None:
    """qemu tells the guest its own mappings, and no others, in its /proc/self/maps."""
    listed = tmp_path / "maps"
    code = (
        "import sys, time, numpy, onnxruntime; from pathlib import Path; "
        "from emo_export.runtimes.ort.model import OnnxModel; "
        "model = OnnxModel(Path(sys.argv[1]), threads=1); model.forward(numpy.arange(16)); "
        "Path(sys.argv[2]).write_text(Path('/proc/self/maps').read_text()); "
        "Path(sys.argv[2] + '.done').touch(); time.sleep(60)"
    )
    line = command(emulated, "-c", code, str(exported(NANO, "onnx:int4")), str(listed))
    process = subprocess.Popen(line, stderr=subprocess.PIPE)
    try:
        while not Path(f"{listed}.done").exists():
            assert process.poll() is None
            time.sleep(0.1)
        pids = [process.pid, *descendants(process.pid)]
        (pid,) = [p for p in pids if EMULATOR.search(str(Path(f"/proc/{p}/exe").readlink()))]
        mappings, held = read_mappings(pid), held_by([pid], frozenset(), emulated=True)
    finally:
        process.kill()
        process.communicate()
    assert held is not None
    spans = _spans(listed.read_text().splitlines())
    inside = [m for m in mappings if any(a < m.stop and m.start < b for a, b in spans)]
    anonymous, file = sum(m.anonymous for m in inside), sum(m.file for m in inside)
    assert abs(held.file - file) < MB
    assert -MB < held.anonymous - anonymous < UNTOLD
    everything = sum(m.anonymous + m.file for m in mappings)
    assert abs(held.anonymous + held.file + held.emulator - everything) < MB


def _spans(lines: Sequence[str]) -> list[tuple[int, int]]:
    pairs = (line.split()[0].split("-") for line in lines)
    return [(int(start, 16), int(stop, 16)) for start, stop in pairs]


def test_a_model(emulated: Emulation) -> None:
    """Emulated, it needs what it needs here, but for kernels that pack otherwise."""
    spec, path = Spec("gguf", "q4_0"), exported(NANO, "gguf:q4_0")
    need = family_at(path).need(path, 256)
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    there, found = try_memory(
        spec,
        path,
        need,
        400 * MB,
        lambda rest: command(emulated, *rest),
        os.environ,
        emulated=True,
        tokens=TOKENS,
    )
    here, _ = try_memory(
        spec, path, need, 400 * MB, lambda rest: [sys.executable, *rest], env, tokens=TOKENS
    )
    assert found is not None and found.emulator_bytes > 20 * MB
    assert there.holds and there.measured and there.base is not None and here.base is not None
    assert there.least < there.anonymous + there.weights_mapped
    assert there.total - there.base < here.total - here.base + need.weights + UNTOLD
