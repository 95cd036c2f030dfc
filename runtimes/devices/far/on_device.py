"""The far side of a validation: judges one target of a package and answers with JSON.

    python -m emo_export.runtimes.devices.far.on_device FOLDER SPEC [--threads N] [--sequences N] …

It runs on the device (or under its emulation) and needs numpy and the target's engine, no more.
The last line of stdout is the answer; whatever else is said goes to stderr. A crash, which
Python can't report, is for the near side to see.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from emo_export.parity.golden import Golden
from emo_export.parity.judge import validate_target
from emo_export.runtimes.devices.far.answer import answer
from emo_export.runtimes.devices.far.machine import machine_facts
from emo_export.runtimes.devices.request import VERSION, Request, parse
from emo_export.runtimes.families import family_at
from emo_export.runtimes.opening import open_runtime, tokenizer_of
from emo_export.runtimes.package import chosen_targets


def judge(folder: Path, target: str, request: Request) -> dict[str, Any]:
    """The answer for one target of a package.

    Raises EmoExportError for a folder without golden.npz or the target, or an engine that refuses.
    """
    package, targets = chosen_targets(folder, [target])
    (entry,) = targets.values()
    golden = request.share.of(Golden.load(package / "golden.npz"))
    path = package / entry.path
    opening = partial(open_runtime, path, request.threads, context=request.context or None)
    kernels = family_at(path).kernels() if request.kernels else {}
    result = validate_target(
        entry.spec,
        golden,
        partial(opening, parity=True),
        partial(tokenizer_of, path),
        profile=request.profile,
        open_lossy=partial(opening, kv_cache=request.kv_cache) if request.kv_cache else None,
    )
    return {
        "version": VERSION,
        "target": target,
        "result": replace(result, machine=machine_facts(), kernels=kernels).as_dict(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Judge and answer; an error that a user can mend is an answer too, with its exit code."""
    folder, target, request = parse(sys.argv[1:] if arguments is None else arguments)
    return answer(lambda: judge(folder, target, request), request.timeout)


if __name__ == "__main__":
    sys.exit(main())
