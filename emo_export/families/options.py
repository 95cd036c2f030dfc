"""What the options of `export` say of the targets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from emo_export.model.recipes import Recipe
from emo_export.model.rounding import Rounding
from emo_export.spec import Spec


@dataclass(frozen=True)
class TargetOptions:
    """`context`, `tensor_types`, `share_trunk` and `rounding` are of all targets, others of one.

    `chosen` are the recipes of targets of the type `auto`.
    """

    context: int | None = None
    accuracy_level: int = 4
    last_logits: bool = False
    arch: str | None = None
    tensor_types: tuple[str, ...] = ()
    block_size: int | None = None
    plain_attention: bool = False
    share_trunk: bool = False
    chosen: Mapping[Spec, Recipe] = field(default_factory=dict)
    rounding: Rounding = Rounding.NEAREST
