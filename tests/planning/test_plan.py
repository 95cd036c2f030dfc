"""What a plan says from headers, held against files that are really written and really run."""

from __future__ import annotations

import json
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from emo_export.base.child_process import child_environment
from emo_export.base.disk import size_of
from emo_export.errors import EmoExportError
from emo_export.families import target_maker
from emo_export.families.options import TargetOptions
from emo_export.line import Line, Output
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.pipeline import stream
from emo_export.planning.choice import choose
from emo_export.planning.keeping import kept_counts
from emo_export.planning.outline import Planned
from emo_export.planning.plan import Plan, make_plan
from emo_export.planning.profiles import device_profile, device_profiles
from emo_export.planning.source import open_source
from emo_export.runtimes.devices.memory.trial import try_memory
from emo_export.runtimes.families import LIGHT, family_at
from emo_export.spec import Spec
from tests.kit.exporting import exported
from tests.kit.paths import GOLDEN, NANO

TARGETS = ("gguf:q4_0", "gguf:q4_k_m", "onnx:int4", "onnx:int4@if")


def plan_of(path: Path, specs: tuple[str, ...], *keeps: str, context: int | None = None) -> Plan:
    checkpoint, nbytes = open_source(path)
    return make_plan(checkpoint, nbytes, specs, keeps, context)


def written(product: Product, specs: tuple[str, ...], folder: Path) -> dict[str, Path]:
    """The targets of a product, through the real pipeline."""
    targets = target_maker([Spec.parse(spec) for spec in specs], product, TargetOptions())(folder)
    for target in targets:
        target.writer.open()
    stream([Line(product, [Output(target.writer) for target in targets])])
    for target in targets:
        target.writer.close()
    return {str(target.entry.spec): folder / target.entry.path for target in targets}


def test_bytes_are_those_of_the_written_files(tmp_path: Path) -> None:
    """Other experts than the planned ones, in another number of routed ones for each layer."""
    source = Checkpoint.open(GOLDEN / "base")
    product = Product.keeping(
        source, [[1, 4, 9, 12, 13, 15], [0, 2, 3, 5, 8, 15], [*range(10, 16)]]
    )
    paths = written(product, TARGETS, tmp_path)
    planned = plan_of(GOLDEN / "base", TARGETS, "6").planned
    assert {str(p.spec): p.nbytes for p in planned} == {s: size_of(p) for s, p in paths.items()}
    assert [p.need for p in planned] == [
        LIGHT[p.spec.family].need(paths[str(p.spec)]) for p in planned
    ]


def test_bytes_of_a_model_that_needs_zeros_in_its_stacks(tmp_path: Path) -> None:
    """A dense first layer, in llama.cpp's glm4moe graph: rows that no slot fills are counted."""
    path = GOLDEN / "densefirst"
    (found,) = written(Product.whole(Checkpoint.open(path)), ("gguf:q8_0",), tmp_path).values()
    (planned,) = plan_of(path, ("gguf:q8_0",), "all").planned
    assert planned.nbytes == size_of(found)


def test_nothing_is_left_and_no_weight_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The config and the tokenizer alone give the same plan, but for what the checkpoint holds."""
    small = tmp_path / "small"
    small.mkdir()
    for name in (
        "config.json",
        "tokenizer.json",
        "tokenizer_config.json",
        "generation_config.json",
    ):
        shutil.copyfile(GOLDEN / "base" / name, small / name)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "holes"))
    (tmp_path / "holes").mkdir()
    # The name of the folder is in a GGUF header, so both have one of as many letters.
    whole = Path(shutil.copytree(GOLDEN / "base", tmp_path / "whole"))
    found, expected = (plan_of(path, TARGETS, "1/2") for path in (small, whole))
    assert found.planned == expected.planned
    assert found.source_bytes is None and expected.source_bytes == Checkpoint.open(whole).nbytes
    assert not list((tmp_path / "holes").iterdir())


def test_bytes_of_a_checkpoint_in_shards_without_them(tmp_path: Path) -> None:
    shutil.copyfile(GOLDEN / "base" / "config.json", tmp_path / "config.json")
    index = {"metadata": {"total_size": 1234}, "weight_map": {}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    assert open_source(tmp_path)[1] == 1234


def test_counts_are_those_of_export() -> None:
    """Equal ones are planned once, and of the defaults those that the model can have."""
    config = Checkpoint.open(GOLDEN / "densefirst").config
    asked = ["25%", "all", "1/4", "4", "8"]
    assert kept_counts(asked, config) == [(0, 16, 16), (0, 8, 8), (0, 4, 4)]
    assert kept_counts([], config) == [(0, k, k) for k in (16, 8, 4, 2)]
    few = replace(config.layers[1], num_experts=4, num_experts_per_tok=2)
    assert kept_counts([], replace(config, layers=(few,))) == [(4,), (2,), (1,)]
    dense = replace(config, layers=config.layers[:1])
    assert kept_counts([], dense) == [(0,)]
    for wrong in ("0", "17", "1/0", "half", ""):
        with pytest.raises(EmoExportError, match="--keep"):
            kept_counts([wrong], config)


def test_a_target_that_cannot_be_made_says_why_and_others_are_planned() -> None:
    plan = plan_of(NANO, ("gguf:nothing", "gguf:iq2_xxs", "gguf:q4_0"), "8")
    wrong, calibrated, plain = plan.kept[0].targets
    assert "not a known type" in getattr(wrong, "reason", "")
    assert isinstance(calibrated, Planned) and isinstance(plain, Planned)
    assert calibrated.calibrated and not plain.calibrated


def test_the_choice_has_the_most_experts_and_then_the_most_bytes() -> None:
    planned = plan_of(NANO, ("gguf:q8_0", "gguf:q4_0"), "all", "16").planned
    need = {(p.experts, p.spec.type): p.running.total for p in planned}
    for limit in (10**9, *need.values(), min(need.values()) - 1):
        fits = {key for key, total in need.items() if total <= limit}
        expected = max(fits, key=lambda key: (key[0], key[1] == "q8_0"), default=None)
        choice = choose(planned, limit)
        best = choice.best and (choice.best.experts, choice.best.spec.type)
        assert best == expected
        assert choice.short_by == (0 if fits else 1)


def test_profiles_name_the_source_of_every_figure() -> None:
    for profile in device_profiles().values():
        assert profile.usable < profile.ram and 0 < profile.bandwidth[0] <= profile.bandwidth[1]
        assert set(profile.sources) == {"ram", "usable", "bandwidth"} and all(
            profile.sources.values()
        )
    with pytest.raises(EmoExportError, match="pi5-8gb"):
        device_profile("pi9")


@pytest.mark.parametrize("spec", ["gguf:q4_0", "onnx:int4"])
def test_memory_is_what_a_run_takes(spec: str) -> None:
    """But for libraries, of which a run that shares them with others is told a share alone."""
    path = exported(NANO, spec)
    fit, _ = try_memory(
        Spec.parse(spec),
        path,
        family_at(path).need(path, 512),
        2 << 30,
        lambda line: [sys.executable, *line],
        child_environment(),
    )
    (planned,) = plan_of(NANO, (spec,), "all", context=512).planned
    found = planned.running
    assert fit.measured
    assert found.total - found.libraries == pytest.approx(fit.total - fit.libraries, rel=0.1)
