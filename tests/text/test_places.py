"""Which files are meant: folders, what is passed over in them, standard input and pipes."""

from __future__ import annotations

import io
import os
import sys
import threading
from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.text.places import STDIN, find_texts, named, readable_twice


def tree(folder: Path, *names: str) -> Path:
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")
    return folder


def test_a_folder_means_the_text_in_it_and_below(tmp_path: Path) -> None:
    shown = ("README", "a/z.py", "a.md", "b/c/d.TXT", "b/e.jsonl", "build/x.c")
    hidden = (".git/config", "a/.hidden.txt", "b/node_modules/x.js", "vendor/y.go")
    tree(tmp_path / "in", *shown, *hidden)
    (tmp_path / "in" / "model.gguf").write_bytes(b"GGUF\3\0\0\0")
    (tmp_path / "in" / "latin.c").write_bytes(b"caf\xe9")
    (tmp_path / "in" / "__init__.py").write_bytes(b"")
    (tmp_path / "in" / "blank.txt").write_bytes(b"\xef\xbb\xbf \n")
    (tmp_path / "in" / "again").symlink_to(tmp_path / "in")
    (tmp_path / "in" / "gone.txt").symlink_to(tmp_path / "nowhere")
    found = find_texts([tmp_path / "in"])
    want = ["README", "a/z.py", "a.md", "b/c/d.TXT", "b/e.jsonl", "build/x.c"]
    assert [file.relative_to(tmp_path / "in").as_posix() for file in found.files] == want
    assert found.not_text == 5 and found.hidden == 5
    # What is named is meant, wherever it stands.
    vendored = [tmp_path / "in" / "vendor", tmp_path / "in" / ".git", tmp_path / "in" / "latin.c"]
    assert [file.name for file in find_texts(vendored).files] == ["y.go", "config", "latin.c"]


def test_the_end_of_what_is_sniffed_may_cut_a_character(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("x" + "é" * 40_000, "utf-8")
    assert len(find_texts([tmp_path]).files) == 1


def test_a_folder_without_text_is_refused(tmp_path: Path) -> None:
    tree(tmp_path / "empty", ".hidden")
    (tmp_path / "empty" / "b.bin").write_bytes(b"\0")
    tree(tmp_path, "b.txt")
    with pytest.raises(EmoExportError, match=r"empty: holds no text file \(1 that are .* 1 hidden"):
        find_texts([tmp_path / "b.txt", tmp_path / "empty"])


def test_a_folder_that_cannot_be_read_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree(tmp_path, "in/a.txt", "in/closed/b.txt")
    scan = os.scandir

    def refuse(path: str) -> object:  # root, who runs tests, may read everything
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", path)
        return scan(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(EmoExportError, match=r"in: can't be read: .*closed"):
        find_texts([tmp_path / "in"])


class Piped:
    """Standard input with bytes behind it."""

    def __init__(self, content: bytes) -> None:
        self.buffer = io.BytesIO(content)


@pytest.mark.parametrize(
    ("content", "name"),
    [
        (b"plain\r\ntext", "stdin"),
        (b'{"text": "x"}\n{"text": "y"}', "stdin.jsonl"),
        (b'\xef\xbb\xbf {"content": "x"}', "stdin.jsonl"),
        (b'{"text": "' + b"x" * 100_000 + b'"}', "stdin.jsonl"),
        (b"{\n  int x;\n}", "stdin"),
        (b'"text"', "stdin"),
        (b"", "stdin"),
    ],
)
def test_standard_input_is_copied_for_a_while(
    content: bytes, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "stdin", Piped(content))
    with readable_twice([tmp_path, STDIN]) as (first, copy):
        assert first == tmp_path and copy.name == name
        assert copy.read_bytes() == copy.read_bytes() == content
    assert not copy.exists()


def test_standard_input_is_read_once() -> None:
    with (
        pytest.raises(EmoExportError, match="can be read only once"),
        readable_twice([STDIN, STDIN]),
    ):
        raise AssertionError


def test_a_pipe_is_copied_too(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_bytes, args=(b"text",))
    writer.start()
    with readable_twice([pipe]) as (copy,):
        assert copy != pipe and copy.read_bytes() == b"text" and copy.name == "pipe"
    writer.join()


def test_names_for_a_sentence() -> None:
    assert named([Path("a/b.txt"), Path(os.fsdecode(b"\xff.txt"))]) == "b.txt, ?.txt"
    assert named([Path(f"{n}") for n in range(10)]) == "0, 1, 2, 3, 4, 5, 6, 7 and 2 more"
