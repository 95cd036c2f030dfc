"""What is asked of a device: the arguments of `far/on_device.py`, written and read."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from emo_export.interfaces import Ids
from emo_export.parity.golden import PAD, Golden, Variant
from emo_export.spec import Spec

VERSION = 3  # of the answer


@dataclass(frozen=True)
class Share:
    """How much of golden.npz is judged: emulation is hundreds of times slower than a device.

    `sequences` (of n), `positions` (of T), `heldout_tokens` and `greedy_steps`; 0 means all.
    """

    sequences: int = 0
    positions: int = 0
    heldout_tokens: int = 0
    greedy_steps: int = 0

    def of(self, golden: Golden) -> Golden:
        """The same golden with fewer tokens. What is left out at the end changes no other token."""
        n, t = golden.input_ids.shape
        n, t = min(self.sequences or n, n), min(self.positions or t, t)
        heldout = self._heldout(golden.heldout_ids)
        m, width = heldout.shape

        def cut(variant: Variant) -> Variant:
            nll = variant.heldout_nll[:m, :width].copy()
            nll[heldout == PAD] = float("nan")
            return replace(
                variant,
                logits=variant.logits[:n, :t],
                margin=variant.margin[:n, :t],
                heldout_nll=nll,
            )

        return replace(
            golden,
            input_ids=golden.input_ids[:n, :t],
            heldout_ids=heldout,
            greedy=golden.greedy[: self.greedy_steps or None],
            variants={name: cut(variant) for name, variant in golden.variants.items()},
        )

    def _heldout(self, ids: Ids) -> Ids:
        """The beginning of every held-out sequence (m, L): all kinds of text, fewer tokens."""
        if not self.heldout_tokens:
            return ids
        width = max(2, 1 - -self.heldout_tokens // len(ids))  # the first of each has no likelihood
        return ids[:, :width]


class Request(NamedTuple):
    """What one run on a device does; `arguments` is how it is asked for.

    `profile` names the device whose limits hold, `context` the positions that the KV cache gets
    (0: the model's own); `kernels` asks which of ONNX Runtime's arithmetics this CPU gets;
    `kv_cache` is the type of what is compared with the float original (empty: the engine's own);
    a run that takes longer than `timeout` seconds is ended (0: none is).
    """

    profile: str = ""
    threads: int | None = None
    context: int = 0
    share: Share = Share()
    kernels: bool = False
    kv_cache: str = ""
    timeout: float = 0

    def arguments(self, folder: str, target: Spec) -> list[str]:
        """The command line after the module, for a target of the package at `folder` there."""
        options: dict[str, object] = {
            "--profile": self.profile,
            "--threads": self.threads,
            "--context": self.context,
            "--kv-cache": self.kv_cache,
            "--timeout": self.timeout,
        }
        options |= {f"--{key.replace('_', '-')}": n for key, n in vars(self.share).items()}
        given = [(key, str(value)) for key, value in options.items() if value]
        flags = ["--kernels"] if self.kernels else []
        return [folder, str(target), *(text for pair in given for text in pair), *flags]


def parse(arguments: Sequence[str]) -> tuple[Path, str, Request]:
    """Read what `Request.arguments` wrote; the target is one of the manifest's names."""
    parser = argparse.ArgumentParser(prog="python -m emo_export.runtimes.devices.far.on_device")
    parser.add_argument("folder", type=Path)
    parser.add_argument("target")
    for name in ("--profile", "--kv-cache"):
        parser.add_argument(name, default="")
    parser.add_argument("--threads", type=int)
    names = [f"--{name.replace('_', '-')}" for name in ("context", *Share.__dataclass_fields__)]
    for name in names:
        parser.add_argument(name, type=int, default=0)
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--timeout", type=float, default=0)
    found = parser.parse_args(arguments)
    share = Share(found.sequences, found.positions, found.heldout_tokens, found.greedy_steps)
    how = (found.profile, found.threads, found.context, share, found.kernels, found.kv_cache)
    return found.folder, found.target, Request(*how, found.timeout)
