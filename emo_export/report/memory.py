"""Why the memory that was asked for does not hold a target, and what else it would hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from emo_export.base.ram_size import shown
from emo_export.parity.result import TooLittle


def too_little(target: str, needs: Mapping[str, Any], found: TooLittle) -> str:
    """`needs`: the bytes in `Result.memory`, those of `Fit`."""
    return f"{_too_large(target, needs)}; {_instead(found)}"


def _too_large(target: str, needs: Mapping[str, Any]) -> str:
    total, anonymous, mapped = (needs[key] for key in ("total", "anonymous", "weights_mapped"))
    ram, libraries = needs["ram"], needs["libraries"]
    cache = f"a KV cache of {shown(needs['cache'])} at {needs['context']} tokens"
    base = ""
    if needs["base"] is not None:
        base = f" (Python and the engine took {shown(needs['base'])} before it was opened)"
    if needs["oom_killed"]:
        return (
            f"{target} needs more than --ram {shown(ram)}: the kernel ended it there, with "
            f"{shown(anonymous)} anonymous{base}; its weights and {cache} alone are "
            f"{shown(needs['least'])}"
        )
    if not needs["measured"]:
        return (
            f"{target} needs {shown(total)} for its weights and {cache} alone{base}: "
            f"more than --ram {shown(ram)}"
        )
    runs = anonymous + libraries <= ram
    return (
        f"{target} needs {shown(total)} with {cache}: {shown(anonymous)} anonymous and "
        f"{shown(mapped + libraries)} file-backed, of which "
        f"{shown(mapped)} are weights{base}; more than --ram {shown(ram)}"
        f"{'' if needs['enforced'] else ' (not enforced: sampled)'}"
        f"{', so it runs, but reads weights from the disk for each token' if runs else ''}"
    )


def _instead(found: TooLittle) -> str:
    if found.early:
        return "that was before a model was opened, so that no other format would fit either"
    smaller = found.smaller
    if smaller is None:
        return f"no smaller format of {found.family} fits"
    about = f"{'about' if smaller.known else 'at least'} {shown(smaller.nbytes)}"
    if smaller.ran:
        return f"{smaller.target} of this package needs {shown(smaller.nbytes)} and fits"
    if smaller.there:
        return f"{smaller.target} of this package would need {about}"
    calibration = " --calibration TEXT" if smaller.weighed else ""
    return f"{smaller.target} would need {about}: export --to {smaller.target}{calibration}"
