"""The options of the jobs, as the help of their commands describes them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from emo_export.budget.budget import Budget
from emo_export.errors import EmoExportError
from emo_export.exporting.package import ALONE
from emo_export.families.options import TargetOptions
from emo_export.files.domains import check_name
from emo_export.measuring import CalibrationText
from emo_export.model.rounding import Rounding
from emo_export.selection.auto import Auto
from emo_export.selection.keep import Selection
from emo_export.text.documents import FIELD
from emo_export.text.sample import CALIBRATION_TOKENS


@dataclass(frozen=True)
class PruneOptions:
    """The options of `prune`, as its help describes them; `max_shard_size` in bytes."""

    selection: Selection | Auto
    text: CalibrationText
    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    max_shard_size: int = 5_000_000_000
    loss: bool = True
    resume: bool = True
    device: str = "cpu"
    overwrite: bool = False

    def check(self) -> None:
        """Refuse what can't be."""
        if isinstance(self.selection, Auto) and not self.loss:
            raise EmoExportError("--keep auto judges by the loss, which --no-loss leaves out")


@dataclass(frozen=True)
class DomainOptions:
    """The options of `domains`, as its help describes them."""

    calibration: tuple[Path, ...]
    calibration_tokens: int
    seed: int = 0
    text_field: str = FIELD
    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    device: str = "cpu"


@dataclass(frozen=True)
class ExportOptions:
    """The options of `export`, as its help describes them."""

    heldout: tuple[Path, ...] = ()
    heldout_tokens: int = 4096
    calibration: tuple[Path, ...] = ()
    domains: Mapping[str, tuple[Path, ...]] = field(default_factory=dict)
    calibration_tokens: int = CALIBRATION_TOKENS
    seed: int = 0
    text_field: str = FIELD
    selection: Selection | Auto | None = None
    imatrix: Path | None = None
    budget: Budget | None = None
    recipe: Path | None = None
    rounding: Rounding | None = None
    targets: TargetOptions = field(default_factory=TargetOptions)
    device: str = "cpu"
    overwrite: bool = False
    resume: bool = True
    golden: bool = True
    validate: bool = True

    def text(self, places: tuple[Path, ...]) -> CalibrationText:
        """Calibration text from places, as the options draw it."""
        return CalibrationText(
            places, self.calibration_tokens, self.seed, self.text_field, self.targets.context
        )

    @property
    def texts(self) -> Mapping[str, tuple[Path, ...]]:
        """The calibration text of each package to make: by domain, or `ALONE`."""
        return self.domains or {ALONE: self.calibration}

    @property
    def chosen_rounding(self) -> Rounding:
        """What is asked for, else the best that there is text or importance for."""
        if self.rounding is not None:
            return self.rounding
        if any(self.texts.values()):
            return Rounding.GPTQ
        return Rounding.NEAREST if self.imatrix is None else Rounding.WEIGHTED

    def check(self) -> None:
        """Refuse what would have no effect, or can't be."""
        has_text = any(self.texts.values())
        if self.rounding == Rounding.GPTQ and not has_text:
            raise EmoExportError(
                "--rounding gptq needs text to measure the inputs of matrices: --calibration"
            )
        if self.rounding == Rounding.WEIGHTED and not has_text and self.imatrix is None:
            raise EmoExportError("--rounding weighted needs --calibration or --imatrix")
        chooses = self.selection is not None or self.budget is not None
        if self.rounding == Rounding.NEAREST and (self.imatrix or (has_text and not chooses)):
            raise EmoExportError("--rounding nearest has no use for --calibration and --imatrix")
        if self.heldout and not self.golden:
            raise EmoExportError(
                "--heldout is of no use with --no-golden, which computes no reference"
            )
        if self.domains and (self.calibration or self.imatrix is not None):
            raise EmoExportError(
                "--domain brings the calibration text of its own package; leave out --calibration "
                "and --imatrix"
            )
        is_auto = isinstance(self.selection, Auto)
        if is_auto and self.domains:
            raise EmoExportError("--keep auto finds one number: give it for --domain, as --keep 16")
        if is_auto and not (self.calibration and self.golden):
            raise EmoExportError(
                "--keep auto needs --calibration to choose on, and no --no-golden, since it judges "
                "on held-out text"
            )
        if self.domains and self.selection is None:
            raise EmoExportError("--domain needs --keep: how many experts each domain gets")
        if self.targets.share_trunk and len(self.domains) < 2:
            raise EmoExportError("--share-trunk needs two --domain or more to share it")
        for name in self.domains:
            check_name(name)
        if len({name.casefold() for name in self.domains}) < len(self.domains):
            raise EmoExportError("--domain: two names differ in case alone, as folders may not")
        if self.selection is not None and not self.calibration and not self.domains:
            raise EmoExportError("--keep needs --calibration: text to choose the experts for")
        if self.budget is not None and not self.calibration:
            raise EmoExportError("a budget needs --calibration: text to measure what types cost on")
        if self.selection is not None and self.budget is not None:
            raise EmoExportError(
                "a budget is for the experts that the checkpoint has: leave some out first, with "
                "emo-export prune, or repeat types with --recipe FILE"
            )
        if self.budget is not None and self.recipe is not None:
            raise EmoExportError("--recipe FILE has the types that a budget would find; give one")
        if self.calibration and self.imatrix is not None:
            raise EmoExportError("--calibration collects an importance matrix, --imatrix reads one")
