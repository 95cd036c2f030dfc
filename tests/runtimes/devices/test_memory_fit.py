from __future__ import annotations

import json
import os
import struct
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from emo_export.base.process_memory import Held
from emo_export.base.ram_size import parse_size, shown
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import read_gguf
from emo_export.files.memory_need import Need
from emo_export.files.onnx_header import read_onnx
from emo_export.parity.result import Result
from emo_export.report.sentences import faults
from emo_export.runtimes.devices.memory.cap import MemoryFound
from emo_export.runtimes.devices.memory.fit import Fit, least_fit, measured_fit, too_little
from emo_export.runtimes.devices.memory.trial import try_memory
from emo_export.runtimes.families import family_at
from emo_export.runtimes.llama.model import REPACKED, LlamaCpp
from emo_export.spec import Spec
from tests.kit.exporting import exported
from tests.kit.paths import NANO, ROOT

MB = 1_000_000


def tensor_bytes(path: Path) -> int:
    if path.is_dir():
        return sum(tensor.nbytes for tensor in read_onnx(path / "model.onnx").initializers)
    return sum(tensor.nbytes for tensor in read_gguf(path).tensors)


def need_of(path: Path, context: int | None = None) -> Need:
    return family_at(path).need(path, context)


def sizes_of(target: str, path: Path) -> dict[str, int]:
    found = family_at(path).other_sizes(path, Spec.parse(target))
    return {str(spec): nbytes for spec, nbytes in found.items()}


@pytest.mark.parametrize("start", ["gguf:q8_0", "gguf:q3_k_m"])
def test_sizes_of_other_gguf_types(start: str) -> None:
    sizes = sizes_of(start, exported(NANO, start))
    for spec in ("gguf:f32", "gguf:q8_0", "gguf:q4_0", "gguf:q3_k_m"):
        assert sizes[spec] == tensor_bytes(exported(NANO, spec)), spec


def test_sizes_where_a_row_fits_no_block(small_exports: dict[str, Path]) -> None:
    """Rows of other widths than 256 take the next better type."""
    sizes = sizes_of("gguf:f32", small_exports["gguf:f32"])
    assert sizes["gguf:q4_0"] == tensor_bytes(small_exports["gguf:q4_0"])


@pytest.mark.parametrize("graph", ["", pytest.param("@if", marks=pytest.mark.slow), "@standard"])
def test_sizes_of_other_onnx_types(graph: str) -> None:
    types = ["f32", "int8", "int4", "int2"][: {"": 4, "@if": 3, "@standard": 2}[graph]]
    paths = {f"onnx:{name}{graph}": exported(NANO, f"onnx:{name}{graph}") for name in types}
    for start in list(paths)[1:]:
        sizes = sizes_of(start, paths[start])
        assert set(sizes) == set(paths)
        for spec, path in paths.items():
            assert sizes[spec] == pytest.approx(tensor_bytes(path), rel=0.005), (start, spec)


def test_needs() -> None:
    """emo-nano: 3 layers of 4 heads of 64, a context of 1024."""
    gguf, onnx = exported(NANO, "gguf:q4_0"), exported(NANO, "onnx:int4")
    need = need_of(gguf, 512)
    assert need == Need(tensor_bytes(gguf), 2 * 3 * 4 * 64 * 2, 512, True, True, "f16")
    assert need.cache == 512 * 3072 and need.least == need.weights + need.cache
    assert need.cache_of_run(1024) == 1024 * 3072
    need = need_of(onnx)
    assert need == Need(tensor_bytes(onnx), 2 * 3 * 4 * 64 * 4, 1024, False, False, "f32")
    assert need.cache_of_run(100) == 100 * 6144
    assert family_at(gguf).files(gguf) == [gguf]
    assert [file.name for file in family_at(onnx).files(onnx)] == ["model.onnx", "model.onnx.data"]
    standard = need_of(exported(NANO, "onnx:int8@standard"))
    assert standard.stays_mapped and standard.per_position == 2 * 6144
    for path in (gguf, onnx):
        with pytest.raises(EmoExportError, match="--context 1025: the model allows 1 to 1024"):
            need_of(path, 1025)


