"""The sample of calibration text: all where there is little, else random, even and repeatable."""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tracemalloc
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.interfaces import Ids
from emo_export.text.places import STDIN, Texts
from emo_export.text.sample import Sample, read_calibration
from emo_export.text.tokenizer import open_tokenizer
from tests.kit.exporting import Array
from tests.kit.paths import NANO
from tests.text.test_documents import lines
from tests.text.test_first import letters


def strings(sample: Sample) -> list[str]:
    return ["".join(map(chr, ids)) for ids in sample.sequences]


def write(folder: Path, *files: list[str]) -> list[Path]:
    """JSON lines of the documents of each file."""
    return [
        lines(folder / f"{index}.jsonl", *({"text": document} for document in documents))
        for index, documents in enumerate(files)
    ]


def test_all_of_a_small_text_comes_in_order(tmp_path: Path) -> None:
    """Also where one file has more than its even share."""
    first, second = write(tmp_path, ["abcdefg", "h", "ij"], ["xy"])
    plain = tmp_path / "plain.txt"
    plain.write_text("QRSTUVWXYZ")
    found = read_calibration([second, first, plain], letters, 22, 4)
    assert strings(found) == ["xy", "abcd", "efg", "ij", "QRST", "UVWX", "YZ"]
    assert found.documents == (0, 1, 1, 2, 3, 3, 3)
    assert found.names == ("1.jsonl:1", "0.jsonl:1", "0.jsonl:3", "plain.txt")
    assert found.whole and found.tokens == 21
    assert found.source == "1.jsonl, 0.jsonl, plain.txt"
    assert read_calibration([first], letters, 9, 4).whole
    # One token too many, which would be left over in a sequence of its own.
    plain.write_text("ABCDEFGHI")
    assert strings(read_calibration([plain], letters, 9, 4)) == ["ABCD", "EFGH"]
    assert not read_calibration([plain], letters, 7, 4).whole


def document(rng: np.random.Generator, mark: str) -> str:
    """Words that are all different, so that each says where it is from."""
    return " ".join(f"{mark}{n}" for n in range(rng.integers(1, 400)))


