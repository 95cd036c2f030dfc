"""`device clean DEVICE` on the command line: what is removed there, and what is refused."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from emo_export.runtimes.devices.adb.android import PYTHON
from tests.kit.command import Emo
from tests.kit.phones import plug_in


def test_a_phone_is_cleaned_and_told_how_much_that_was(
    emo: Emo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(PYTHON, sys.executable)
    phone = plug_in(tmp_path / "phone", monkeypatch)
    kept = phone.tmp / "emo-export" / "package-0123"
    kept.mkdir(parents=True)
    (kept / "model.gguf").write_bytes(b"x" * 2_500_000)
    done = emo("device", "clean", "adb:R5CX")
    assert done.code == 0
    removed, size = done.out.splitlines()
    assert removed == "removed /data/local/tmp/emo-export"
    assert size.startswith("adb:R5CX: 2.5 MB removed")
    assert phone.left() == [] and phone.tmp.is_dir()
    assert emo("device", "clean", "adb").out == "adb: nothing to remove\n"


@pytest.mark.parametrize(
    ("device", "said"),
    [
        ("pi4", "nothing is kept for it alone"),
        ("here", "nothing is kept for it alone"),
        ("pi9", "expected pi4, pi5"),
        ("adb:", "expected adb or adb:SERIAL"),
        ("ssh://-oProxyCommand=touch", "is not a name"),
        ("adb:-s", "no phone -s"),
    ],
)
def test_a_device_that_keeps_nothing_is_refused(
    emo: Emo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, device: str, said: str
) -> None:
    plug_in(tmp_path / "phone", monkeypatch)
    done = emo("device", "clean", device)
    assert done.code == 2 and said in done.err and not done.out
