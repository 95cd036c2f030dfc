"""A file of known size whose regions are filled in any order, each row exactly once."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from emo_export.base.disk import writing
from emo_export.errors import EmoExportError


@dataclass(frozen=True)
class Region:
    """A matrix of `rows` rows of `row_bytes` bytes at byte `offset` of a file."""

    offset: int
    rows: int
    row_bytes: int

    @property
    def nbytes(self) -> int:
        """Bytes of the whole region."""
        return self.rows * self.row_bytes


class PlacedFile:
    """Regions of one file, written in place; `close` refuses a file with rows missing."""

    def __init__(self, path: Path, size: int, regions: Mapping[str, Region]) -> None:
        self.path = path
        self._regions = regions
        self._written = {name: np.zeros(r.rows, dtype=bool) for name, r in regions.items()}
        with writing(path):
            self._file: BinaryIO = path.open("r+b" if path.exists() else "w+b")
            self._file.truncate(size)

    def write(self, name: str, start: int, rows: npt.NDArray[Any]) -> None:
        """Put rows (n, ...) of a region in place, beginning at row `start`.

        Raises EmoExportError for rows of the wrong size, outside the region or written twice, and
        when the disk is full.
        """
        region, written = self._regions[name], self._written[name]
        data = np.ascontiguousarray(rows)
        stop = start + data.shape[0]
        if data.nbytes != data.shape[0] * region.row_bytes or stop > region.rows:
            raise EmoExportError(
                f"{self.path}: {data.nbytes} bytes for rows {start}..{stop} of {name} do not fit "
                f"{region.rows} rows of {region.row_bytes} bytes"
            )
        if written[start:stop].any():
            raise EmoExportError(f"{self.path}: rows {start}..{stop} of {name} are written twice")
        with writing(self.path):
            self._file.seek(region.offset + start * region.row_bytes)
            self._file.write(data.data if data.size else b"")
        written[start:stop] = True

    def written(self) -> npt.NDArray[np.uint8]:
        """Which rows of all regions are in place, eight to a byte; they are flushed to the disk."""
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
        return np.packbits(np.concatenate(list(self._written.values())))

    def adopt(self, old: Path, written: npt.NDArray[np.uint8]) -> None:
        """Go on with the file `old` of an earlier run, which takes this one's place and header.

        Raises EmoExportError for a file of another size.
        """
        rows = [region.rows for region in self._regions.values()]
        with writing(self.path):
            head = min(region.offset for region in self._regions.values())
            self._file.seek(0)
            header = self._file.read(head)
            size = self._file.seek(0, os.SEEK_END)
            if old.stat().st_size != size or len(written) != -(-sum(rows) // 8):
                raise EmoExportError(f"{old}: is not what an earlier run left; use --no-resume")
            self._file.close()
            if old.stat().st_nlink > 1:  # a trunk already shared, which onnx's checker would refuse
                shutil.copyfile(old, self.path)
                old.unlink()
            else:
                old.replace(self.path)
            self._file = self.path.open("r+b")
            self._file.write(header)
        flags = np.unpackbits(written, count=sum(rows)).astype(bool)
        parts = np.split(flags, np.cumsum(rows)[:-1])
        self._written = dict(zip(self._regions, parts, strict=True))

    def close(self) -> None:
        """Flush to disk. Raises EmoExportError naming the first region with rows missing."""
        for name, written in self._written.items():
            if not written.all():
                raise EmoExportError(
                    f"{self.path}: row {int(written.argmin())} of {name} was never written"
                )
        with writing(self.path):
            self._file.flush()
            os.fsync(self._file.fileno())
            self._file.close()

    def abort(self) -> None:
        """Let go of the file without checking it."""
        with suppress(OSError):  # closing flushes, which fails again on a full disk
            self._file.close()
