"""Small integers spread over the bytes of a block, as ggml lays them out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Plane:
    """Some bits of each of a few numbers, in the bytes of a block from `start` on.

    `run` neighbouring numbers lie in as many neighbouring bytes at the same bits; the next run lies
    in the same bytes `bits` higher, and behind the highest the next bytes begin. The lowest bit is
    `low` in a byte and `up` in a number. `count` numbers from `first` on are here; None: all.
    """

    start: int
    run: int
    bits: int
    up: int = 0
    low: int = 0
    first: int = 0
    count: int | None = None

    def split(self, blocks: Bytes, numbers: Bytes) -> tuple[Bytes, Bytes, list[int]]:
        """Blocks (B, bytes), numbers (B, n) -> views (B, groups, run), (B, groups, slots, run).

        The list says how far each slot is shifted in a byte. Both views write through.
        """
        count = numbers.shape[1] - self.first if self.count is None else self.count
        slots = min((8 - self.low) // self.bits, count // self.run)
        groups = count // (slots * self.run)
        stop = self.start + groups * self.run
        places = blocks[:, self.start : stop].reshape(-1, groups, self.run)
        mine = numbers[:, self.first : self.first + count]
        shifts = [self.low + slot * self.bits for slot in range(slots)]
        return places, mine.reshape(-1, groups, slots, self.run), shifts


def unpack(blocks: Bytes, planes: Sequence[Plane], count: int) -> Bytes:
    """Blocks (B, bytes) -> the numbers (B, count) that the planes make up."""
    numbers = np.zeros((len(blocks), count), np.uint8)
    for plane in planes:
        places, mine, shifts = plane.split(blocks, numbers)
        mask = np.uint8((1 << plane.bits) - 1)
        for slot, shift in enumerate(shifts):
            mine[:, :, slot] |= ((places >> np.uint8(shift)) & mask) << np.uint8(plane.up)
    return numbers


def pack(blocks: Bytes, planes: Sequence[Plane], numbers: Bytes) -> None:
    """Put numbers (B, n) into blocks (B, bytes) in place; all other bits stay."""
    for plane in planes:
        places, mine, shifts = plane.split(blocks, numbers)
        mask = np.uint8((1 << plane.bits) - 1)
        for slot, shift in enumerate(shifts):
            places &= np.uint8(0xFF ^ (int(mask) << shift))
            places |= ((mine[:, :, slot] >> np.uint8(plane.up)) & mask) << np.uint8(shift)
