"""A process that holds a known amount: memory_child.py ANONYMOUS FILE BYTES-OF-IT SECONDS."""

from __future__ import annotations

import mmap
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from emo_export.base.memory_mark import wait_to_be_seen

anonymous, name, size = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
wait_to_be_seen()
block = bytearray(anonymous)
for at in range(0, anonymous, 4096):
    block[at] = 1
with name.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
    total = sum(mapped[at] for at in range(0, size, 4096))
    print("holding", flush=True)
    time.sleep(float(sys.argv[4]))
    wait_to_be_seen()
