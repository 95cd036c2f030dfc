"""Sensitivity of parts against a whole forward pass over a model with that part quantised."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from emo_export.budget.sensitivity import Formats, Sensitivity
from emo_export.budget.sites import (
    Candidates,
    Place,
    Site,
    bytes_of,
    groups,
    place_of,
    sites,
    slots_of,
)
from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.onnx.formats import NBITS_FORMATS
from emo_export.interfaces import F32, Format, InputStatistics
from emo_export.line import Line
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Slot, slots
from emo_export.model.product import Product
from emo_export.model.recipes import Part
from emo_export.pipeline import stream
from emo_export.reference.calibrate import Calibration
from emo_export.reference.passes import logits
from tests.kit.exporting import kl, run_calibration
from tests.kit.synth import CONFIGS, make_checkpoint

SEQUENCES = [np.random.default_rng(5).integers(0, 500, n) for n in (21, 3, 40)]
OTHERS = [np.random.default_rng(6).integers(0, 500, 50)]
TOGETHER = (Part.EXPERT, Part.EXPERT_DOWN)


def opened(folder: Path, name: str) -> Checkpoint:
    return Checkpoint.open(make_checkpoint(folder / name, **CONFIGS[name]))


def formats_of(site: Site, name: str) -> Formats:
    known = NBITS_FORMATS if name in NBITS_FORMATS else GGML_FORMATS
    return dict.fromkeys(site.places(), known[name])


def measured(
    checkpoint: Checkpoint, variants: list[Formats], calibration: Calibration | None = None
) -> list[float]:
    pass_ = Sensitivity(checkpoint.config, SEQUENCES, variants, calibration)
    stream([Line(Product.whole(checkpoint), listeners=[pass_])])
    return pass_.kls


def by_hand(
    checkpoint: Checkpoint, formats: Formats, told: dict[Slot, InputStatistics] | None = None
) -> float:
    """Mean KL of whole passes, in float64, with the matrices at the given places quantised."""
    product, config = Product.whole(checkpoint), checkpoint.config

    def rows(slot: Slot, start: int, stop: int) -> F32:
        found = product.rows(slot, start, stop)
        kind = formats.get(place_of(slot, config))
        if kind is None:
            return found
        inputs = (told or {}).get(slot)
        weights = None if inputs is None else inputs.diagonal
        return kind.dequantize(kind.quantize(found, weights))

    pairs = zip(
        logits(config, product.rows, SEQUENCES), logits(config, rows, SEQUENCES), strict=True
    )
    return float(np.concatenate([kl(original, changed) for original, changed in pairs]).mean())


@pytest.mark.parametrize("name", ["tied", "dense_first_bias", "two_shared"])
def test_each_part_alone_and_all_together(name: str, tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, name)
    found = sites(checkpoint.config, TOGETHER)
    variants = [formats_of(site, "int4b16") for site in found]
    variants += [formats_of(found[0], "int8b16"), formats_of(found[-1], "int4b32")]
    everything: dict[Place, Format] = {}
    for site in found:
        everything |= formats_of(site, "int4b32")
    kls = measured(checkpoint, [*variants, everything, {}])
    expected = [by_hand(checkpoint, each) for each in variants]
    assert kls[:-2] == pytest.approx(expected, rel=1e-3, abs=1e-9)
    assert kls[-2] == pytest.approx(by_hand(checkpoint, everything), rel=1e-3)
    assert kls[-1] == pytest.approx(0, abs=1e-9)
    assert min(expected) > 1e-7


def test_quantisers_hear_of_other_text(tmp_path: Path) -> None:
    checkpoint = opened(tmp_path, "gqa")
    config = checkpoint.config
    site = next(s for s in sites(config) if s.parts == (Part.EXPERT,) and s.first == 1)
    formats = formats_of(site, "q4_1")
    calibration = Calibration(config, OTHERS, "text")
    (found,) = measured(checkpoint, [formats], calibration)
    again = Calibration(config, OTHERS, "text")
    run_calibration(Product.whole(checkpoint), again)
    matrix = again.matrix
    told = {slot: InputStatistics(1, matrix.row(slot)) for slot in slots_of(site, config)}
    assert found == pytest.approx(by_hand(checkpoint, formats, told), rel=1e-3)
    assert found != pytest.approx(by_hand(checkpoint, formats), rel=1e-2)


def test_sites_take_every_quantised_matrix_once(tmp_path: Path) -> None:
    for name in ("two_shared", "dense_first", "tied", "always_active"):
        config = opened(tmp_path, name).config
        for together in ((), TOGETHER):
            taken = [slot for site in sites(config, together) for slot in slots_of(site, config)]
            fixed = (Part.ROUTER, Part.VECTOR)
            rest = [slot for slot in slots(config) if place_of(slot, config)[0] not in fixed]
            assert sorted(map(str, taken)) == sorted(map(str, rest))


def test_groups_of_layers() -> None:
    assert groups(3) == [(0, 0), (1, 1), (2, 2)]
    assert groups(16) == [(0, 3), (4, 11), (12, 15)]
    assert groups(5) == [(0, 0), (1, 3), (4, 4)]


def test_bytes_and_what_fits(tmp_path: Path) -> None:
    config, kind = opened(tmp_path, "mha").config, NBITS_FORMATS["int8b32"]
    experts = slots_of(Site(TOGETHER, 0, 0), config)
    assert len(experts) == 21  # of 8, one is shared
    each = 32 * 64 + 32 * 64 // 32 * 4
    assert bytes_of(experts, kind, config).stored == 21 * each
    assert bytes_of(experts, kind, config).read == pytest.approx(3 * 2 * each)
    head, embed = (slots_of(Site((part,), -1, -1), config) for part in (Part.HEAD, Part.EMBED))
    assert bytes_of(head, kind, config).read == bytes_of(head, kind, config).stored
    assert bytes_of(embed, kind, config).read * 512 == bytes_of(embed, kind, config).stored
    lines = [("int8b32", "int4b64"), ("int4b32", "int4b16"), ("f32",)]
    assert Candidates(lines, NBITS_FORMATS).fitting(experts, config) == ("int4b32", "int4b16")
    assert Candidates(lines[::2], NBITS_FORMATS).fitting(experts, config) == ("f32",)
    # 2 bits for routed experts alone, of a hidden size of 64 and a width of 32 for multiples of 64
    for least, more in ((64, ("int2b32",)), (128, ())):
        known = Candidates(lines, NBITS_FORMATS, routed={"int2b32": least})
        assert known.fitting(experts, config) == ("int4b32", "int4b16", *more)
        assert known.fitting(head, config) == ("int8b32", "int4b64")
