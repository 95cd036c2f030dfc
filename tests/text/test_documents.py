"""The documents of text files: plain, JSON lines, odd ends of lines, what is no text."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from emo_export.errors import EmoExportError
from emo_export.text.documents import LONGEST_LINE, read_blocks, read_documents


def lines(path: Path, *documents: object) -> Path:
    path.write_text("".join(json.dumps(d) + "\n" for d in documents), "utf-8")
    return path


def texts(path: Path, field: str = "text") -> list[str]:
    return [document.text for document in read_documents(path, field=field)]


def test_a_txt_is_one_document_and_a_jsonl_one_a_line(tmp_path: Path) -> None:
    text = tmp_path / "a.txt"
    text.write_text("Zürich\n\nOslo \n", "utf-8")
    assert texts(text) == ["Zürich\n\nOslo \n"]
    named = lines(tmp_path / "b.JSONL", {"text": "one\u2028still", "id": 3}, {"text": "two"})
    named.write_text(named.read_text("utf-8") + '\r\n\n{"text":\r"three"}', "utf-8")
    assert texts(named) == ["one\u2028still", "two", "three"]
    assert [document.line for document in read_documents(named)] == [1, 2, 5]
    named = lines(tmp_path / "c.ndjson", {"text": " "}, {"text": None}, {"text": "a\ud800b\0"})
    assert texts(named) == ["a?b\0"]
    assert texts(lines(named, {"text": "x", "body": "y"}), field="body") == ["y"]


def test_a_byte_order_mark_is_no_text_and_a_line_ends_one_way(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_bytes("\ufeffone\r\ntwo\rthree\n\r\n".encode())
    assert texts(path) == ["one\ntwo\nthree\n\n"]
    path = tmp_path / "a.jsonl"
    path.write_text('\ufeff{"text": "one\\r\\ntwo\\rthree"}\r\n', "utf-8", newline="")
    assert texts(path) == ["one\ntwo\nthree"]


@pytest.mark.parametrize("name", ["bad.txt", "bad.jsonl", "bad.py"])
@pytest.mark.parametrize(
    "content", [b"", b"  \n\n ", b"\xef\xbb\xbf", b"\xff\xfea\0", b"abc \x80", b"GGUF\3\0\0\0"]
)
def test_what_holds_no_text_is_refused(name: str, content: bytes, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(EmoExportError, match=rf"{name}: (holds no text|is not readable|line 1)"):
        texts(path)


def test_a_file_that_is_not_there_or_not_utf8_is_named(tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=r"there is no file .*nowhere\.txt"):
        texts(tmp_path / "nowhere.txt")
    path = tmp_path / "old.c"
    path.write_bytes(b"/* caf\xe9 */")
    with pytest.raises(EmoExportError, match=r"old\.c: .* byte 0xe9 is not UTF-8.* iconv"):
        texts(path)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("plain", "is not JSON"),
        ('{"content": "x"}', 'has no "text" but "content"; .*--field'),
        ("{}", 'has no "text" but nothing'),
        ('["text"]', "holds .* expected an object"),
        ('"text"', "holds .* expected an object"),
        ("7", "holds .* expected an object"),
        ("null", "holds .* expected an object"),
        ('{"text": "x"', "is not JSON"),
        ('{"text": 5}', '"text" is a int, not text'),
        ('{"text": ["x"]}', '"text" is a list, not text'),
        ("[" * 99999, "is not JSON"),
        ('{"text": ' + "9" * 5000 + "}", "is not JSON"),
    ],
)
def test_lines_without_text_are_refused(line: str, said: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text('{"text": "good"}\n' + line + "\n")
    with pytest.raises(EmoExportError, match=rf"bad\.jsonl: line 2:? {said}"):
        texts(path)


def test_a_line_without_an_end_is_refused_before_memory_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert LONGEST_LINE == 16 << 20
    monkeypatch.setattr("emo_export.text.documents.LONGEST_LINE", 2 << 20)
    path = tmp_path / "endless.jsonl"
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a hole: takes no disk
    with pytest.raises(EmoExportError, match=r"line 1 has 2 million characters or more"):
        texts(path)


@settings(max_examples=60, deadline=None)
@given(
    text=st.text(st.sampled_from("ab \n\r\u2028é𝄞\t\ufeff\x85"), max_size=200),
    size=st.integers(1, 40),
)
def test_blocks_are_the_document_cut(
    text: str, size: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = text.encode("utf-8", "replace").decode("utf-8").replace("\0", "")
    folder = tmp_path_factory.mktemp("blocks")
    plain, named = (
        folder / "a.txt",
        lines(folder / "b.jsonl", {"text": "first"}, {"text": text.removeprefix("\ufeff")}),
    )
    plain.write_bytes(text.encode("utf-8"))
    want = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if want.strip():
        assert texts(plain) == [want]
        blocks = [document.text for document in read_blocks(plain, size)]
        assert all(0 < len(block) <= size and block.strip() for block in blocks)
        # What is dropped between blocks is white space.
        assert "".join("".join(blocks).split()) == "".join(want.split())
        assert max(map(len, blocks)) >= min(size // 2, len(want.strip()), 1)
        assert [d.text for d in read_blocks(named, size) if d.line == 2] == blocks
    else:
        with pytest.raises(EmoExportError, match="holds no text"):
            texts(plain)
        assert texts(named) == ["first"]


def test_blocks_end_with_a_line_or_before_a_word(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text("one two three four\nfive six seven\neight")
    assert [d.text for d in read_blocks(path, 20)] == [
        "one two three four\n",
        "five six seven\n",
        "eight",
    ]
    assert [d.text for d in read_blocks(path, 10)][:3] == ["one two", " three", " four\n"]
