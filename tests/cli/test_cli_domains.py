"""`export --domain`: several packages in one pass, each what an export of its own makes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from emo_export.files.manifest import Manifest, verify
from emo_export.parity.golden import Golden
from tests.cli.test_cli_keep import same_weights
from tests.kit.command import NOT_FAILED, Emo
from tests.kit.paths import GOLDEN

BASE = GOLDEN / "base"
TEXTS = {
    "code": "def mean(values):\n    return sum(values) / len(values)\n",
    "prose": "In the morning the harbour was quiet, and a dog slept beside the nets. ",
}
TARGETS = ("--to", "gguf:iq4_nl", "--to", "onnx:int4", "--keep", 6)


@pytest.fixture
def texts(tmp_path: Path) -> dict[str, Path]:
    paths = {name: tmp_path / f"{name}.txt" for name in TEXTS}
    for name, path in paths.items():
        path.write_text(TEXTS[name] * 8, "utf-8")
    return paths


def test_one_pass_makes_what_an_export_of_each_makes(
    tmp_path: Path, texts: dict[str, Path], emo: Emo
) -> None:
    domains = [word for name, path in texts.items() for word in ("--domain", f"{name}={path}")]
    out = tmp_path / "out"
    made = emo("export", BASE, "-o", out, *TARGETS, *domains, "--json")
    assert made.code in NOT_FAILED, made.err
    told = json.loads(made.out)["domains"]
    assert list(told) == list(texts)
    assert made.err.count("reading ") == 1
    kept = []
    for name, text in texts.items():
        alone = tmp_path / name
        args = ("--calibration", text, "--no-validate")
        assert emo("export", BASE, "-o", alone, *TARGETS, *args).code == 0
        same_weights(out / name, alone)
        assert verify(out / name) == []
        found, want = (Golden.load(folder / "golden.npz") for folder in (out / name, alone))
        assert found.variants.keys() == want.variants.keys()
        for variant, values in want.variants.items():
            np.testing.assert_array_equal(found.variants[variant].logits, values.logits)
        assert {one["target"] for one in told[name]["targets"]} == {"gguf:iq4_nl", "onnx:int4"}
        kept.append(Manifest.load(out / name).kept)
    assert kept[0] != kept[1]

    prompt = ("-p", "def", "-n", 4, "--temperature", 0)
    runs = [emo("run", out, "--domain", name, *prompt) for name in texts]
    alone_runs = [emo("run", tmp_path / name, *prompt) for name in texts]
    assert [one.out for one in runs] == [one.out for one in alone_runs]
    for command in (("validate", out), ("run", out, *prompt), ("verify", out)):
        untold = emo(*command)
        assert untold.code == 2 and "domains code, prose" in untold.err, untold.err
    wrong = emo("run", out, "--domain", "law", *prompt)
    assert wrong.code == 2 and "it has code, prose" in wrong.err
    wrong = emo("run", out / "code", "--domain", "code", *prompt)
    assert wrong.code == 2 and "has no domains.json" in wrong.err


def test_a_folder_of_domains_is_replaced_whole(
    tmp_path: Path, texts: dict[str, Path], emo: Emo
) -> None:
    out, plain = tmp_path / "out", ("--to", "onnx:f32", "--keep", 6, "--no-golden")
    first = emo("export", BASE, "-o", out, *plain, "--domain", f"a={texts['code']}")
    assert first.code == 0, first.err
    again = ("export", BASE, "-o", out, *plain, "--domain", f"b={texts['prose']}")
    refused = emo(*again)
    assert refused.code == 2 and "--overwrite" in refused.err and (out / "a").is_dir()
    assert emo(*again, "--overwrite").code == 0
    assert sorted(path.name for path in out.iterdir()) == ["b", "domains.json"]


def test_what_makes_no_sense_is_refused(tmp_path: Path, texts: dict[str, Path], emo: Emo) -> None:
    base = ("export", BASE, "-o", tmp_path / "x", "--to", "onnx:f32")
    text, keep = texts["code"], ("--keep", 6)
    for args, said in (
        (("--domain", f"a={text}"), "--domain needs --keep"),
        ((*keep, "--domain", f"a={text}", "--calibration", text), "leave out --calibration"),
        ((*keep, "--domain", text), "expected NAME=PLACE"),
        ((*keep, "--domain", "a=nowhere"), "no file or folder nowhere"),
        ((*keep, "--domain", f"../a={text}"), "it names a folder"),
        ((*keep, "--domain", f"a={text}", "--domain", f"A={text}"), "differ in case alone"),
    ):
        done = emo(*base, *args)
        assert done.code == 2 and said in done.err, done.err
        assert not (tmp_path / "x").exists()
