"""An export that was interrupted or killed anywhere goes on, and ends with the same bytes."""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from emo_export import resuming
from emo_export.errors import EmoExportError
from emo_export.exporting import export as exporting
from emo_export.exporting.steps import Steps
from emo_export.families.options import TargetOptions
from emo_export.files.manifest import Manifest
from emo_export.files.verifying import verify
from emo_export.jobs.export import export_checkpoint
from emo_export.jobs.options import ExportOptions, PruneOptions
from emo_export.jobs.prune import prune_checkpoint
from emo_export.measuring import CalibrationText
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.names import Slot
from emo_export.model.rounding import Rounding
from emo_export.selection.keep import Keep, Selection
from emo_export.selection.method import Method
from tests.kit.forked import run_command
from tests.kit.paths import GOLDEN, NANO

TARGETS = ["gguf:q4_0", "gguf:iq4_nl", "onnx:int4"]


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("def mean(values):\n    return sum(values) / len(values)\n" * 20, "utf-8")
    return path


def options_for(text: Path, method: Method = Method.REAP) -> ExportOptions:
    """Without GPTQ, whose small steps would be most of a test's time."""
    return ExportOptions(
        calibration=(text,),
        rounding=Rounding.WEIGHTED,
        selection=Selection(Keep.parse("6"), method, rescale=True),
        golden=False,
    )


def files_of(folder: Path) -> dict[str, bytes]:
    """Every file; of a manifest the digests of what was read, since it states the folder's name."""
    found = {}
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        name = path.relative_to(folder).as_posix()
        if path.name in ("manifest.json", "pruned.manifest.json"):
            found[name] = str(Manifest.read(path, path.parent).origin.inputs).encode()
        elif path.name != "README.md":  # it states the name
            found[name] = path.read_bytes()
    return found


class Stop:
    """Interrupts a run once it has dealt with so many bytes."""

    def __init__(self, after: float) -> None:
        self.stages: list[str] = []
        self._left = after

    def steps(self) -> Steps:
        return Steps(lambda targets, nbytes: None, self.count, self.stages.append)

    def count(self, slot: Slot, nbytes: int) -> None:
        self._left -= nbytes
        if self._left < 0:
            raise KeyboardInterrupt


@pytest.mark.parametrize(
    "rounding", [Rounding.WEIGHTED, pytest.param(Rounding.GPTQ, marks=pytest.mark.slow)]
)
def test_it_goes_on_after_the_last_whole_layer(
    rounding: Rounding, tmp_path: Path, text: Path
) -> None:
    """Interrupted somewhere else each time, and some again and again."""
    source = Checkpoint.open(GOLDEN / "base")
    options = replace(options_for(text), rounding=rounding, golden=True, validate=False)
    export_checkpoint(source, tmp_path / "whole", TARGETS, options)
    want = files_of(tmp_path / "whole")
    rng = random.Random(7)
    resumed, times = 0, 2 if rounding == Rounding.GPTQ else 1
    for number in range(times):
        out = tmp_path / f"out{number}"
        for _ in range(number + 1):
            stop = Stop(rng.uniform(0.45, 0.98) * source.nbytes)
            with pytest.raises(KeyboardInterrupt):
                export_checkpoint(source, out, TARGETS, options, stop.steps())
            assert not out.exists()
        last = Stop(float("inf"))
        export_checkpoint(source, out, TARGETS, options, last.steps())
        resumed += any("going on after layer" in stage for stage in last.stages)
        assert files_of(out) == want
        assert not list(tmp_path.glob(f".out{number}*")) and not verify(out)
    assert resumed == times


