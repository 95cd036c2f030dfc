"""What `export` and `validate` share: opening checkpoints, telling what goes on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from emo_export.cli.output import say, stderr
from emo_export.cli.progress import progress as tell
from emo_export.cli.progress import quiet, timed
from emo_export.report.checkpoint import note
from emo_export.report.pruning import keep_table
from emo_export.report.recipes import types_sentence, types_table
from emo_export.report.texts import passed_over

if TYPE_CHECKING:
    from emo_export.budget.budget import Found as Types
    from emo_export.exporting.steps import Steps
    from emo_export.exporting.target import Target
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.names import Slot
    from emo_export.selection.auto import Found
    from emo_export.text.places import Texts


def open_checkpoint(source: str) -> Checkpoint:
    """A local folder or a Hugging Face id, opened and accounted for."""
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.hub import locate

    checkpoint = Checkpoint.open(locate(source, progress=stderr().is_terminal))
    if checkpoint.config.max_position_embeddings < 0:
        say(
            f"{source}: max_position_embeddings is -1 (unknown); assuming "
            f"{checkpoint.config.context_length()} positions unless --context says otherwise"
        )
    for found in checkpoint.notes:
        say(f"note: {source}: {note(found)}")
    return checkpoint


class Bar:
    """A progress bar on stderr where that is a terminal, plain lines elsewhere."""

    def __init__(self, progress: Progress, shown: bool) -> None:
        self._progress, self._shown = progress, shown
        self._task = progress.add_task("reading", total=None, visible=False)

    def start(self, nbytes: int) -> None:
        """So many bytes are to be dealt with."""
        if not self._shown:
            tell(f"reading {nbytes / 1e6:.1f} MB once")
        self._progress.reset(self._task, total=nbytes, visible=True)

    def advance(self, slot: Slot, nbytes: int) -> None:
        """Bytes of a weight were dealt with."""
        self._progress.update(self._task, advance=nbytes, description=where(slot))

    def stage(self, text: str) -> None:
        """Something else has begun."""
        # Through the bar's console, which moves a bar that is still shown out of the way.
        self._progress.update(self._task, visible=False)
        if not quiet():
            self._progress.console.print(timed(text), markup=False, highlight=False)

    def found(self, found: Found) -> None:
        """How many experts are to be kept, and what led to that."""
        self._progress.update(self._task, visible=False)
        table = keep_table(found.tried, found.judged_on, found.limit, found.keep)
        self._progress.console.print(table)

    def types(self, found: Types) -> None:
        """The types that were found for a target, and what they cost."""
        self._progress.update(self._task, visible=False)
        self._progress.console.print(types_table(found))
        self._progress.console.print(types_sentence(found), markup=False, highlight=False)


def where(slot: Slot) -> str:
    """Where a weight is: its layer, and its expert."""
    if slot.layer < 0:
        return str(slot.role)
    expert = f", expert {slot.expert}" if slot.expert >= 0 else ""
    return f"layer {slot.layer}{expert}"


@contextmanager
def progress_bar() -> Iterator[Bar]:
    """A bar that is there while the work goes on."""
    console = stderr()
    columns = (
        TextColumn("{task.description:22}"),
        BarColumn(bar_width=10),
        DownloadColumn(),
        TransferSpeedColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    hidden = not console.is_terminal or quiet()
    with Progress(*columns, console=console, disable=hidden) as progress:
        yield Bar(progress, console.is_terminal)


@contextmanager
def progress_steps() -> Iterator[Steps]:
    """What an export tells, on such a bar."""
    from emo_export.exporting.steps import Steps

    with progress_bar() as bar:

        def on_start(targets: Sequence[Target], source_bytes: int) -> None:
            for target in targets:
                weights = f"{target.nbytes / 1e6:.1f} MB of weights"
                if target.trunk:
                    once = f"{target.trunk_nbytes / 1e6:.1f} MB"
                    weights += f", {once} of them stored once for all domains"
                place = f"{target.domain}/" if target.domain else ""
                tell(f"{target.name}: {weights} -> {place}{target.entry.path}")
                _warn_fallbacks(target)
            for reason in {target.entry.no_genai for target in targets} - {None, ""}:
                say(f"warning: no genai_config.json is written: {reason}")
            bar.start(source_bytes)

        yield Steps(on_start, bar.advance, bar.stage, note_passed_over, bar.found, bar.types)


def note_passed_over(texts: Texts) -> None:
    """Tell of files that were no text."""
    if found := passed_over(texts):
        say(f"note: {found}")


def _warn_fallbacks(target: Target) -> None:
    kinds: dict[tuple[str, str], list[str]] = {}
    for tensor, change in target.scheme.fallbacks.items():
        kinds.setdefault(change, []).append(tensor)
    for (wanted, used), tensors in kinds.items():
        say(
            f"warning: {target.name}: rows of {len(tensors)} tensors (first: {tensors[0]}) "
            f"do not fit {wanted} and are written as {used}"
        )
