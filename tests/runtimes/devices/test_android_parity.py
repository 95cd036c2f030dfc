"""Under emulation: a phone over adb judges a package with what was sent there, as arm64 code."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.files.manifest import Manifest
from emo_export.runtimes.devices.adb.android import open_adb
from emo_export.runtimes.devices.profiles import PROFILES
from emo_export.runtimes.devices.request import Request, Share
from tests.kit.device_runs import judged_on
from tests.kit.emulated import emulated
from tests.kit.packages import SMALL_TARGETS, package
from tests.kit.phones import plug_in

pytestmark = pytest.mark.device
SHARE = Share(sequences=1, positions=8, heldout_tokens=32, greedy_steps=2)


def test_judges_both_formats_on_a_phone(
    tmp_path: Path, golden: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = plug_in(tmp_path / "phone", monkeypatch)
    made = emulated()
    phone.tell("qemu", f"{made.qemu} -cpu {PROFILES['phone'].cpu}")
    folder = package(golden / "base", SMALL_TARGETS)
    targets = Manifest.load(folder).targets
    device = open_adb("adb", lambda: made, lambda text: None)
    asked = Request(share=SHARE)
    reports = judged_on(device, folder, targets, asked)
    device.close()
    assert [report.passed for report in reports] == [True, True]
    for report in reports:
        assert (report.kind, report.machine["architecture"]) == ("adb", "aarch64")
        assert report.machine["phone"] == "Pixel 9"
        assert {"i8mm", "sve2"} <= set(report.machine["CPU features"].split())
    assert phone.left() == ["package", "python"]
    # A second time nothing but our runtime goes there.
    (phone.folder / "log").unlink()
    again = open_adb("adb:R5CX", lambda: made, lambda text: None)
    again.place(folder, targets)
    again.close()
    assert phone.pushed() == ["runtime.zip"]
