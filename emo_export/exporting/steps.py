"""What the caller of a long job hears of while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from emo_export.pipeline import OnBytes

if TYPE_CHECKING:
    from emo_export.budget.budget import Found as Types
    from emo_export.exporting.target import Target
    from emo_export.selection.auto import Found
    from emo_export.text.places import Texts


@dataclass(frozen=True)
class Steps:
    """`on_start` hears of targets and the bytes to read, then `on_bytes` of their way.

    `on_found` hears what was tried where the number of experts was to be found,
    `on_types` the types that were found for a budget.
    """

    on_start: Callable[[Sequence[Target], int], None]
    on_bytes: OnBytes
    on_stage: Callable[[str], None]
    on_texts: Callable[[Texts], None] = lambda texts: None
    on_found: Callable[[Found], None] = lambda found: None
    on_types: Callable[[Types], None] = lambda found: None

    def of_domain(self, domain: str) -> Steps:
        """The same, for the stages of one domain of several ("": no domain)."""
        if not domain:
            return self
        return replace(self, on_stage=lambda text: self.on_stage(f"{domain}: {text}"))


QUIET = Steps(lambda targets, nbytes: None, lambda slot, nbytes: None, lambda text: None)
