"""A target run as a user runs it, with the memory of a device, and whether that holds it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.files.memory_need import Need
from emo_export.parity.result import Crash
from emo_export.runtimes.devices.device import answer_of
from emo_export.runtimes.devices.memory.cap import MemoryFound, run_capped
from emo_export.runtimes.devices.memory.fit import Fit, least_fit, measured_fit
from emo_export.runtimes.families import LIGHT
from emo_export.spec import Spec

MODULE = "emo_export.runtimes.devices.far.memory_run"
TOKENS = 512
"""Of the prompt; llama.cpp reads a longer one in pieces of as many."""


class CrashError(EmoExportError):
    """A signal ended the run. A user's run would end so too, so the target fails (exit 1)."""

    exit_code = 1

    def __init__(self, target: Spec, found: Crash) -> None:
        """`found` tells which signal."""
        super().__init__(f"{target}: measuring its memory ended by {found.name}: {found.said}")
        self.crash = found


def try_memory(
    target: Spec,
    path: Path,
    need: Need,
    ram: int,
    command: Callable[[Sequence[str]], Sequence[str]],
    env: Mapping[str, str],
    *,
    emulated: bool = False,
    tokens: int = TOKENS,
    timeout: float | None = None,
) -> tuple[Fit, MemoryFound | None]:
    """Whether `ram` bytes hold the target at `path` with the KV cache of `need.context`.

    `command` makes the whole command line of what follows `python`; `emulated`: it runs under
    qemu-user; `timeout`: the most seconds of the run. Nothing is run, and None answered, where the
    headers alone ask for too much: it would only read from the disk for a long time. Raises
    EmoExportError when the run fails for another reason than memory, CrashError when a signal ended
    it, MissingDependencyError when the engine is missing.
    """
    fit = least_fit(target, need, ram)
    if not fit.holds:
        return fit, None
    sizes = ["--context", str(need.context), "--tokens", str(tokens), "--kv-cache", need.kv_cache]
    sizes += [] if timeout is None else ["--timeout", str(timeout)]
    line = command(["-m", MODULE, str(path), *sizes])
    finished, found = run_capped(line, env, ram, LIGHT[target.family].files(path), emulated)
    if found.oom_killed:
        return measured_fit(target, need, ram, found, 0), found
    label = f"{target}: its memory could not be measured"
    answer = answer_of(label, finished, "the run", measuring=True)
    if isinstance(answer, Crash):
        raise CrashError(target, answer)
    ran = need.cache_of_run(need.context if need.whole_cache else answer["positions"])
    return measured_fit(target, need, ram, found, ran, answer["repacked"]), found
