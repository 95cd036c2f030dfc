"""`export --domain`: several packages in one pass, each what an export of its own makes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import onnx
import pytest

from emo_export.files.manifest import Manifest
from emo_export.files.verifying import verify
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


@pytest.mark.slow
@pytest.mark.parametrize("rounding", ["weighted", "gptq"])
def test_one_pass_makes_what_an_export_of_each_makes(
    rounding: str, tmp_path: Path, texts: dict[str, Path], emo: Emo
) -> None:
    domains = [word for name, path in texts.items() for word in ("--domain", f"{name}={path}")]
    short = ("--heldout", texts["prose"], "--heldout-tokens", 64, "--rounding", rounding)
    out = tmp_path / "out"
    made = emo("export", BASE, "-o", out, *TARGETS, *domains, "--no-validate", *short)
    assert made.code == 0, made.err
    assert made.err.count("reading ") == 1
    kept = []
    for name, text in texts.items():
        alone = tmp_path / name
        args = ("--calibration", text, "--no-validate", *short)
        assert emo("export", BASE, "-o", alone, *TARGETS, *args).code == 0
        same_weights(out / name, alone)
        assert verify(out / name) == []
        found, want = (Golden.load(folder / "golden.npz") for folder in (out / name, alone))
        assert found.variants.keys() == want.variants.keys()
        for variant, values in want.variants.items():
            np.testing.assert_array_equal(found.variants[variant].logits, values.logits)
        kept.append(Manifest.load(out / name).kept)
    assert kept[0] != kept[1]

    prompt = ("-p", "def", "-n", 4, "--temperature", 0)
    picked = emo("run", out, "--domain", "prose", *prompt)
    assert picked.code == 0 and picked.out == emo("run", tmp_path / "prose", *prompt).out
    assert emo("verify", out).code == 0
    for command in (("validate", out), ("run", out, *prompt)):
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


def test_a_shared_trunk_is_stored_once_and_changes_no_engine(
    tmp_path: Path, texts: dict[str, Path], emo: Emo
) -> None:
    domains = [word for name, path in texts.items() for word in ("--domain", f"{name}={path}")]
    out, apart = tmp_path / "out", tmp_path / "apart"
    short = ("--heldout", texts["prose"], "--heldout-tokens", 64, "--json")
    short = (*short, "--rounding", "weighted")
    made = emo("export", BASE, "-o", out, *TARGETS, *domains, "--share-trunk", *short)
    assert made.code in NOT_FAILED, made.err
    told = json.loads(made.out)["domains"]
    assert list(told) == list(texts)
    for one in told.values():
        assert {each["target"] for each in one["targets"]} == {"gguf:iq4_nl", "onnx:int4"}
    assert "stored once for all domains" in made.err
    plain = ("--no-golden", *domains, "--rounding", "weighted")
    assert emo("export", BASE, "-o", apart, *TARGETS, *plain).code == 0
    for target, entry in Manifest.load(out / "code").targets.items():
        trunk = entry.trunk
        assert trunk is not None
        inodes = {(out / name / trunk).stat().st_ino for name in texts}
        assert len(inodes) == 1, trunk
        for name in texts:
            shared, alone = (found_weights(folder / name, target) for folder in (out, apart))
            assert shared.keys() == alone.keys()
            # What the importance of one text rounds otherwise than that of both is in the trunk.
            differ = {key for key in shared if not np.array_equal(shared[key], alone[key])}
            assert not any("exp" in key and "shexp" not in key for key in differ), differ
            assert len(differ) < len(shared)
    for name in texts:
        assert verify(out / name) == []
    told = json.loads(emo("inspect", out, "--json").out)["facts"]
    trunks = [out / "code" / str(e.trunk) for e in Manifest.load(out / "code").targets.values()]
    saved = (len(texts) - 1) * sum(trunk.stat().st_size for trunk in trunks)
    assert told["disk"]["saved_bytes"] == saved and list(told) == [*texts, "disk"]

    links = out / "code" / "model-IQ4_NL-00002-of-00002.gguf"
    links.write_bytes(links.read_bytes()[:-1] + b"x")
    damaged = emo("validate", out / "prose", "--target", "gguf:iq4_nl")
    assert damaged.code == 1 and "00002-of-00002" in damaged.err, damaged.err
    links.unlink()
    gone = emo("run", out, "--domain", "code", "--target", "gguf:iq4_nl", "-p", "x")
    assert (
        gone.code == 2 and "there is no file" in gone.err and "00002-of-00002.gguf" in gone.err
    ), gone.err


def found_weights(folder: Path, target: str) -> dict[str, Any]:
    """Bytes of every tensor of a target, as gguf-py and onnx read them."""
    place = folder / Manifest.load(folder).targets[target].path
    if place.is_dir():
        # With its data it would be refused: onnx takes a file of several names for an attack.
        graph = onnx.load(place / "model.onnx", load_external_data=False).graph
        outside = [{e.key: e.value for e in one.external_data} for one in graph.initializer]
        return {
            one.name: np.fromfile(
                place / at["location"], np.uint8, int(at["length"]), offset=int(at["offset"])
            )
            for one, at in zip(graph.initializer, outside, strict=True)
            if at
        }
    parts = [place, place.with_name(place.name.replace("00001-of", "00002-of"))]
    readers = [gguf.GGUFReader(part) for part in dict.fromkeys(parts)]
    return {tensor.name: tensor.data for reader in readers for tensor in reader.tensors}
