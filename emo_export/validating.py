"""Judge what was exported: the targets of a package, here or on devices, one `Result` each."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from emo_export.base.counted import counted
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.files.manifest import BESIDE, PRUNED
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.target_entry import TargetEntry
from emo_export.files.verifying import Problem, verify
from emo_export.judging.here import judge
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result, refused
from emo_export.runtimes.devices.far.machine import machine_facts
from emo_export.runtimes.opening import missing_engine
from emo_export.runtimes.package import chosen_targets
from emo_export.spec import Spec

if TYPE_CHECKING:
    from emo_export.runtimes.devices.options import DeviceOptions

GOLDEN = "golden.npz"
Targets = Mapping[str, TargetEntry]
Unreadable = Mapping[str, EmoExportError]
Reference = Callable[[Path, Targets, Golden | None], tuple[Golden, Unreadable]]
"""(folder, targets, stored golden or None) -> one computed now, and the targets it can't be for."""


Judging = Callable[[Spec, Path, Golden, int | None, str | None], Result]


def validate_here(
    path: Path,
    only: Sequence[str] = (),
    threads: int | None = None,
    reference: Reference | None = None,
    repeat: Sequence[str] = (),
    on_stage: Callable[[str], None] = lambda text: None,
    kv_cache: str | None = None,
    judging: Judging | None = None,
) -> list[Result]:
    """Judge the targets that a path means with this machine's engines, one after the other.

    `path` is a folder that export made (`only`: some of its targets) or a single model. What the
    engines compute is compared with golden.npz, or with what `reference` makes. `repeat` are the
    options that the results' command lines get. With a `kv_cache`, one of KV_CACHES, what
    is compared with the float original has it. `judging` opens an engine: in this process (the
    default), or, as `judge_apart`, in one of its own. A target that can't be judged keeps no other
    from it. Raises EmoExportError when there is nothing to compare with.
    """
    folder, targets = chosen_targets(path, only)
    stored = Golden.load(folder / GOLDEN) if (folder / GOLDEN).is_file() else None
    lacking = {
        name: text for name, entry in targets.items() if (text := missing_engine(entry.spec.family))
    }
    ready = {spec: entry for spec, entry in targets.items() if spec not in lacking}
    golden = stored
    unreadable: Unreadable = {}
    if reference is not None and ready:
        golden, unreadable = reference(folder, ready, stored)
    damage = damaged(folder, ready)
    machine = machine_facts()
    results = []
    for spec, entry in targets.items():
        if spec in lacking:
            result = refused(spec, MissingDependencyError(lacking[spec]))
        elif spec in unreadable:
            result = refused(spec, unreadable[spec])
        elif golden is None:
            raise EmoExportError(
                f"{path}: there is no {GOLDEN} in {folder}; "
                + (
                    "what prune made of a package has none, and its experts are not those of a "
                    "checkpoint: export --keep from the checkpoint makes one that can be judged"
                    if _is_pruned(path)
                    else "name the original with --reference CHECKPOINT"
                )
            )
        else:
            try:
                on_stage(f"validating {counted(spec, targets)}")
                result = (judging or judge)(
                    entry.spec, folder / entry.path, golden, threads, kv_cache
                )
            except EmoExportError as error:
                result = refused(spec, error)
        again = _command(path, spec, repeat)
        result = replace(result, machine=machine, command=again, repeat=again)
        results.append(replace(result, damage=damage.get(spec, ())))
    return results


def _is_pruned(path: Path) -> bool:
    """Whether `prune` made it of a package."""
    return (path / PRUNED).is_file() or path.with_name(path.name + BESIDE).is_file()


def validate_there(
    path: Path,
    only: Sequence[str],
    devices: DeviceOptions,
    on_stage: Callable[[str], None] = lambda text: None,
) -> list[Result]:
    """Judge the targets that a path means on devices, each as `validate --device` does.

    Raises EmoExportError for a path without a manifest and a reference.
    """
    from emo_export.runtimes.devices.judging import judge_devices

    folder, targets = chosen_targets(path, only)
    if not (folder / MANIFEST).is_file() or not (folder / GOLDEN).is_file():
        raise EmoExportError(
            f"{path}: a device needs a folder that export made, with {MANIFEST} and {GOLDEN}; "
            "export the checkpoint without --no-golden"
        )
    results = judge_devices(folder, targets, damaged(folder, targets), devices, on_stage)
    return [
        replace(r, repeat=_command(path, r.target, devices.arguments(r.device))) for r in results
    ]


def validate_new(
    folder: Path, targets: Targets, golden: Golden, on_stage: Callable[[str], None]
) -> list[Result]:
    """Judge every target of a folder that is being made, as nothing but itself can be wrong.

    Raises EmoExportError when one can't be judged.
    """
    machine, results = machine_facts(), []
    for spec, entry in targets.items():
        on_stage(f"validating {counted(spec, targets)}")
        result = judge(entry.spec, folder / entry.path, golden)
        results.append(replace(result, machine=machine))
    return results


def damaged(folder: Path, targets: Targets) -> Mapping[str, tuple[Problem, ...]]:
    """Which files of each target, or golden.npz, are not the ones that export wrote.

    Token ids that happen not to use an expert can't show that it was damaged; digests can.
    """
    if not targets or not (folder / MANIFEST).is_file():
        return {}
    return damage_among(verify(folder), targets)


def damage_among(
    problems: Sequence[Problem], targets: Targets
) -> Mapping[str, tuple[Problem, ...]]:
    """Which problems of a folder's files are of each target, or of golden.npz."""
    found = {}
    for spec, entry in targets.items():
        judged = {PurePosixPath(path) for path in (*entry.paths, GOLDEN)}
        mine = [one for one in problems if judged & _with_folders(PurePosixPath(one.path))]
        if mine:
            found[spec] = tuple(mine)
    return found


def _with_folders(path: PurePosixPath) -> set[PurePosixPath]:
    return {path, *path.parents}


def _command(path: Path, spec: str, options: Sequence[str]) -> str:
    """The command line that judges one target of a path."""
    several = (path / MANIFEST).is_file()
    target = ["--target", spec] if several else []
    return shlex.join(["emo-export", "validate", str(path), *target, *options])
