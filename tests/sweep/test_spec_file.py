"""SPEC.toml: what is not known, missing or of another type is refused by name, before any work."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.spec import Spec
from emo_export.sweep.cluster import Place
from emo_export.sweep.spec_file import read_spec
from emo_export.sweep.variants import variants_of
from tests.kit.command import Emo
from tests.kit.paths import NANO

GOOD = f"""
checkpoint = "{NANO}"
keep = [8, "50%", "all"]
methods = ["router", "reap"]
targets = ["gguf:q4_0", "onnx:int4"]
[domains.c]
calibration = ["{NANO}/calibration/c.jsonl"]
heldout = ["{NANO}/heldout/c.jsonl"]
[domains.man]
calibration = ["{NANO}/calibration/man.jsonl"]
heldout = ["{NANO}/heldout/man.jsonl"]
[options]
arch = "deepseek"
block_size = 32
tensor_type = ["head=int4"]
"""


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "spec.toml"
    path.write_text(text, "utf-8")
    return path


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("keep =", "kepe =", "unknown key 'kepe'"),
        ('methods = ["router", "reap"]', "methods = 3", "methods: expected a list, found 3"),
        ('"reap"', '"best"', "methods: expected some of router, easy-ep, reap, random"),
        ('"50%"', "true", "keep: expected 8"),
        ('"50%"', '"0%"', "keep: --keep 0%"),
        ('"50%"', "8", "keep: expected one or more, each of them once"),
        ('"50%"', "16, '50%'", "keep: 1/2 keeps as many experts as another one"),
        ('"50%"', "99", "nothing would be left out"),
        ('"onnx:int4"', '"onnx"', "targets: --to onnx: expected"),
        ('"onnx:int4"', '"onnx:int5"', "int5"),
        ('"onnx:int4"', '"gguf:Q4_0"', "targets: expected one or more, each of them once"),
        ("block_size = 32", "block_size = 31", "options: block_size: expected one of 32, 64, 128"),
        ("block_size = 32", "blocksize = 32", "options: unknown key 'blocksize'"),
        ("block_size = 32", "seed = -1", "options: seed: expected at least 0"),
        ("block_size = 32", "seed = true", "options: seed: expected a whole number"),
        ('["head=int4"]', "[4]", "tensor_type: expected a list of texts"),
        ('["head=int4"]', '["head=int5"]', "head=int5"),
        (f'heldout = ["{NANO}/heldout/c.jsonl"]', "", "domains.c: heldout is missing"),
        ("calibration/c.jsonl", "calibration/no.jsonl", "calibration/no.jsonl"),
        ("heldout/c.jsonl", "model.safetensors", "model.safetensors"),
        ("heldout/c.jsonl", "calibration", "is in calibration and in heldout"),
        ("[domains.c]", '[domains."c d"]', "domains.c d: it names folders"),
        (str(NANO) + '"\nkeep', 'nowhere"\nkeep', "checkpoint: there is no folder"),
        ("keep =", "keep", "is not TOML"),
        ("keep =", f"a{'.a' * 20000} =", "has more than 256 dots"),  # 1.6 GB in tomllib
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, old: str, new: str, said: str) -> None:
    assert old in GOOD
    with pytest.raises(EmoExportError) as error:
        read = read_spec(write(tmp_path, GOOD.replace(old, new, 1)))
        variants_of(read, Checkpoint.open(read.checkpoint))
    assert said in str(error.value)


def test_variants_are_the_product(tmp_path: Path) -> None:
    read = read_spec(write(tmp_path, GOOD))
    made = variants_of(read, Checkpoint.open(read.checkpoint))
    names = [one.label.name for one in made]
    assert len(set(names)) == len(names) == 2 * (2 * 2 + 1) * 2
    assert {"c-8-reap-gguf-q4_0", "man-50pct-router-onnx-int4", "man-all-gguf-q4_0"} <= {*names}
    for one in made:
        gguf = Spec.parse(one.label.target).family == "gguf"
        assert one.options.targets.arch == ("deepseek" if gguf else None)
        assert one.options.targets.block_size == (None if gguf else 32)
        assert one.options.targets.tensor_types == (() if gguf else ("head=int4",))
        assert set(one.domains.values()) == {one.label.domain}


def test_all_domains_judge_a_variant_if_asked(tmp_path: Path) -> None:
    text = GOOD.replace("methods", 'judge = "all"\nmethods', 1)
    read = read_spec(write(tmp_path, text))
    made = variants_of(read, Checkpoint.open(read.checkpoint))
    assert all(dict(one.domains) == {"c": "c", "man": "man"} for one in made)
    assert {one.options.heldout_tokens for one in made} == {2 * 4096}
    twice = text.replace("heldout/man.jsonl", "heldout/c.jsonl")
    with pytest.raises(EmoExportError, match="none of them twice"):
        variants_of(read_spec(write(tmp_path, twice)), Checkpoint.open(read.checkpoint))


def test_places(tmp_path: Path, emo: Emo) -> None:
    assert Place.parse("local", None) == Place(None, 1)
    assert Place.parse("dask://a.b:8786", None) == Place("tcp://a.b:8786", 0)
    for text in ("ray://a:1", "dask://a", "dask://a:b", "here", "dask://a b:1"):
        done = emo("sweep", write(tmp_path, GOOD), "-o", tmp_path / "out", "--on", text)
        assert done.code == 2 and f"--on {text}: " in done.err
    done = emo("sweep", write(tmp_path, GOOD), "-o", "x", "--on", "dask://a:1", "--workers", 2)
    assert done.code == 2 and "--workers is for --on local" in done.err
    assert [path.name for path in tmp_path.iterdir()] == ["spec.toml"]