def test_repacked_bytes_are_those_of_the_log() -> None:
    """Where this CPU's kernels copy Q4_0, they copy the routed experts at least."""
    model = LlamaCpp(exported(NANO, "gguf:q4_0"), threads=1)
    facts, lines = model.describe(), [line for _, line in model._lib.log._lines]
    model.close()
    said = [line for line in lines if "REPACK model buffer size" in line]
    assert (int(facts[REPACKED]) > 5 * MB) == bool(said)
    assert int(facts[REPACKED]) <= tensor_bytes(exported(NANO, "gguf:q4_0"))


def found(**changes: object) -> MemoryFound:
    held = MemoryFound(100 * MB, finished=True, enforced=True, how="cgroup")
    held.take(0.0, Held(20 * MB, 10 * MB))
    held.base = held.at_peak
    held.take(1.0, Held(50 * MB, 35 * MB, 25 * MB))
    for name, value in changes.items():
        setattr(held, name, value)
    return held


MAPPED = Need(30 * MB, 1000, 4000, stays_mapped=True, whole_cache=True, kv_cache="f16")
COPIED = replace(MAPPED, stays_mapped=False, whole_cache=False)


def test_what_a_run_shows() -> None:
    fit = measured_fit(Spec.parse("gguf:q8_0"), MAPPED, 100 * MB, found(), 1 * MB)
    assert (fit.anonymous, fit.weights_mapped, fit.libraries) == (53 * MB, 30 * MB, 10 * MB)
    assert fit.total == 93 * MB and fit.holds and fit.base == 30 * MB
    # What was copied is anonymous already, and its pages are not read again.
    assert (
        measured_fit(Spec.parse("gguf:q4_0"), MAPPED, 100 * MB, found(), 1 * MB, 20 * MB).total
        == 73 * MB
    )
    # An engine with a copy of its own keeps little of the file.
    assert measured_fit(Spec.parse("onnx:int4"), COPIED, 100 * MB, found(), 0).total == 89 * MB
    ended = measured_fit(
        Spec.parse("gguf:q8_0"), MAPPED, 100 * MB, found(oom_killed=True, finished=False), 0
    )
    assert not ended.holds and not ended.measured and ended.total == 100 * MB + 1
    least = least_fit(Spec.parse("gguf:q8_0"), MAPPED, 33 * MB)
    assert least.total == 34 * MB and not least.holds and least.as_dict()["holds"] is False


def test_a_run_that_nobody_saw() -> None:
    with pytest.raises(EmoExportError, match="ended before its memory could be looked at"):
        measured_fit(
            Spec.parse("gguf:q8_0"), MAPPED, 100 * MB, MemoryFound(100 * MB, finished=True), 0
        )


def sentences_of(
    fits: Sequence[Fit], paths: Mapping[str, Path], needs: Mapping[str, Need]
) -> dict[str, str]:
    found = too_little(
        fits,
        {Spec.parse(name): path for name, path in paths.items()},
        {Spec.parse(name): need for name, need in needs.items()},
    )
    said = {}
    for fit in fits:
        if why := found.get(fit.target):
            memory = {"needs": fit.as_dict()}
            result = Result(target=str(fit.target), memory=memory, too_little=why)
            result = Result.from_dict(json.loads(json.dumps(result.as_dict())))
            assert result.exit_code == 1
            (text,) = faults(result)
            said[result.target] = text.removeprefix("not judged: ")
    return said


def gguf_paths() -> dict[str, Path]:
    return {spec: exported(NANO, spec) for spec in ("gguf:q8_0", "gguf:q4_0", "gguf:q3_k_m")}


def needs_of(paths: dict[str, Path]) -> dict[str, Need]:
    return {spec: need_of(path, 1024) for spec, path in paths.items()}


