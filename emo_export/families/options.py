"""What the options of `export` say of the targets."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TargetOptions:
    """Of all targets: `context`, `tensor_types`, `share_trunk`; the others are of one family."""

    context: int | None = None
    accuracy_level: int = 4
    last_logits: bool = False
    arch: str | None = None
    tensor_types: tuple[str, ...] = ()
    block_size: int | None = None
    plain_attention: bool = False
    share_trunk: bool = False
