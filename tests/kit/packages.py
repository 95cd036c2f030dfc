"""Exported packages that several test modules share; each is made once for all test processes."""

from __future__ import annotations

import functools
from pathlib import Path

from tests.kit.command import NOT_FAILED, run_here
from tests.kit.synth import make_checkpoint
from tests.kit.workspace import made_once

SMALL_TARGETS = ("gguf:f32", "onnx:f32")
DEVICE_TARGETS = ("gguf:q4_0", "gguf:q8_0", "onnx:int4", "onnx:int8")


@functools.cache
def package(checkpoint: Path, targets: tuple[str, ...], *options: str) -> Path:
    """A folder that the command line exported, golden.npz included. Not to be changed."""
    wanted = [text for target in targets for text in ("--to", target)]

    def export(folder: Path) -> None:
        done = run_here("export", checkpoint, "-o", folder, *wanted, *options)
        if done.code not in NOT_FAILED:
            raise RuntimeError(f"the package of {checkpoint} was not made:\n{done.err}{done.out}")

    return made_once("-".join(["package", checkpoint.name, *targets, *options]), export)


def narrow() -> Path:
    """A checkpoint whose random weights stay far within the limits when they are quantised."""
    sizes = {"hidden_size": 128, "intermediate_size": 64, "num_hidden_layers": 1}
    return made_once("narrow", functools.partial(make_checkpoint, **sizes))


def quantised_package() -> Path:
    """It in four bits; its validation takes half a second, emo-nano's ten times that."""
    return package(narrow(), ("gguf:q4_0", "onnx:int4"), "--heldout-tokens", "64")