def test_a_large_text_is_sampled_evenly_by_file(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    files = [[document(rng, f"{f}.{d}.") for d in range(40)] for f in "abc"]
    paths = write(tmp_path, *files, ["tiny"])
    found = read_calibration(paths, letters, 3000, 64)
    assert found.tokens == 3000 and not found.whole
    by_file: Counter[str] = Counter()
    for ids, number in zip(found.sequences, found.documents, strict=True):
        by_file[found.names[number].partition(":")[0]] += len(ids)
    assert by_file.pop("3.jsonl") == 4
    assert len(by_file) == 3 and max(by_file.values()) - min(by_file.values()) <= 64
    assert list(found.documents) == sorted(found.documents)
    assert sorted(set(found.documents)) == list(range(len(found.names)))
    # From all over the files, not from their beginnings.
    line_numbers = [int(name.partition(":")[2]) for name in found.names]
    assert max(line_numbers) > 35 and len(set(line_numbers)) > 20


def test_the_seed_alone_decides(tmp_path: Path) -> None:
    paths = write(tmp_path, *([f"{file}{n} " * 7 * n for n in range(40)] for file in "ab"))
    first = strings(read_calibration(paths, letters, 1000, 32))
    assert first == strings(read_calibration(paths, letters, 1000, 32, seed=0))
    assert first != strings(read_calibration(paths, letters, 1000, 32, seed=1))
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    renamed = [path.rename(moved / f"{path.stem}{path.suffix}") for path in paths]
    assert first == strings(read_calibration(renamed, letters, 1000, 32))
    # These very ones on every machine and in every Python.
    digest = hashlib.sha256("\n".join(first).encode()).hexdigest()
    assert digest[:16] == "89bddc0b9defe3fa"


@settings(max_examples=40, deadline=None)
@given(
    documents=st.lists(
        st.lists(st.text(st.sampled_from("ab \n\r𝄞語"), max_size=90), max_size=6),
        min_size=1,
        max_size=4,
    ),
    tokens=st.integers(2, 120),
    length=st.integers(2, 20),
    seed=st.integers(0, 3),
)
def test_sequences_are_pieces_of_documents_and_none_comes_twice(
    documents: list[list[str]],
    tokens: int,
    length: int,
    seed: int,
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    clean = [
        [text.replace("\r\n", "\n").replace("\r", "\n") for text in inside] for inside in documents
    ]
    paths = write(tmp_path_factory.mktemp("odd"), *documents)
    # An id for each character of the text, so that its place can be told.
    if not all(any(text.strip() for text in inside) for inside in clean):
        with pytest.raises(EmoExportError, match="holds no text"):
            read_calibration(paths, letters, 10_000, length)
        return
    found = read_calibration(paths, letters, tokens, length, seed)
    total = sum(len(text) for inside in clean for text in inside if text.strip())
    assert found.tokens <= min(tokens, total)
    assert all(2 <= len(ids) <= length for ids in found.sequences)
    by_document: dict[str, list[str]] = {}
    for string, number in zip(strings(found), found.documents, strict=True):
        by_document.setdefault(found.names[number], []).append(string)
    for name, pieces in by_document.items():
        file, _, line = name.partition(".jsonl:")
        rest = clean[int(file)][int(line) - 1]
        for piece in pieces:  # in order, and no character twice
            assert piece in rest
            rest = rest[rest.index(piece) + len(piece) :]
    if found.whole:
        assert found.tokens >= total - sum(map(len, clean))
    else:
        assert total > tokens


def test_every_part_of_a_text_is_as_likely(tmp_path: Path) -> None:
    """A long document among short ones, and the beginning and the end of a file."""
    words = [f"{n:05d}" for n in range(4000)]
    long, short = " ".join(words[:2000]), [" ".join(words[n : n + 4]) for n in range(2000, 4000, 4)]
    (path,) = write(tmp_path, [long, *short])
    seen: Counter[int] = Counter()
    for seed in range(40):
        found = read_calibration([path], letters, 1200, 24, seed)
        for string in strings(found):
            seen.update(int(word) // 500 for word in string.split() if len(word) == 5)
    counts = [seen[part] for part in range(8)]
    # About 800 of each, so that two standard deviations of a sequence's words are some 100.
    assert max(counts) < 1.35 * min(counts), counts


def test_little_is_encoded_and_held_of_a_huge_text(tmp_path: Path) -> None:
    plain, many = tmp_path / "a.txt", tmp_path / "b.jsonl"
    with plain.open("w") as file:
        for n in range(40):
            file.write(f"line {n} of a long file\n" * 2000)
    lines(many, *({"text": f"{n} " * 20} for n in range(5000)))
    encoded = 0

    def counting(text: str) -> Array:
        nonlocal encoded
        encoded += len(text)
        return letters(text)

    tracemalloc.start()
    found = read_calibration([plain, many], counting, 2000, 64)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.tokens == 2000
    assert plain.stat().st_size > 1_700_000 and peak < 800_000 and encoded < 200_000
    numbers = {string.split("line ")[-1].split(" ")[0] for string in strings(found)[:10]}
    assert len(numbers) > 5, numbers


def test_many_files_are_not_all_read(tmp_path: Path) -> None:
    paths = write(tmp_path, *([f"{n} " * 30] for n in range(300)))
    opened: list[str] = []

    def listening(text: str) -> Ids:
        opened.append(text)
        return letters(text)

    found = read_calibration(paths, listening, 640, 64)
    assert found.tokens == 640 and len(opened) < 40
    assert len({found.names[number] for number in found.documents}) == len(found.sequences)


def test_standard_input_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    content = "".join(json.dumps({"body": f"document {n} " * 9}) + "\n" for n in range(50))

    class Piped:
        buffer = io.BytesIO(content.encode())

    monkeypatch.setattr(sys, "stdin", Piped)
    found = read_calibration([STDIN], letters, 500, 32, field="body")
    assert found.tokens == 500 and found.source == "stdin.jsonl"
    assert {name.partition(":")[0] for name in found.names} == {"stdin.jsonl"}


def test_real_text_and_a_real_tokenizer() -> None:
    encode = open_tokenizer(NANO, 6144)
    assert encode is not None
    found = read_calibration([NANO / "calibration"], encode, 8192, 128)
    assert found.tokens == 8192 and not found.whole
    by_file: Counter[str] = Counter()
    for ids, number in zip(found.sequences, found.documents, strict=True):
        by_file[found.names[number].partition(":")[0]] += len(ids)
    assert len(by_file) == 6 and max(by_file.values()) - min(by_file.values()) <= 128
    assert np.mean([len(ids) for ids in found.sequences]) > 100


def test_a_part_is_drawn_evenly() -> None:
    ids = tuple(np.full(10, n) for n in range(7))
    whole = Sample(ids, tuple(range(7)), tuple("abcdefg"), "a text", True, Texts(()))
    part = whole.part(whole.drawn(35))
    assert [int(one[0]) for one in part.sequences] == [0, 2, 4] == list(part.documents)
    assert part.tokens == 30 and not part.whole
    assert whole.part(whole.drawn(70)) == whole and whole.part(whole.drawn(1)).tokens == 10
