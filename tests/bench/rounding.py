"""What each rounding of weights costs on held-out text, at equal bytes.

    python -m tests.bench.rounding [CHECKPOINT] [--to gguf:q4_0] [--tokens 6000]

For each target: the mean KL of the weights that its file holds against the float weights, float
activations in both, with its standard error over sequences; and its ratio to the KL of `nearest`,
or of `weighted` where that is today's best. `everything at 4 bits` gives attention, shared expert
and head the routed experts' type.
"""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass, field, replace
from pathlib import Path

import click
import numpy as np
import torch

from emo_export.base.disk import size_of
from emo_export.exporting.package import ALONE
from emo_export.families import FAMILIES
from emo_export.families.options import TargetOptions
from emo_export.interfaces import F32, Ids
from emo_export.jobs.export import export_checkpoint
from emo_export.jobs.options import ExportOptions
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.model.rounding import Rounding
from emo_export.reference.passes import logits
from emo_export.text.sample import read_calibration
from emo_export.text.tokenizer import open_tokenizer
from tests.kit.paths import NANO

LENGTH = 512
ALL_4 = ("attention=int4", "shared_expert=int4", "head=int4")


@dataclass(frozen=True)
class Case:
    """A target and what its parts get."""

    name: str
    spec: str
    options: TargetOptions = field(default_factory=TargetOptions)


CASES = (
    Case("onnx:int4", "onnx:int4"),
    Case("onnx, all at 4 bits", "onnx:int4", TargetOptions(tensor_types=ALL_4)),
    Case(
        "onnx, all at 4 bits, block 32",
        "onnx:int4",
        TargetOptions(tensor_types=ALL_4, block_size=32),
    ),
    Case("onnx:int2", "onnx:int2"),
    Case("gguf:q4_0", "gguf:q4_0"),
    Case("gguf:iq4_nl", "gguf:iq4_nl"),
    Case("gguf:mxfp4", "gguf:mxfp4"),
    Case("gguf:q4_k_m", "gguf:q4_k_m"),
    Case("gguf:q3_k_m", "gguf:q3_k_m"),
    Case("gguf:q2_k", "gguf:q2_k"),
)


@click.command()
@click.argument("checkpoint", default=NANO, type=click.Path(exists=True, path_type=Path))
@click.option("--to", "only", multiple=True, help="Names of cases.  [default: all]")
@click.option("--tokens", default=6000, show_default=True, help="Of held-out text.")
@click.option("--calibration-tokens", default=36864, show_default=True)
@click.option("--rounding", "roundings", multiple=True, default=tuple(Rounding))
@click.option("--json", "as_json", is_flag=True)
def main(
    checkpoint: Path,
    only: tuple[str, ...],
    tokens: int,
    calibration_tokens: int,
    roundings: tuple[str, ...],
    as_json: bool,
) -> None:
    """Compare roundings."""
    torch.set_num_threads(1)
    source = Checkpoint.open(checkpoint)
    encode = open_tokenizer(checkpoint, source.config.vocab_size)
    if encode is None:
        raise click.ClickException("the checkpoint needs a tokenizer")
    text = read_calibration((checkpoint / "heldout",), encode, tokens, LENGTH, 0, "text")
    want = logits(source.config, Product.whole(source).rows, text.sequences)
    told = ExportOptions(
        calibration=(checkpoint / "calibration",),
        calibration_tokens=calibration_tokens,
        golden=False,
        validate=False,
    )
    for case in CASES:
        if only and case.name not in only:
            continue
        base = None
        for rounding in map(Rounding, roundings):
            options = replace(told, targets=case.options, rounding=rounding)
            if rounding == Rounding.NEAREST:
                options = replace(options, calibration=())
            found, nbytes = measured(source, case.spec, options, text.sequences, want)
            mean, error = float(found.mean()), float(found.std(ddof=1) / len(found) ** 0.5)
            base = base or mean
            row = {"case": case.name, "rounding": rounding.value, "bytes": nbytes}
            row |= {"kl": mean, "stderr": error, "ratio": mean / base}
            click.echo(
                json.dumps(row)
                if as_json
                else f"{case.name:30} {rounding:9} {nbytes / 1e6:7.2f} MB  KL {mean:.5f} ± "
                f"{error:.5f}  {mean / base:.3f}"
            )


def measured(
    source: Checkpoint, spec: str, options: ExportOptions, ids: list[Ids], want: list[F32]
) -> tuple[F32, int]:
    """Mean KL of each sequence, and bytes of the target."""
    with tempfile.TemporaryDirectory() as name:
        made = export_checkpoint(source, Path(name) / "out", [spec], options)[ALONE]
        entry = made.manifest.targets[spec]
        path = Path(name) / "out" / entry.path
        rows = FAMILIES[entry.spec.family].weights_of(entry, path, source.config)
        found = logits(source.config, rows, ids)
        return np.array([_kl(a, b) for a, b in zip(want, found, strict=True)]), size_of(path)


def _kl(want: F32, found: F32) -> float:
    p, q = (torch.from_numpy(each).double().log_softmax(-1) for each in (want, found))
    return float((p.exp() * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    main()