def fit_of(spec: str, needs: dict[str, Need], ram: int, beside: int, **changes: object) -> Fit:
    """A measured fit: `beside` bytes that are not weights."""
    need = needs[spec]
    return replace(
        least_fit(Spec.parse(spec), need, ram),
        total=need.weights + beside,
        anonymous=beside,
        measured=True,
        enforced=True,
        **changes,
    )


def test_the_next_smaller_of_the_package_is_named() -> None:
    paths = gguf_paths()
    needs = needs_of(paths)
    fits = [fit_of(spec, needs, 70 * MB, 50 * MB) for spec in paths]
    said = sentences_of(fits, paths, needs)
    assert list(said) == ["gguf:q8_0"]
    assert said["gguf:q8_0"] == (
        "gguf:q8_0 needs 73.2 MB with a KV cache of 3.1 MB at 1024 tokens: 50.0 MB anonymous and "
        "23.2 MB file-backed, of which 23.2 MB are weights; more than --ram 70.0 MB, so it runs, "
        "but reads weights from the disk for each token; gguf:q4_0 of this package needs 64.1 MB "
        "and fits"
    )
    alone = sentences_of(fits[:1], paths, needs)  # the others of the package were not run
    assert alone["gguf:q8_0"].endswith("gguf:q4_0 of this package would need about 64.1 MB")
    tighter = [fit_of(spec, needs, 63 * MB, 50 * MB) for spec in paths]
    said = sentences_of(tighter, paths, needs)
    assert set(said) == {"gguf:q8_0", "gguf:q4_0"}
    assert all(
        "gguf:q3_k_m of this package needs 60.7 MB and fits" in line for line in said.values()
    )


def test_a_format_to_export_is_named() -> None:
    paths = {"gguf:q8_0": exported(NANO, "gguf:q8_0")}
    needs = needs_of(paths)
    (said,) = sentences_of([fit_of("gguf:q8_0", needs, 61 * MB, 50 * MB)], paths, needs).values()
    sizes = sizes_of("gguf:q8_0", paths["gguf:q8_0"])
    best = max((spec for spec in sizes if sizes[spec] <= 11 * MB), key=lambda spec: sizes[spec])
    assert f"{best} would need about" in said
    assert said.endswith(f"export --to {best} --calibration TEXT")
    (said,) = sentences_of([fit_of("gguf:q8_0", needs, 51 * MB, 50 * MB)], paths, needs).values()
    assert said.endswith("; no smaller format of gguf fits")
    (said,) = sentences_of(
        [least_fit(Spec.parse("gguf:q8_0"), needs["gguf:q8_0"], 20 * MB)], paths, needs
    ).values()
    assert said.startswith(
        "gguf:q8_0 needs 26.4 MB for its weights and a KV cache of 3.1 MB at 1024 tokens alone: "
        "more than --ram 20.0 MB; gguf:"
    )
    assert "would need at least" in said


def test_no_format_is_named_where_the_engine_itself_did_not_fit() -> None:
    paths = gguf_paths()
    needs = needs_of(paths)
    early = replace(found(oom_killed=True, finished=False), base=None)
    ended = measured_fit(Spec.parse("gguf:q4_0"), needs["gguf:q4_0"], 25 * MB, early, 0)
    (said,) = sentences_of([ended], paths, needs).values()
    assert said.endswith("before a model was opened, so that no other format would fit either")


def test_the_sentence_of_a_process_that_was_ended() -> None:
    paths = gguf_paths()
    needs = needs_of(paths)
    ended = measured_fit(
        Spec.parse("gguf:q8_0"),
        needs["gguf:q8_0"],
        60 * MB,
        found(oom_killed=True, finished=False),
        0,
    )
    others = [fit_of(spec, needs, 60 * MB, 49 * MB) for spec in ("gguf:q4_0", "gguf:q3_k_m")]
    said = sentences_of([ended, *others], paths, needs)
    assert said["gguf:q8_0"] == (
        "gguf:q8_0 needs more than --ram 60.0 MB: the kernel ended it there, with 50.0 MB "
        "anonymous (Python and the engine took 30.0 MB before it was opened); its weights and a KV "
        "cache of 3.1 MB at 1024 tokens alone are 26.4 MB; gguf:q3_k_m of this package needs 59.7 "
        "MB and fits"
    )


