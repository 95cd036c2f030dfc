"""Calibration text: a random sample of its sequences, the same on every machine.

All of the text is taken, in order, where there is no more than was asked for. Else files take
turns, the one with the fewest tokens so far next, and each gives a random one of its sequences.

A file is not encoded as a whole for that. Its documents are read in blocks; each few characters, a
*spot*, draw a number; the spots of the lowest numbers are kept, and the sequence around a spot is
taken. So any part of a file is as likely as any other, whatever the length of its document.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from heapq import heapify, heappop, heappush, nsmallest
from operator import itemgetter
from pathlib import Path
from typing import NamedTuple

from emo_export.interfaces import Ids
from emo_export.text.documents import FIELD, Document, read_blocks, read_documents
from emo_export.text.first import MOST_CHARACTERS, first_ids, split
from emo_export.text.places import Texts, find_texts, legible, named, readable_twice
from emo_export.text.tokenizer import Encode

CALIBRATION_TOKENS = 32768
"""By default."""

BLOCK = 32
"""Characters of a block for each token of a sequence, so that some ten sequences are in one."""

SPOTS = 4
"""Of `length` characters. These have at most 4 bytes each, and a token has one or more, so that no
sequence of `length` tokens is without a spot."""

SPARE = 4
"""Spots that are kept beyond twice as many as a file's share takes."""


@dataclass(frozen=True)
class Sample:
    """Sequences of token ids (T,), in the order of the text, that don't cross documents.

    `documents` says of each sequence which document it is of, from 0 and ascending; `names` is a
    name for each document (`c.jsonl:12` is a line), `source` for them all. `whole` tells that there
    is no more text than this; `texts` is where it is from, and what was passed over.
    """

    sequences: tuple[Ids, ...]
    documents: tuple[int, ...]
    names: tuple[str, ...]
    source: str
    whole: bool
    texts: Texts

    @property
    def tokens(self) -> int:
        """Of all sequences."""
        return sum(map(len, self.sequences))

    def drawn(self, tokens: int) -> Sequence[int]:
        """Sequences of at most so many tokens, but one at least, drawn evenly."""
        longest = max(map(len, self.sequences))
        count = min(max(1, tokens // longest), len(self.sequences))
        return [at * len(self.sequences) // count for at in range(count)]

    def part(self, drawn: Sequence[int]) -> Sample:
        """Of these sequences alone."""
        return replace(
            self,
            sequences=tuple(self.sequences[at] for at in drawn),
            documents=tuple(self.documents[at] for at in drawn),
            whole=self.whole and len(drawn) == len(self.sequences),
        )


@dataclass(frozen=True, order=True)
class Place:
    """Where in the text a sequence is: file, line, block, and how many sequences before it."""

    file: int
    line: int
    block: int
    number: int


Taken = dict[Place, Ids]


def read_calibration(
    places: Sequence[Path],
    encode: Encode,
    tokens: int,
    length: int,
    seed: int = 0,
    field: str = FIELD,
) -> Sample:
    """At most `tokens` tokens of files, folders and standard input ("-").

    Sequences of at most `length` tokens. The same text, seed and order of places give the same
    sample. Memory grows with `tokens`, not with the text. Raises EmoExportError for what is not
    text or holds none.
    """
    with readable_twice(places) as copied:
        texts = find_texts(copied)
        files = texts.files
        taken = _all(files, encode, tokens, length, field)
        whole = taken is not None
        if taken is None:
            taken = _some(files, encode, tokens, length, seed, field)
    order = sorted(taken)
    numbers: dict[tuple[int, int], int] = {}
    documents = [numbers.setdefault((at.file, at.line), len(numbers)) for at in order]
    names = [legible(files[file].name) + (f":{line}" if line else "") for file, line in numbers]
    sequences = tuple(taken[at] for at in order)
    return Sample(sequences, tuple(documents), tuple(names), named(files), whole, texts)


def _all(
    files: Sequence[Path], encode: Encode, tokens: int, length: int, field: str
) -> Taken | None:
    """Every sequence of the text, or None when it has more than `tokens` tokens."""
    taken: Taken = {}
    left, most = tokens, MOST_CHARACTERS * tokens
    for index, file in enumerate(files):
        for document in read_documents(file, most, field):
            if len(document.text) >= most:
                return None
            # Two more, of which the last may be dropped as a sequence of one token.
            ids_here = first_ids(document.text, encode, left + 2)
            for number, ids in enumerate(split(ids_here, length)):
                left -= len(ids)
                if left < 0:
                    return None
                taken[Place(index, document.line, 0, number)] = ids
    return taken


def _some(
    files: Sequence[Path], encode: Encode, tokens: int, length: int, seed: int, field: str
) -> Taken:
    """`tokens` tokens of the text, or hardly fewer: random sequences, evenly by file."""
    share = 2 * -(-tokens // (length * len(files))) + SPARE
    draws = [
        _draw(index, file, encode, length, share, f"{seed}/{index}", field)
        for index, file in enumerate(files)
    ]
    turn = random.Random(f"{seed}")
    queue = [(0, turn.random(), index) for index in range(len(files))]
    heapify(queue)
    taken: Taken = {}
    left = tokens
    while queue and left > 1:
        count, rank, index = heappop(queue)
        found = next(draws[index], None)
        if found is None:
            continue
        place, ids = found
        taken[place] = ids[:left]
        left -= len(taken[place])
        heappush(queue, (count + len(ids), rank, index))
    return taken


def _draw(
    index: int, file: Path, encode: Encode, length: int, kept: int, seed: str, field: str
) -> Iterator[tuple[Place, Ids]]:
    """The sequences of a file in random order, none twice; nothing is read before the first.

    The `kept` first spots are remembered. When those are used up, the file is read again for more.
    """
    blocks: dict[tuple[int, int], list[Ids]] = {}
    given: set[Place] = set()
    used = 0
    while True:
        spots = nsmallest(kept, _spots(file, length, seed, field), key=itemgetter(0))
        for spot in spots[used:]:
            line, block = spot.document.line, spot.block
            if (line, block) not in blocks:
                blocks[line, block] = split(encode(spot.document.text), length)
            sequences = blocks[line, block]
            number = int(spot.share * len(sequences))
            place = Place(index, line, block, number)
            if sequences and place not in given:
                given.add(place)
                yield place, sequences[number]
        if len(spots) < kept:
            return
        used, kept = kept, 4 * kept


class Spot(NamedTuple):
    """A few characters of a block: how far in it (0 up to 1), and the number that they drew."""

    rank: float
    document: Document
    block: int
    share: float


def _spots(file: Path, length: int, seed: str, field: str) -> Iterator[Spot]:
    draw = random.Random(seed).random  # seeded by text: the same in every Python
    line, block = -1, 0
    for document in read_blocks(file, BLOCK * length, field):
        block = block + 1 if document.line == line else 0
        line = document.line
        count = -(-SPOTS * len(document.text) // length)
        for number in range(count):
            yield Spot(draw(), document, block, number / count)
