"""What `plan` says of the released model on Raspberry Pis, as README's table.

    python -m tests.bench.boards

From a config of the released shape alone, as `emo-export plan allenai/Emo_1b14b_1T --context 1024`.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path

from emo_export.planning.plan import make_plan
from emo_export.planning.profiles import device_profiles
from emo_export.planning.source import open_source
from tests.bench.synthetic import Size, config_of

RELEASED = Size(2048, 1024, 16, 128, 100352)
KEPT = ("all", "64", "32", "16", "8")
TYPES = ("gguf:q4_k_m", "gguf:iq2_s")
CONTEXT = 1024


def lines() -> Iterator[str]:
    """The table, line by line: GB of the file and in memory, and the smallest board for it."""
    with tempfile.TemporaryDirectory(prefix="emo-export-boards-") as name:
        (Path(name) / "config.json").write_text(json.dumps(config_of(RELEASED)), "utf-8")
        checkpoint, nbytes = open_source(Path(name))
        plan = make_plan(checkpoint, nbytes, TYPES, KEPT, CONTEXT)
    yield f"| experts kept, of {plan.experts} | {' | '.join(KEPT)} |"
    yield "|---" * (len(KEPT) + 1) + "|"
    boards = [found for name, found in device_profiles().items() if name.startswith("pi")]
    for kind in TYPES:
        planned = [target for target in plan.planned if str(target.spec) == kind]
        sizes = [f"{one.nbytes / 1e9:.1f} / {one.running.total / 1e9:.1f}" for one in planned]
        yield f"| `{kind}`: GB of the file / in memory | {' | '.join(sizes)} |"
        fits = [min(b.ram for b in boards if b.usable >= one.running.total) for one in planned]
        yield f"| a board of at least | {' | '.join(f'{ram >> 30} GB' for ram in fits)} |"


if __name__ == "__main__":
    print("\n".join(lines()))
