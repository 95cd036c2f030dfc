"""Work in progress that a later run goes on with: what every line has computed, layer by layer.

After each layer the files are flushed, and what the layers to come depend on is saved beside them:
hidden states, importance, choices, and which rows are in place. A run that finds it with the same
recipe starts at the layer after. Files of full size keep their rows; their headers are made anew.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from emo_export.base.disk import allocated, check_space, writing
from emo_export.base.json_file import read_json
from emo_export.base.npz_file import read_npz
from emo_export.errors import EmoExportError
from emo_export.files.staging import RESUME, staging
from emo_export.model.names import shape_of, slots

if TYPE_CHECKING:
    from emo_export.interfaces import PlacedRows
    from emo_export.line import Line
    from emo_export.model.reads import Reads

Arrays = Mapping[str, npt.NDArray[Any]]

RECIPE, STATE = "recipe.json", "state.npz"
ENTRY = 400  # bytes of an archive for each array: two headers of zip, one of npy, its name
READS = "reads"
_DAMAGE = (EmoExportError, OSError, ValueError, KeyError, TypeError, RecursionError)


class Progress:
    """Saves and restores lines; `folder` is where the files of the export are being made."""

    def __init__(self, folder: Path, recipe: Mapping[str, str], reads: Reads) -> None:
        self._folder, self._place, self._recipe = folder, folder.parent / RESUME, recipe
        self._reads = reads
        self._state: dict[str, npt.NDArray[Any]] | None = None
        self.needed = 0
        """Bytes that what is made still takes on this disk."""

    @property
    def blocks(self) -> int:
        """Blocks that an earlier run finished: 0 for none."""
        return 0 if self._state is None else int(self._state["blocks"])

    @property
    def is_saved(self) -> bool:
        """There is something that a later run can go on with."""
        return (self._place / STATE).is_file()

    def find(self) -> None:
        """Look for what an earlier run has saved, and put its files aside."""
        try:
            state = read_npz(self._place / STATE, "what an export saves of its progress")
            places = json.loads(str(state["files"]))
            if not all(map(self._is_inside, places)) or state["blocks"].shape:
                return
            for relative in places:
                path, aside = self._folder / relative, _aside(self._folder / relative)
                if not aside.is_file():
                    path.rename(aside)
        except _DAMAGE:
            return  # what can't be read is begun anew
        self._state = state

    def _is_inside(self, relative: object) -> bool:
        """Whether something is the name of a file of ours; another would be renamed."""
        if not isinstance(relative, str):
            return False
        path = (self._folder / relative).resolve()
        return path.is_relative_to(self._folder.resolve())

    def restore(self, lines: Sequence[Line]) -> int:
        """Bring lines, whose writers are open, to where the earlier run was; the next block.

        Raises EmoExportError where the disk has no room for what `save` will put there beside, and
        for a state that lacks what the lines need, which someone else has made.
        """
        # The new state lies beside the one before until it is whole.
        there = allocated(self._place) if self._place.is_dir() else 0
        final = self._folder.parent.parent / self._folder.name
        check_space(final, self.needed + max(0, 2 * _most_saved(lines) - there))
        state, self._state = self._state, None
        if state is None:
            return 0
        try:
            for key, file in _files(lines):
                file.adopt(_aside(file.path), state[key])
            self._reads.load(str(state[READS]))
            for prefix, load in _loaders(lines):
                size = len(prefix)
                load({name[size:]: state[name] for name in state if name.startswith(prefix)})
        except (KeyError, ValueError, TypeError) as error:
            raise EmoExportError(
                f"{self._place / STATE}: is not what an export saves of its progress ({error!r}); "
                "--no-resume starts anew"
            ) from error
        for line in lines:
            if line.choice is not None:
                for layer, kept in line.choice.chosen.items():
                    line.product.keep(layer, kept, line.choice.scale(layer))
        return int(state["blocks"])

    def save(self, blocks: int, lines: Sequence[Line]) -> None:
        """After so many blocks; what was saved before stays until this is whole."""
        state: dict[str, Any] = {"blocks": np.array(blocks)}
        state[READS] = np.array(self._reads.save())
        files = list(_files(lines))
        for key, file in files:
            state[key] = file.written()
        places = [file.path.relative_to(self._folder).as_posix() for _, file in files]
        state["files"] = np.array(json.dumps(places))
        for prefix, arrays in _savers(lines):
            state |= {prefix + name: array for name, array in arrays.items()}
        with writing(self._place):
            self._place.mkdir(exist_ok=True)
            if not (self._place / RECIPE).is_file():
                (self._place / RECIPE).write_text(json.dumps(dict(self._recipe)), "utf-8")
            new = self._place / f"{STATE}.new"
            with new.open("wb") as handle:
                np.savez(handle, **state)
                handle.flush()
                os.fsync(handle.fileno())
            new.replace(self._place / STATE)


@dataclass(frozen=True)
class Resuming:
    """What the files depend on, by what a user calls it: a later run with the same goes on.

    `reads` has the digests of what was read. Without `allowed` what an earlier run has left is
    removed.
    """

    recipe: Mapping[str, str]
    reads: Reads
    allowed: bool = True

    def wants(self, left: Path, on_stage: Callable[[str], None]) -> bool:
        """Whether to go on with a folder that was left; tells why not."""
        other = differing(left, self.recipe) if self.allowed else None
        if other:
            names = ", ".join(other)
            on_stage(f"not going on with the interrupted run, which had another {names}")
        return other == []


@contextmanager
def staged(
    out: Path,
    overwrite: bool,
    is_ours: Callable[[Path], bool],
    on_stage: Callable[[str], None],
    resuming: Resuming | None,
) -> Iterator[tuple[Path, Progress | None]]:
    """A hidden folder that becomes `out`, and what saves the work in it (None: nothing does)."""
    if resuming is None:
        with staging(out, overwrite, is_ours) as folder:
            folder.mkdir()
            yield folder, None
        return
    with staging(out, overwrite, is_ours, lambda left: resuming.wants(left, on_stage)) as folder:
        folder.mkdir(exist_ok=True)
        progress = Progress(folder, resuming.recipe, resuming.reads)
        progress.find()
        if progress.blocks:
            on_stage(f"going on after layer {progress.blocks - 1}, where a run was interrupted")
        try:
            yield folder, progress
        except (KeyboardInterrupt, SystemExit):
            if progress.is_saved:
                on_stage("interrupted; the same command goes on after the last whole layer")
            else:  # in the midst of the first save: nothing that is worth its place
                shutil.rmtree(folder.parent / RESUME, ignore_errors=True)
            raise


def differing(folder: Path, recipe: Mapping[str, str]) -> list[str] | None:
    """What of a recipe an earlier run had otherwise: none, some, or None for nothing to go on."""
    try:
        found = read_json(folder / RESUME / RECIPE)
        if not (folder / RESUME / STATE).is_file():
            return None
    except EmoExportError:
        return None
    return [key for key in {**found, **recipe} if found.get(key) != recipe.get(key)]


def _aside(path: Path) -> Path:
    return path.with_name(f"{path.name}.old")


def _files(lines: Sequence[Line]) -> Iterator[tuple[str, PlacedRows]]:
    for at, line in enumerate(lines):
        for number, output in enumerate(line.outputs):
            for index, file in enumerate(output.writer.placed()):
                yield f"written/{at}/{number}/{index}", file


def _most_saved(lines: Sequence[Line]) -> int:
    """Bytes of what is saved, at most: arrays have their size from the beginning, sums come."""
    arrays = [array.nbytes for _, found in _savers(lines) for array in found.values()]
    arrays += [file.written().nbytes for _, file in _files(lines)]
    sums = 0
    for line in lines:
        config, told = line.product.config, len(line.listeners) + len(line.outputs)
        for slot in slots(config):  # a sum of each column, a number of tokens
            sums += told * (4 * shape_of(slot, config)[-1] + 8 + 2 * ENTRY)
    return sum(arrays) + ENTRY * len(arrays) + sums


def _savers(lines: Sequence[Line]) -> Iterator[tuple[str, Arrays]]:
    for at, line in enumerate(lines):
        for number, listener in enumerate(line.listeners):
            yield f"heard/{at}/{number}/", listener.save()
        for number, output in enumerate(line.outputs):
            if output.own is not None:
                yield f"own/{at}/{number}/", output.own.save()
        if line.choice is not None:
            yield f"chosen/{at}/", line.choice.save()


def _loaders(lines: Sequence[Line]) -> Iterator[tuple[str, Callable[[Arrays], None]]]:
    for at, line in enumerate(lines):
        for number, listener in enumerate(line.listeners):
            yield f"heard/{at}/{number}/", listener.load
        for number, output in enumerate(line.outputs):
            if output.own is not None:
                yield f"own/{at}/{number}/", output.own.load
        if line.choice is not None:
            yield f"chosen/{at}/", line.choice.load
