"""The reference of a folder that exists, computed anew."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

from emo_export.errors import EmoExportError
from emo_export.exporting.float_runs import golden_of, run_floats
from emo_export.exporting.steps import Steps
from emo_export.families import FAMILIES
from emo_export.files.target_entry import TargetEntry
from emo_export.jobs.heldout import choose_heldout
from emo_export.jobs.torch_device import prepare_torch
from emo_export.line import Line
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.product import Product
from emo_export.parity.golden import Golden


def fresh_golden(
    checkpoint: Checkpoint,
    device: str,
    steps: Steps,
    folder: Path,
    targets: Mapping[str, TargetEntry],
    stored: Golden | None,
    kept: Sequence[Sequence[int]] | None = None,
    scales: Mapping[int, float] | None = None,
) -> tuple[Golden, dict[str, EmoExportError]]:
    """The reference computed now, on the token ids of the stored golden where there is one.

    The weights of each target are read back from its file; with it the targets of which that
    can't be done (damaged, or of another model), and why. `kept`: the experts of the checkpoint
    that the targets have (None: all), `scales` by layer what they were multiplied by.
    """
    from emo_export.reference.probes import Probes

    product = Product.whole(checkpoint)
    if kept is not None:
        product = Product.keeping(checkpoint, kept, scales)
    prepare_torch(device, product.nbytes)
    probes = choose_heldout(product, (), steps) if stored is None else Probes.of(stored)
    artifacts = {
        spec: partial(
            FAMILIES[entry.spec.family].weights_of, entry, folder / entry.path, product.config
        )
        for spec, entry in targets.items()
    }
    unreadable: dict[str, EmoExportError] = {}
    (run,) = run_floats([Line(product)], probes, steps.on_bytes, device)
    golden = golden_of(run, artifacts, probes, steps, device, unreadable)
    return golden, unreadable
