"""Names in a folder from a stranger that are no files, or lead to none."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from emo_export.base.plain_file import check_plain
from emo_export.errors import EmoExportError
from emo_export.families import FAMILIES
from emo_export.files.manifest import digest
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.hub import SMALL_FILES

KINDS = {
    "a pipe": os.mkfifo,
    "a folder": os.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "a link that leads to no file": lambda path: path.symlink_to("../blobs/gone"),
    "Too many levels": lambda path: path.symlink_to(path.name),
}


@pytest.mark.parametrize("what", KINDS)
@pytest.mark.parametrize("name", ["generation_config.json", "additional_chat_templates/x.jinja"])
def test_what_is_no_file_is_refused(name: str, what: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    KINDS[what](tmp_path / name)
    with pytest.raises(EmoExportError, match=f"{Path(name).name}.*{what}"):
        check_plain(tmp_path, SMALL_FILES)
    with pytest.raises(EmoExportError, match=what):
        Checkpoint.open(tmp_path)
    with pytest.raises(EmoExportError, match=what):
        digest(tmp_path / name)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["a pipe", "a device", "a link that leads to no file"])
def test_a_model_that_is_no_file_is_refused_before_onnx_opens_it(what: str, tmp_path: Path) -> None:
    KINDS[what](tmp_path / "model.onnx")
    with (
        pytest.raises(EmoExportError, match=f"model.onnx.*{what}"),
        FAMILIES["onnx"].exact(tmp_path, None),
    ):
        pass


def test_files_and_other_names_are_left_alone(tmp_path: Path) -> None:
    check_plain(tmp_path, SMALL_FILES)
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "tokenizer.json").symlink_to("config.json")
    os.mkfifo(tmp_path / "other.json")
    check_plain(tmp_path, SMALL_FILES)
