"""The first tokens of text files: how they are shared out and cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError
from emo_export.text.first import sequences_of, split
from emo_export.text.tokenizer import open_tokenizer
from tests.kit.exporting import Array
from tests.text.test_documents import lines


def letters(text: str) -> Array:
    """A tokenizer with one id for each character."""
    return np.array([ord(c) for c in text], dtype=np.int64)


def test_tokens_are_shared_evenly_and_cut_at_documents(tmp_path: Path) -> None:
    first = lines(tmp_path / "a.jsonl", {"text": "abcdefg"}, {"text": "hi"}, {"text": "jklmnopq"})
    second = tmp_path / "b.txt"
    second.write_text("ABCDEFGHIJKLMNOPQRSTUVWXYZ")
    found = sequences_of([first, second], letters, 24, 4)
    text = ["".join(map(chr, ids)) for ids in found]
    assert text == ["abcd", "efg", "hi", "jkl", "ABCD", "EFGH", "IJKL"]
    assert sum(map(len, found)) == 24


@pytest.mark.parametrize(("tokens", "want"), [(2, ["AB", "CD"]), (3, ["AB", "CD"]), (6, ["ABC"])])
def test_every_file_has_a_say_and_no_sequence_has_one_token(
    tokens: int, want: list[str], tmp_path: Path
) -> None:
    files = [tmp_path / "a.txt", tmp_path / "b.txt"]
    files[0].write_text("ABCX" if tokens < 6 else "ABC")
    files[1].write_text("CDE" if tokens < 6 else "Z")
    found = ["".join(map(chr, ids)) for ids in sequences_of(files, letters, tokens, 8)]
    assert found == want
    assert [len(piece) for piece in split(np.arange(9), 4)] == [4, 4]
    assert split(np.arange(1), 4) == split(np.arange(0), 4) == []


def test_a_tokenizer_is_opened_or_refused(synth: Path, nano: Path) -> None:
    encode = open_tokenizer(nano, 6144)
    assert encode is not None
    assert encode("In the").dtype == np.int64 and len(encode("In the")) > 0
    assert len(encode("")) == 0
    with pytest.raises(EmoExportError, match=r"token id \d+ is not below vocab_size 300"):
        open_tokenizer(nano, 300)
    (synth / "tokenizer.json").write_text("{}")
    with pytest.raises(EmoExportError, match=r"tokenizer\.json: is not a tokenizer\.json"):
        open_tokenizer(synth, 512)
    (synth / "tokenizer.json").unlink()
    assert open_tokenizer(synth, 512) is None


def test_no_more_of_a_file_is_encoded_than_its_tokens_take(tmp_path: Path) -> None:
    seen: list[int] = []

    def counting(text: str) -> Array:
        seen.append(len(text))
        return letters(text)

    long, many = tmp_path / "a.txt", tmp_path / "b.jsonl"
    long.write_text("x" * 3_000_000)
    lines(many, *({"text": "y" * 50} for _ in range(5000)))
    found = sequences_of([long, many], counting, 200, 64)
    assert sum(map(len, found)) == 200
    assert sum(seen) < 5000 and len(seen) < 10
    # Tokens of many characters: more is encoded until there are enough.
    sparse = sequences_of([long], lambda text: letters(text[::20]), 100, 64)
    assert sum(map(len, sparse)) == 100
