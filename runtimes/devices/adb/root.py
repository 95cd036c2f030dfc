"""A folder of arm64 Linux with Python and the engines, packed for a machine that has none of them.

Android has another C library, for which neither ONNX Runtime nor numpy has wheels. A folder with a
C library of its own needs nothing of it: its dynamic loader is an ordinary program that is told
where libraries are.
"""

from __future__ import annotations

import tarfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import sha256
from pathlib import Path

from emo_export.base.disk import writing
from emo_export.base.llama_library import LIBRARY
from emo_export.errors import EmoExportError
from emo_export.files.manifest import digest
from emo_export.runtimes.devices.emulated.emulation import Emulation

NEEDED = ("lib", "lib64", "usr/lib", "usr/lib64", "usr/local/lib")  # of a root; it may be large
# Of Debian, then of others; an official Python image has Python's own in usr/local.
LIBRARIES = ("lib/aarch64-linux-gnu", "usr/lib/aarch64-linux-gnu", *NEEDED)
LOADER = "ld-linux-aarch64.so.1"
BLOCK = 4096


@dataclass(frozen=True)
class PhoneRoot:
    """Folders that go to the phone, by the name that each gets there.

    `folders` has `root`, unpacked arm64 packages with a C library, of which only libraries and the
    interpreter `python` (relative to `root`) go there; `modules` names those with packages.
    `environment`: what the engines need to be told, with `{NAME}` for the place of a folder there.
    """

    folders: Mapping[str, Path]
    python: str
    modules: Sequence[str]
    environment: Mapping[str, str]

    @classmethod
    def of(cls, emulation: Emulation) -> PhoneRoot:
        """The folders that emulated devices run from, without qemu."""
        library = emulation.libllama
        folders = {"root": emulation.root, "site": emulation.site, "llama": library.parent}
        python = emulation.python.relative_to(emulation.root).as_posix()
        return cls(folders, python, ("site",), {LIBRARY: f"{{llama}}/{library.name}"})

    @cached_property
    def name(self) -> str:
        """A name that says the content: `python-` and a digest of names, modes and bytes."""
        total = sha256()
        for name, path in self._entries():
            what = str(path.readlink()) if path.is_symlink() else digest(path)
            total.update(f"{name}\0{_mode(path)}\0{what}\n".encode())
        return f"python-{total.hexdigest()[:12]}"

    @property
    def ready(self) -> str:
        """A file that is there when the folder is."""
        return f"root/{self.python}"

    @cached_property
    def bytes_needed(self) -> int:
        """Room for the archive and what comes out of it."""
        sizes = (p.lstat().st_size for _, p in self._entries())
        return 2 * sum((size // BLOCK + 2) * BLOCK for size in sizes)

    def pack(self, path: Path) -> None:
        """Write the folders to a tar file. Raises EmoExportError when it can't be written."""
        with writing(path), tarfile.open(path, "w", format=tarfile.GNU_FORMAT) as archive:
            for name, source in self._entries():
                entry = tarfile.TarInfo(name)
                entry.mode = _mode(source)
                if source.is_symlink():
                    entry.type, entry.linkname = tarfile.SYMTYPE, str(source.readlink())
                    archive.addfile(entry)
                    continue
                entry.size = source.stat().st_size
                with source.open("rb") as content:
                    archive.addfile(entry, content)

    def start(self, place: str) -> list[str]:
        """The words that start Python when the folders are at `place`."""
        root = self.folders["root"]
        loader = next((f for f in LIBRARIES if (root / f / LOADER).is_file()), "")
        if not loader:
            raise EmoExportError(f"{root} has no {LOADER}: it is no folder of arm64 Linux")
        libraries = ":".join(f"{place}/root/{f}" for f in LIBRARIES if (root / f).is_dir())
        return [
            f"{place}/root/{loader}/{LOADER}",
            "--library-path",
            libraries,
            f"{place}/root/{self.python}",
        ]

    def module_path(self, place: str) -> str:
        """PYTHONPATH's part for the packages that came along."""
        return ":".join(f"{place}/{name}" for name in self.modules)

    def settings(self, place: str) -> dict[str, str]:
        """The environment of Python when the folders are at `place`."""
        names = {name: f"{place}/{name}" for name in self.folders}
        told = {key: value.format_map(names) for key, value in self.environment.items()}
        home = Path(self.python).parent.parent.as_posix()
        return {"PYTHONHOME": f"{place}/root/{home}", **told}

    def _entries(self) -> Iterator[tuple[str, Path]]:
        """Every file and link, by its name in the archive; empty folders are of no use."""
        for name, folder in sorted(self.folders.items()):
            for path in sorted(folder.rglob("*")):
                relative = path.relative_to(folder)
                if not (path.is_symlink() or path.is_file()):
                    continue
                if name != "root" or self._is_needed(relative):
                    yield f"{name}/{relative.as_posix()}", path

    def _is_needed(self, path: Path) -> bool:
        """The interpreter, and what is in a folder of libraries, or leads to one."""
        return path == Path(self.python) or any(path.is_relative_to(f) for f in NEEDED)


def _mode(path: Path) -> int:
    """Readable by all, since Python may run as another user there."""
    return 0o755 if path.is_symlink() or path.stat().st_mode & 0o100 else 0o644
