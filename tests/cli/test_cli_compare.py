"""`compare`, and the pictures of `bench`."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.kit.command import Emo
from tests.kit.packages import quantised_package


@pytest.mark.slow
def test_compare_with_and_without_speed(emo: Emo, tmp_path: Path) -> None:
    package, page, picture = quantised_package(), tmp_path / "c.html", tmp_path / "c.svg"
    bench = tmp_path / "bench.html"
    short = ("--prefill", 16, "--decode", 4, "--depth", 4, "--rounds", 2)
    done = emo("bench", package, *short, "--json", "--html", bench)
    assert done.code == 0 and f"wrote {bench}" in done.err and "<svg" in bench.read_text("utf-8")
    speed = tmp_path / "bench.json"
    speed.write_text(done.out, "utf-8")
    done = emo("compare", package, "--speed", speed, "-o", page, "--json")
    assert done.code == 0 and done.err == f"wrote {page}\n"
    found = json.loads(done.out)
    assert found["positions"] == 6.5
    parity = json.loads((package / "parity.json").read_text("utf-8"))["targets"]
    for row, judged, model in zip(
        found["targets"], parity, json.loads(speed.read_text("utf-8"))["models"], strict=True
    ):
        (original,) = [one for one in judged["rows"] if one["against"] == "original"]
        assert row["target"] == judged["target"] == model["target"]
        assert row["kl"] == original["measured"]["kl_mean"]
        assert row["speed"] == model["figures"]["decode"]
        assert row["read"] == model["figures"]["bytes_per_token"]
    assert page.read_text("utf-8").count("<figure>") == 2
    done = emo("compare", package, "--target", "gguf:q4_0", "-o", picture)
    assert done.code == 0 and "gguf:q4_0" in done.out and "onnx:int4" not in done.out
    assert picture.read_text("utf-8").lstrip().startswith("<svg xmlns")
    other = json.loads(speed.read_text("utf-8"))
    other["models"][0]["bytes"] += 1
    speed.write_text(json.dumps(other), "utf-8")
    done = emo("compare", package, "--speed", speed)
    assert done.code == 2 and "measure it again" in done.err


def test_compare_refuses(emo: Emo, tmp_path: Path) -> None:
    (tmp_path / "bench.json").write_text('{"models": []}', "utf-8")
    for arguments, says in {
        (tmp_path,): "has no manifest.json; give folders that emo-export export made",
        (tmp_path, tmp_path): "a package was given twice",
        (tmp_path, "-o", tmp_path / "x.png"): "name it .html (with the table) or .svg",
        (tmp_path, "-o", tmp_path / "no" / "x.svg"): "make it first",
        (tmp_path, "--bench", "--speed", "x"): "give one of them",
    }.items():
        done = emo("compare", *arguments)
        assert done.code == 2 and says in done.err, done


@pytest.mark.slow
def test_compare_refuses_another_file_as_speed(emo: Emo, tmp_path: Path) -> None:
    package = quantised_package()
    for content, says in (
        ('{"models": []}', "is not what bench --json prints"),
        (
            '{"settings": {"prefill": 1, "decode": 1, "depth": 1, "rounds": 1, "threads": 1}, '
            '"models": []}',
            "has none of these targets",
        ),
    ):
        (tmp_path / "x.json").write_text(content, "utf-8")
        done = emo("compare", package, "--speed", tmp_path / "x.json")
        assert done.code == 2 and says in done.err
    copy = shutil.copytree(package, tmp_path / "copy")
    (copy / "parity.json").unlink()
    done = emo("compare", copy)
    assert done.code == 0 and "not judged" in done.out and "emo-export validate" in done.out
