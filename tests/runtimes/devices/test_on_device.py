"""The far side of a validation, in a process as on a device, and what the near side makes of it."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result
from emo_export.report.sentences import faults
from emo_export.runtimes.devices.device import Device, Finished
from emo_export.runtimes.devices.far.machine import arm64_features, machine_facts
from emo_export.runtimes.devices.request import VERSION, Request, Share, parse
from emo_export.spec import Spec
from tests.kit.device_runs import judged_on
from tests.kit.packages import SMALL_TARGETS, package

TARGETS = {spec: {} for spec in SMALL_TARGETS}


class Process:
    """A Device: this machine, in a process that sees numpy, the engine and our sources only."""

    name, kind, profile = "here", "here", ""

    def __init__(self, answer: Finished | None = None) -> None:
        self.answer, self.closed = answer, False

    def place(self, folder: Path, targets: Mapping[str, Mapping[str, Any]]) -> str:
        return str(folder)

    def run(self, arguments: Sequence[str]) -> Finished:
        if self.answer is not None:
            return self.answer
        command = [sys.executable, "-m", "emo_export.runtimes.devices.far.on_device", *arguments]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        return Finished(done.returncode, done.stdout, done.stderr)

    def facts(self) -> Mapping[str, str]:
        return {"near": "side"}

    def memory(self) -> Mapping[str, Any] | None:
        return None

    def command(self, arguments: Sequence[str]) -> str:
        return " ".join(arguments)

    def close(self) -> None:
        self.closed = True


PROCESS: Device = Process()  # mypy would check the protocol here


@pytest.fixture(scope="session")
def exported(golden: Path) -> Path:
    return package(golden / "base", SMALL_TARGETS)


def judged(folder: Path, device: Device, request: Request | None = None) -> list[Result]:
    return judged_on(device, folder, TARGETS, request)


@pytest.mark.slow
def test_a_run_on_a_device_says_what_export_measured(exported: Path) -> None:
    stored = json.loads((exported / "parity.json").read_text())["targets"]
    reports = judged(exported, Process())
    assert all(report.passed for report in reports)
    for found, expected in zip(reports, stored, strict=True):
        assert found.target == expected["target"]
        rows = {(r["against"], r["arithmetic"], r["mode"]): r for r in expected["rows"]}
        for row in found.rows:
            same = rows[row.against, row.arithmetic, row.mode]["measured"]
            assert row.measured.kl_mean == pytest.approx(same["kl_mean"], rel=1e-6, abs=1e-15)
        assert found.machine["near"] == "side" and found.machine["python"]


@pytest.mark.slow
def test_a_share_of_the_tokens_is_judged_like_the_whole(exported: Path) -> None:
    share = Share(sequences=1, positions=5, heldout_tokens=8, greedy_steps=3)
    whole = Golden.load(exported / "golden.npz")
    part = share.of(whole)
    part.check()
    np.testing.assert_array_equal(part.input_ids, whole.input_ids[:1, :5])
    assert part.greedy.tolist() == whole.greedy[:3].tolist()
    assert 8 <= (part.heldout_ids[:, 1:] >= 0).sum() < 16
    for report in judged(exported, Process(), Request(share=share)):
        assert report.passed
        assert report.rows[0].measured.positions == 5
        assert report.greedy_steps == 3


@pytest.mark.slow
def test_nothing_of_a_share_is_beyond_the_whole(exported: Path) -> None:
    whole = Golden.load(exported / "golden.npz")
    part = Share(sequences=99, positions=999, heldout_tokens=10**6, greedy_steps=99).of(whole)
    np.testing.assert_array_equal(part.input_ids, whole.input_ids)
    np.testing.assert_array_equal(part.heldout_ids, whole.heldout_ids)


@pytest.mark.parametrize(
    ("target", "request_"),
    [
        ("gguf:q4_0", Request()),
        ("onnx:int4@if", Request("pi4", 2, 128, Share(1, 2, 3, 4), True)),
        ("gguf:q8_0", Request(kv_cache="q8_0")),
    ],
)
def test_a_request_is_read_as_it_was_written(target: str, request_: Request) -> None:
    written = request_.arguments("a b", Spec.parse(target))
    assert parse(written) == (Path("a b"), target, request_)


def test_what_the_far_side_refuses_is_the_near_sides_error(exported: Path, tmp_path: Path) -> None:
    with pytest.raises(EmoExportError, match=r"here: .*: there is no such file or folder"):
        judged(tmp_path / "absent", Process())
    with pytest.raises(EmoExportError, match=r"context is 999999"):
        judged(exported, Process(), Request(context=999999))


def test_a_missing_engine_there_is_exit_3(exported: Path) -> None:
    refused = {"version": 2, "target": "x", "error": "needs xllamacpp", "exit_code": 3}
    with pytest.raises(MissingDependencyError, match=r"^here: needs xllamacpp$"):
        judged(exported, Process(Finished(3, json.dumps(refused), "")))


@pytest.mark.parametrize(
    ("finished", "sentence"),
    [
        (Finished(-4, "", ""), r"SIGILL: .*instruction that this CPU does not have"),
        (Finished(132, "noise\n", ""), r"SIGILL"),
        (Finished(137, "", ""), r"SIGKILL: .*memory runs out"),
        (Finished(-6, "", "a\nb: assertion"), r"SIGABRT: .*b: assertion"),
    ],
)
def test_a_crash_fails_with_a_sentence(exported: Path, finished: Finished, sentence: str) -> None:
    for report in judged(exported, Process(finished)):
        assert not report.rows and not report.passed
        assert re.search(sentence, faults(report)[0])
        json.dumps(report.as_dict())


def answer(target: str) -> str:
    return json.dumps({"version": VERSION, "target": target, "result": {}})


@pytest.mark.parametrize(
    ("finished", "message"),
    [
        (Finished(1, "", "Traceback\nImportError: numpy"), "code 1 and no answer: .*numpy"),
        (Finished(0, '{"version": 7}', ""), "another version"),
        (Finished(0, "[]", ""), "expected an object"),
        (Finished(0, answer("gguf:q2_k"), ""), "answered for"),
        (Finished(0, answer("gguf:f32"), ""), "answer of here"),
    ],
)
def test_an_answer_that_is_none_is_refused(
    exported: Path, finished: Finished, message: str
) -> None:
    with pytest.raises(EmoExportError, match=message):
        judged(exported, Process(finished))


def test_the_far_side_imports_nothing_of_the_command_line(exported: Path) -> None:
    code = (
        "import sys; from emo_export.runtimes.devices.far.on_device import main\n"
        "code = main(sys.argv[1:]); print(*sys.modules, file=sys.stderr); sys.exit(code)"
    )
    for spec in SMALL_TARGETS:
        command = [sys.executable, "-c", code, str(exported), spec]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=os.environ)
        assert {"click", "rich", "torch", "onnx", "gguf"}.isdisjoint(done.stderr.split())


def test_the_bits_of_hwcap_have_linuxs_names() -> None:
    # What a Raspberry Pi 4 and a Neoverse V1 say (qemu's models; uapi/asm/hwcap.h).
    assert arm64_features(0b10001011, 0) == ["fp", "asimd", "aes", "crc32"]
    assert arm64_features(1 << 20 | 1 << 22, 1 << 13 | 1 << 14) == [
        "asimddp",
        "sve",
        "i8mm",
        "bf16",
    ]


def test_machine_facts_read_odd_files(tmp_path: Path) -> None:
    (tmp_path / "cpuinfo").write_bytes(b"no colon\n\xff: \xff\nmodel name : A : B\n")
    assert machine_facts(tmp_path / "cpuinfo")["CPU"] == "A : B"
    assert machine_facts(tmp_path / "absent")["CPU"] == "unknown"