def test_sampled_is_said() -> None:
    paths = gguf_paths()
    needs = needs_of(paths)
    fit = replace(fit_of("gguf:q8_0", needs, 40 * MB, 50 * MB), enforced=False)
    (said,) = sentences_of([fit], paths, needs).values()
    assert "more than --ram 40.0 MB (not enforced: sampled); no smaller" in said


def run(spec: str, ram: int, context: int = 1024) -> tuple[Fit, MemoryFound]:
    """One target under a cap, or sampled where none can be made."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    path = exported(NANO, spec)
    need = need_of(path, context)
    fit, memory = try_memory(
        Spec.parse(spec), path, need, ram, lambda rest: [sys.executable, *rest], env
    )
    assert memory is not None
    return fit, memory


@pytest.mark.slow
def test_real_runs_with_room() -> None:
    """The weights are 9.1 MB apart, and so is what the targets need (libraries are shared)."""
    totals = {}
    for spec in ("onnx:int8", "onnx:int4"):
        fit, memory = run(spec, parse_size("300MB"))
        assert fit.measured and fit.holds and fit.base is not None
        # Its copy of the weights is anonymous; the base has none of it.
        assert memory.peak_anonymous - memory.base.anonymous > fit.least - fit.cache
        totals[spec] = fit.anonymous + fit.weights_mapped
    assert 5 * MB < totals["onnx:int8"] - totals["onnx:int4"] < 14 * MB


def test_real_weights_are_told_apart() -> None:
    fit, memory = run("gguf:q8_0", parse_size("300MB"))
    assert memory.at_peak is not None and memory.base is not None and memory.base.model == 0
    assert abs(memory.at_peak.model - tensor_bytes(exported(NANO, "gguf:q8_0"))) < MB
    assert fit.holds and fit.total > 26 * MB


@pytest.mark.slow
def test_too_large_fails_and_the_next_smaller_is_named() -> None:
    """The acceptance of --ram, with a limit between the two targets, 64 MB apart."""
    paths = {spec: exported(NANO, spec) for spec in ("gguf:f32", "gguf:q8_0")}
    ram = run("gguf:q8_0", parse_size("300MB"))[0].total + 30 * MB
    fits = [run(spec, ram)[0] for spec in paths]
    said = sentences_of(fits, paths, needs_of(paths))
    assert list(said) == ["gguf:f32"]
    assert said["gguf:f32"].startswith("gguf:f32 needs 1")
    assert f"more than --ram {shown(ram)}" in said["gguf:f32"]
    assert "; gguf:q8_0 of this package needs " in said["gguf:f32"]


@pytest.mark.slow
def test_the_context_counts() -> None:
    full, _ = run("gguf:q8_0", parse_size("300MB"))
    half, _ = run("gguf:q8_0", parse_size("300MB"), 512)
    assert full.cache - half.cache == 512 * 3072
    assert abs(full.total - half.total - 512 * 3072) < 4 * MB


def test_too_much_by_its_header_is_not_run(tmp_path: Path) -> None:
    need = need_of(exported(NANO, "gguf:q8_0"))
    fit, memory = try_memory(
        Spec.parse("gguf:q8_0"), tmp_path, need, 20 * MB, lambda rest: ["/none"], {}
    )
    assert memory is None and not fit.holds and not fit.measured


def test_an_engine_that_refuses(tmp_path: Path) -> None:
    broken = tmp_path / "model.gguf"
    broken.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, 0, 0) + bytes(80))  # no key, no tensor
    need = Need(10, 1, 10, True, True, "f16")
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with pytest.raises(
        EmoExportError, match=r"gguf:q8_0: its memory could not be measured: .*model\.gguf"
    ):
        try_memory(
            Spec.parse("gguf:q8_0"),
            broken,
            need,
            99 * MB,
            lambda rest: [sys.executable, *rest],
            env,
        )
