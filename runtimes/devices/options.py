"""What `validate` was told of devices, checked before anything is done."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.base.near import did_you_mean
from emo_export.base.ram_size import spelled
from emo_export.errors import EmoExportError
from emo_export.parity.result import HERE
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.request import Request, Share

EMULATED, SSH, ADB = "emulated", "ssh", "adb"
EMULATED_TOKENS = 48
"""Judged positions under emulation unless the user asks for others: some 10 to 30 s on emo-nano."""
SEQUENCE = 24  # positions of each; then as many sequences as make up the tokens


def kind_of(name: str) -> str:
    """here, emulated, ssh or adb. Raises EmoExportError for a name that is no device's."""
    if name in PROFILES:
        return EMULATED
    if name == HERE:
        return HERE
    if name.startswith(f"{SSH}://"):
        return SSH
    if name == ADB or name.startswith(f"{ADB}:"):
        return ADB
    raise EmoExportError(
        f"--device {name}: expected {', '.join(PROFILES)}, ssh://[user@]host[:port], adb, "
        f"adb:SERIAL or {HERE}{did_you_mean(name, (*PROFILES, HERE, ADB))}"
    )


@dataclass(frozen=True)
class DeviceOptions:
    """What the command line says of devices, as its help describes it."""

    names: tuple[str, ...] = ()
    ram: int | None = None
    context: int = 0
    tokens: int | None = None
    threads: int | None = None
    setup: bool = False
    bench: bool = False
    rootfs: Path | None = None
    onnxruntime: str | None = None
    kv_cache: str | None = None
    timeout: float | None = None

    @property
    def asked(self) -> bool:
        """Whether any run is to be in a process apart from this one."""
        return bool(self.names) or self.ram is not None

    def check(self) -> None:
        """Refuse, with EmoExportError, unknown devices and options that would have no effect."""
        kinds = {name: kind_of(name) for name in self.names}
        if len(kinds) < len(self.names):
            raise EmoExportError("--device: the same device is named twice")
        if self.setup and SSH not in kinds.values():
            raise EmoExportError("--setup has no effect without --device ssh://…")
        if self.bench and SSH not in kinds.values():
            raise EmoExportError(
                "--bench is for --device ssh://…: an emulated device has no speed of its own, and "
                "emo-export bench measures this machine"
            )
        if (self.rootfs or self.onnxruntime) and not {EMULATED, ADB} & {*kinds.values()}:
            option = "--rootfs" if self.rootfs else "--onnxruntime"
            raise EmoExportError(f"{option} is for {', '.join(PROFILES)} and adb")
        far = [name for name, kind in kinds.items() if kind in (SSH, ADB)]
        if self.ram is not None and far:
            raise EmoExportError(
                f"--ram is for this machine and emulated devices; {far[0]} has the memory it has"
            )
        if not self.asked and (self.context or self.tokens is not None):
            option = "--context" if self.context else "--device-tokens"
            raise EmoExportError(f"{option} has no effect without --device or --ram")

    def arguments(self, name: str) -> list[str]:
        """What asks the command line for the same on this device."""
        given = {
            "--device": name,
            "--ram": None if self.ram is None else spelled(self.ram),
            "--context": self.context or None,
            "--device-tokens": self.tokens,
            "--threads": self.threads,
            "--kv-cache": self.kv_cache,
            "--timeout": self.timeout,
            "--rootfs": self.rootfs,
            "--onnxruntime": self.onnxruntime,
        }
        kind = kind_of(name)
        if kind not in (EMULATED, ADB):
            given |= {"--rootfs": None, "--onnxruntime": None}
        flags = {"--setup": self.setup, "--bench": self.bench} if kind == SSH else {}
        pairs = [(key, str(value)) for key, value in given.items() if value is not None]
        words = [word for pair in pairs for word in pair]
        return [*words, *(key for key, value in flags.items() if value)]

    def request(self, kind: str) -> Request:
        """What to ask of a device; under emulation fewer tokens unless the user said how many."""
        tokens = self.tokens
        if tokens is None:
            tokens = EMULATED_TOKENS if kind == EMULATED else 0
        return Request(
            "",
            self.threads,
            self.context,
            share_of(tokens),
            kv_cache=self.kv_cache or "",
            timeout=self.timeout or 0,
        )


def share_of(tokens: int) -> Share:
    """The part of golden.npz with about so many judged positions; 0 means all of it."""
    if not tokens:
        return Share()
    sequences = max(1, tokens // SEQUENCE)
    return Share(sequences, -(-tokens // sequences), 3 * tokens, max(1, tokens // 6))
