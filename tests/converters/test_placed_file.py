"""A file whose regions are filled in place: every misuse is refused by name, a full disk told."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.errors import EmoExportError

REGIONS = {"first": Region(8, 3, 4), "second": Region(32, 2, 6)}
SIZE = 64


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "model.bin"


def rows(count: int, width: int, value: int) -> np.ndarray:
    return np.full((count, width), value, np.uint8)


def test_rows_land_in_place_in_any_order(path: Path) -> None:
    file = PlacedFile(path, SIZE, REGIONS)
    file.write("second", 1, np.array([[1, 2, 3]], np.uint16))
    file.write("first", 0, rows(2, 4, 7))
    file.write("second", 0, rows(1, 6, 8))
    file.write("first", 2, np.array([[1.0]], np.float32))
    file.close()
    want = bytearray(SIZE)
    want[8:16] = bytes([7] * 8)
    want[16:20] = np.float32(1).tobytes()
    want[32:38] = bytes([8] * 6)
    want[38:44] = bytes([1, 0, 2, 0, 3, 0])
    assert path.read_bytes() == bytes(want)


def test_rows_that_are_not_contiguous(path: Path) -> None:
    file = PlacedFile(path, 16, {"a": Region(0, 2, 8)})
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    file.write("a", 0, matrix.T[1:3, ::2])
    file.close()
    assert path.read_bytes() == matrix.T[1:3, ::2].tobytes()


def test_what_stood_before_the_regions_stays(path: Path) -> None:
    path.write_bytes(b"header..")
    file = PlacedFile(path, SIZE, REGIONS)
    file.write("first", 0, rows(3, 4, 1))
    file.write("second", 0, rows(2, 6, 2))
    file.close()
    assert path.read_bytes()[:12] == b"header..\1\1\1\1" and path.stat().st_size == SIZE


@pytest.mark.parametrize(
    ("name", "start", "data", "message"),
    [
        ("first", 0, rows(1, 3, 0), r"3 bytes for rows 0\.\.1 of first do not fit 3 rows of 4"),
        ("first", 2, rows(2, 4, 0), r"rows 2\.\.4 of first do not fit"),
        ("second", 0, rows(3, 6, 0), r"rows 0\.\.3 of second do not fit 2 rows of 6"),
        ("second", 0, rows(2, 4, 0), r"8 bytes for rows 0\.\.2 of second"),
        ("first", 1, rows(1, 4, 9), r"rows 1\.\.2 of first are written twice"),
        ("first", 0, rows(3, 4, 9), r"rows 0\.\.3 of first are written twice"),
    ],
)
def test_misuse_is_refused(
    path: Path, name: str, start: int, data: np.ndarray, message: str
) -> None:
    file = PlacedFile(path, SIZE, REGIONS)
    file.write("first", 1, rows(1, 4, 1))
    with pytest.raises(EmoExportError, match=rf"model\.bin: .*{message}"):
        file.write(name, start, data)
    # A refused write changed nothing: the file can still be completed.
    file.write("first", 0, rows(1, 4, 1))
    file.write("first", 2, rows(1, 4, 1))
    file.write("second", 0, rows(2, 6, 2))
    file.close()
    content = path.read_bytes()
    assert content[8:20] == b"\1" * 12 and content[32:44] == b"\2" * 12 and sum(content) == 36


def test_missing_rows_are_named(path: Path) -> None:
    file = PlacedFile(path, SIZE, REGIONS)
    file.write("first", 0, rows(3, 4, 1))
    with pytest.raises(EmoExportError, match=r"model\.bin: row 0 of second was never written"):
        file.close()
    file.write("second", 0, rows(1, 6, 1))
    with pytest.raises(EmoExportError, match="row 1 of second was never written"):
        file.close()
    file.abort()
    file.abort()


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=r"none/model\.bin: cannot be written \(No such file"):
        PlacedFile(tmp_path / "none" / "model.bin", SIZE, REGIONS)
    with pytest.raises(EmoExportError, match=r"cannot be written \(Is a directory\)"):
        PlacedFile(tmp_path, SIZE, REGIONS)


WRITE = """
import resource, sys
from pathlib import Path
import numpy as np
from emo_export.converters.placed_file import PlacedFile, Region
from emo_export.errors import EmoExportError
limit, row = int(sys.argv[2]), int(sys.argv[3])
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
try:
    file = PlacedFile(Path(sys.argv[1]), 1 << 20, {"a": Region(0, (1 << 20) // row, row)})
    for index in range((1 << 20) // row):
        file.write("a", index, np.ones((1, row), np.uint8))
    file.close()
except EmoExportError as error:
    print(error)
    sys.exit(2)
"""


def test_a_file_size_limit_is_told(path: Path) -> None:
    command = [sys.executable, "-c", WRITE, str(path), "65536", "4096"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    assert done.stdout == f"{path}: cannot be written (File too large)\n"


@pytest.mark.parametrize("row", [64, 1 << 19], ids=["buffered", "large"])
def test_a_full_disk_is_told(tmp_path: Path, row: int) -> None:
    # A mount of its own needs a user namespace, which some containers do not allow.
    script = 'mount -t tmpfs -o size=128k tmpfs "$1" && shift && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    try:
        probe = subprocess.run([*unshare, str(tmp_path), "true"], capture_output=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no unshare here")
    if probe.returncode:
        pytest.skip("no file system can be mounted here")
    path = tmp_path / "model.bin"
    command = [*unshare, str(tmp_path), sys.executable, "-c", WRITE, str(path), "0", str(row)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    want = f"{path}: cannot be written (No space left on device); free some space\n"
    assert done.stdout == want
