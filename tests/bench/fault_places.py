"""Places where nothing can be written, or not enough, and names that are taken: faults by nature.

Each is a shell line in a mount namespace of its own, for tests.bench.faults.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from tests.kit.paths import GOLDEN
from tests.kit.trials import Row

EXPORT = f'"{sys.executable}" -m emo_export export "{GOLDEN}/base" --no-validate --to gguf:q4_0'
PRUNE = f'"{sys.executable}" -m emo_export prune "{GOLDEN}/base" --keep 6 --calibration text.txt'
SMALL = "mount -t tmpfs -o size={size} tmpfs disk"
UNSHARE = ("unshare", "--user", "--map-root-user", "--mount", "sh", "-c")
LINES = {  # title -> (what is done, exit code, what is said, what is in disk/ afterwards)
    "a disk of 1 MB: export": (f"{SMALL} && {EXPORT} -o disk/out", 2, "its disk has", ""),
    "a disk of 1 MB: prune": (f"{SMALL} && {PRUNE} -o disk/out", 2, "its disk has", ""),
    "a disk that another process fills meanwhile": (
        "mount -t tmpfs -o size=6m tmpfs disk; (until ls disk/.out.partial/out/*.gguf; do :; "
        "done; head -c 9000000 /dev/zero > disk/x) >/dev/null 2>&1 & other=$!; "
        f"{EXPORT} -o disk/out; code=$?; kill $other 2>/dev/null; (exit $code)",
        2,
        "error: ",  # which of the two checks or writes finds it is a race
        "x",
    ),
    "a TMPDIR without space: validation with exact arithmetic": (
        "mount -t tmpfs -o size=100k tmpfs tmp && TMPDIR=$PWD/tmp "
        + EXPORT.replace("--no-validate", "--heldout text.txt")
        + " -o disk/out",
        0,
        "tmp: has 0.1 MB free",
        "out",
    ),
    "a limit on the size of files (ulimit -f)": (
        f"ulimit -f 400 && {EXPORT} -o disk/out",
        2,
        "File too large",
        "",
    ),
    "a folder that is read-only": (
        f"mount -t tmpfs -o ro tmpfs disk && {EXPORT} -o disk/out",
        2,
        "Read-only file system",
        "",
    ),
    "a name that is taken": (
        f"mkdir disk/out && touch disk/out/thesis && {EXPORT} -o disk/out --overwrite",
        2,
        "leaves it alone",
        "out",
    ),
    "two exports into one folder at once": (
        f"{EXPORT} -o disk/out & first=$!; until [ -s disk/.out.partial/lock ]; do :; done; "
        f"kill -STOP $first; {EXPORT} -o disk/out; code=$?; kill -CONT $first; "
        "wait $first || code=99; (exit $code)",
        2,
        "another emo-export is making it (process",
        "out",
    ),
}


def places(work: Path) -> Iterator[Row]:
    """A row for each; `work` has text.txt."""
    for number, (title, (line, code, said, left)) in enumerate(LINES.items()):
        row = Row(title, tried=1, struck=1)
        folder = work / f"place{number}"
        for name in ("disk", "tmp"):
            (folder / name).mkdir(parents=True)
        (folder / "text.txt").symlink_to(work / "text.txt")
        script = f"{line.format(size='1m')}; code=$?; ls -A disk >&3; ls -A tmp >&3; exit $code"
        with (folder / "left").open("w+") as listing:
            done = subprocess.run(
                [*UNSHARE, f"exec 3>&{listing.fileno()}; {script}"],
                cwd=folder,
                capture_output=True,
                text=True,
                check=False,
                pass_fds=[listing.fileno()],
            )
            listing.seek(0)
            found = " ".join(listing.read().split())
        if (done.returncode, found) != (code, left) or said not in done.stderr:
            row.lost.append(f"{title}: {done.returncode}, {found!r} left: {done.stderr[-600:]}")
        if "Traceback" in done.stderr:
            row.lost.append(f"{title}: a traceback: {done.stderr[-600:]}")
        yield row