@pytest.mark.slow
def test_domains_go_on_together(tmp_path: Path, text: Path) -> None:
    source = Checkpoint.open(GOLDEN / "base")
    other = tmp_path / "prose.txt"
    other.write_text("The harbour was quiet, and three boats lay at the pier. " * 12, "utf-8")
    options = replace(
        options_for(text), calibration=(), domains={"code": (text,), "prose": (other,)}
    )
    export_checkpoint(source, tmp_path / "whole", TARGETS, options)
    stop = Stop(0.8 * source.nbytes)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(source, tmp_path / "out", TARGETS, options, stop.steps())
    assert "interrupted; the same command goes on" in stop.stages[-1]
    last = Stop(float("inf"))
    export_checkpoint(source, tmp_path / "out", TARGETS, options, last.steps())
    assert any("going on after layer" in stage for stage in last.stages)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")


def test_an_interrupt_in_the_first_save_leaves_nothing(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*args: object, **arrays: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(np, "savez", interrupted)
    source = Checkpoint.open(GOLDEN / "base")
    stop = Stop(float("inf"))
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(source, tmp_path / "out", TARGETS, options_for(text), stop.steps())
    assert not list(tmp_path.glob("*out*")) and "interrupted" not in " ".join(stop.stages)


def test_room_is_asked_for_what_is_saved(
    tmp_path: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Twice what is saved in the end, beside the targets, and before a weight is dealt with."""
    asked: list[int] = []
    for module in (exporting, resuming):
        monkeypatch.setattr(module, "check_space", lambda place, needed: asked.append(needed))
    source, saved = Checkpoint.open(GOLDEN / "base"), tmp_path / ".out.partial/resume/state.npz"
    with pytest.raises(KeyboardInterrupt):
        stop = Stop(0.98 * source.nbytes)
        export_checkpoint(source, tmp_path / "out", TARGETS[:1], options_for(text), stop.steps())
    for_targets, with_state = asked
    assert for_targets > 500_000
    assert 2 <= (with_state - for_targets) / saved.stat().st_size <= 4


def test_prune_goes_on_too(tmp_path: Path, text: Path) -> None:
    source = Checkpoint.open(GOLDEN / "base")
    selection = Selection(Keep.parse("6"), Method.ROUTER)
    options = PruneOptions(selection, CalibrationText((text,), 4096), max_shard_size=400_000)
    whole = prune_checkpoint(source, tmp_path / "whole", options, Stop(float("inf")).steps())
    with pytest.raises(KeyboardInterrupt):
        stop = Stop(0.8 * source.nbytes)
        prune_checkpoint(source, tmp_path / "out", options, stop.steps())
    last = Stop(float("inf"))
    again = prune_checkpoint(source, tmp_path / "out", options, last.steps())
    assert any("going on after layer" in stage for stage in last.stages)
    assert files_of(tmp_path / "out") == files_of(tmp_path / "whole")
    assert again.loss == whole.loss and again.choice.layers == whole.choice.layers


def stopped(source: Checkpoint, out: Path, options: ExportOptions) -> None:
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(source, out, TARGETS, options, Stop(0.8 * source.nbytes).steps())


Change = Callable[[ExportOptions, Path], ExportOptions]
CHANGES: dict[str, Change] = {
    "calibration text": lambda options, text: replace(options, calibration_tokens=64),
    "choice of experts": lambda options, text: options_for(text, Method.ROUTER),
    "held-out text": lambda options, text: replace(options, golden=True, validate=False),
    "target": lambda options, text: replace(options, targets=replace(options.targets, context=32)),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(CHANGES))
def test_what_changed_is_told_and_begun_anew(name: str, tmp_path: Path, text: Path) -> None:
    source, out = Checkpoint.open(GOLDEN / "base"), tmp_path / "out"
    stopped(source, out, options_for(text))
    again = Stop(float("inf"))
    changed = CHANGES[name](options_for(text), text)
    export_checkpoint(source, out, TARGETS, changed, again.steps())
    told = [stage for stage in again.stages if "not going on with the interrupted run" in stage]
    assert len(told) == 1 and name in told[0]
    assert not any("going on after layer" in stage for stage in again.stages)


@pytest.mark.slow
def test_no_resume_and_damaged_state_begin_anew(tmp_path: Path, text: Path) -> None:
    source, out = Checkpoint.open(GOLDEN / "base"), tmp_path / "out"
    options = options_for(text)
    export_checkpoint(source, tmp_path / "want", TARGETS, options)
    for damage in (None, b"", b"PK\x03\x04 cut"):
        stopped(source, out, options)
        if damage is not None:
            (state,) = tmp_path.glob(".out.partial/resume/state.npz")
            state.write_bytes(damage)
        again = Stop(float("inf"))
        chosen = options if damage is not None else replace(options, resume=False)
        export_checkpoint(source, out, TARGETS, chosen, again.steps())
        assert not any("going on after" in stage for stage in again.stages)
        assert files_of(out) == files_of(tmp_path / "want")
        shutil.rmtree(out)


@pytest.mark.slow
def test_a_state_without_what_the_lines_need_is_refused(tmp_path: Path, text: Path) -> None:
    source, out, options = Checkpoint.open(GOLDEN / "base"), tmp_path / "out", options_for(text)
    stopped(source, out, options)
    (place,) = tmp_path.glob(".out.partial/resume/state.npz")
    with np.load(place) as stored:
        state = dict(stored)
    kept = [name for name in state if name in ("blocks", "files")]
    np.savez(place, **{name: state[name] for name in kept})
    with pytest.raises(EmoExportError, match=r"state\.npz: is not what .*--no-resume"):
        export_checkpoint(source, out, TARGETS, options)
    export_checkpoint(source, out, TARGETS, replace(options, resume=False))
    assert out.is_dir()


@pytest.mark.slow
def test_twenty_kills_at_random_moments(tmp_path: Path) -> None:
    """SIGKILL to the command itself, on the trained model."""
    text = NANO / "calibration" / "c.jsonl"
    words = ["export", str(NANO), "--keep", "8", "--no-golden", "--calibration", str(text)]
    words += ["--calibration-tokens", "1024", "--to", "gguf:q4_k_m", "--to", "onnx:int4", "-o"]
    run_command(["--version"])  # the process that the others are forked from begins now
    begun = time.monotonic()
    assert run_command([*words, str(tmp_path / "whole")])[0] == 0
    seconds = time.monotonic() - begun
    want = files_of(tmp_path / "whole")
    rng = random.Random(11)
    out, kills, went_on = tmp_path / "out", 0, 0
    while kills < 20:
        code, told = run_command([*words, str(out)], kill_after=rng.uniform(0.1, 1.0) * seconds)
        assert code in (0, -signal.SIGKILL), told
        kills += code != 0
        went_on += "going on after layer" in told
        if out.exists():  # a kill may come when all is done, too
            assert files_of(out) == want
            shutil.rmtree(out)
    assert run_command([*words, str(out)])[0] == 0
    assert files_of(out) == want and went_on > 0
    assert not list(tmp_path.glob(".out*"))


@pytest.mark.slow
def test_a_trunk_that_was_shared_before_the_interrupt_is_gone_on_with(
    tmp_path: Path, text: Path
) -> None:
    checkpoint = Checkpoint.open(GOLDEN / "base")
    options = replace(
        options_for(text),
        calibration=(),
        domains={"a": (text,), "b": (text,)},
        targets=TargetOptions(share_trunk=True),
        heldout=(text,),
        heldout_tokens=32,
        golden=True,
        validate=False,
    )

    def interrupt(stage: str) -> None:
        if stage.startswith("a: greedy"):
            raise KeyboardInterrupt

    steps = Steps(lambda targets, nbytes: None, lambda slot, nbytes: None, interrupt)
    with pytest.raises(KeyboardInterrupt):
        export_checkpoint(checkpoint, tmp_path / "out", ["onnx:int4"], options, steps)
    (left,) = tmp_path.glob(".out.*")
    trunk = "a/onnx-int4/model.onnx.trunk.data"
    assert (left / "out" / trunk).stat().st_nlink == 2
    export_checkpoint(checkpoint, tmp_path / "out", ["onnx:int4"], options)
    assert (tmp_path / "out" / trunk).stat().st_nlink == 2
    assert verify(tmp_path / "out" / "b") == []
