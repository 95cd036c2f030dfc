"""Sizes of memory as a user writes them.

GB and MB are decimal (10^9, 10^6), GiB and MiB binary, as written. A board sold with "4GB" has
4 GiB = 4.29 GB, part of which its firmware and its system take; what is given here is what the
process with the model may have, and nothing is taken off it.
"""

from __future__ import annotations

import re

from emo_export.errors import EmoExportError

_UNITS = {"kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 1 << 10, "mib": 1 << 20, "gib": 1 << 30}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([a-z]+)", re.ASCII)
SMALLEST, LEAST, MOST = 1 << 10, 1 << 20, 1 << 50


def parse_size(text: str, least: int = LEAST) -> int:
    """`4GB` -> 4000000000 bytes, `1.5GiB` -> 1610612736.

    Raises EmoExportError for anything but a number with one of the units, of `least` (1 MiB,
    or `SMALLEST`, 1 KiB) to 1 PiB.
    """
    found = _SIZE.fullmatch(text.strip().lower())
    if found is None or found[2] not in _UNITS:
        raise EmoExportError(
            f"{text!r} is not a size of memory: give a number with MB or GB (decimal), or MiB or "
            "GiB (binary), as in 4GB, 512MB or 1.5GiB"
        )
    lowest = "1 MiB" if least == LEAST else "1 KiB"
    if len(found[1]) > 20 or not least <= float(found[1]) * _UNITS[found[2]] <= MOST:
        raise EmoExportError(f"{text!r} is no memory that a model could have: {lowest} to 1 PiB")
    return round(float(found[1]) * _UNITS[found[2]])


def spelled(nbytes: int) -> str:
    """`4GB`, `1.500kB`: bytes as parse_size reads them, to the byte."""
    for unit, name in ((10**9, "GB"), (10**6, "MB"), (1 << 30, "GiB"), (1 << 20, "MiB")):
        if nbytes % unit == 0:
            return f"{nbytes // unit}{name}"
    return f"{nbytes // 1000}.{nbytes % 1000:03}kB"


def shown(nbytes: float) -> str:
    """`2.31 GB`, `24.5 MB`: bytes for a sentence, decimal."""
    return f"{nbytes / 1e9:.2f} GB" if abs(nbytes) >= 999.5e6 else f"{nbytes / 1e6:.1f} MB"
