"""The work of `compare`: figures of packages put together, the table, the picture."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console

from emo_export.base.disk import size_of
from emo_export.base.json_file import read_json
from emo_export.bench.bench import Settings
from emo_export.cli.bench import BenchOptions, measured
from emo_export.cli.output import say
from emo_export.errors import EmoExportError
from emo_export.files.manifest import NAME as MANIFEST
from emo_export.files.manifest import Manifest
from emo_export.parity.golden import ORIGINAL
from emo_export.parity.result import Result
from emo_export.report.compare import (
    LEGEND,
    Compared,
    Speed,
    as_json,
    compare_table,
    notes,
)
from emo_export.report.html.compare_page import check_picture, write_comparison
from emo_export.runtimes.families import LIGHT
from emo_export.runtimes.package import chosen_targets

DEFAULT = Settings(prefill=512, decode=64, depth=32, rounds=3, threads=1)
"""The defaults of `bench`: at how many positions a step is looked at."""


def run_compare(
    paths: Sequence[Path],
    only: Sequence[str],
    speed: Path | None,
    measures: bool,
    output: Path | None,
    in_json: bool,
    out: Console,
) -> None:
    """Print the table or JSON, and draw it where asked to."""
    if speed is not None and measures:
        raise EmoExportError("--speed and --bench: give one of them")
    if output is not None:
        check_picture(output)
    names = _names(paths)
    found = {path: _targets(path, only) for path in paths}
    speeds: Mapping[Path, Speed] = {}
    positions = DEFAULT.positions
    if speed is not None:
        speeds, positions = _speeds(read_json(speed), str(speed))
    elif measures:
        options = BenchOptions(
            tuple(only), None, None, 512, 64, 32, 3, None, None, False, False, None
        )
        speeds, positions = _speeds(measured(paths, options).as_dict(), "bench")
    rows = [
        row
        for path, targets in found.items()
        for row in _rows(path, names[path], targets, speeds, positions)
    ]
    if speed is not None and not any(row.speed for row in rows):
        raise EmoExportError(f"{speed}: has none of these targets: {', '.join(map(str, speeds))}")
    if output is not None:
        write_comparison(output, rows, positions)
        say(f"wrote {output}")
    if in_json:
        click.echo(json.dumps(as_json(rows, positions), indent=2, allow_nan=False))
        return
    out.print(compare_table(rows))
    out.print(LEGEND)
    for note in notes(rows):
        out.print(f"note: {note}", style="yellow")


def _names(paths: Sequence[Path]) -> dict[Path, str]:
    """What tells the packages apart: the folder's name, or the path as it was given."""
    if len({path.resolve() for path in paths}) < len(paths):
        raise EmoExportError("a package was given twice; give each once")
    ends = [path.resolve().name for path in paths]
    return {
        path: name if ends.count(name) == 1 else str(path)
        for path, name in zip(paths, ends, strict=True)
    }


def _targets(path: Path, only: Sequence[str]) -> Mapping[str, Path]:
    """The path of each target of a package."""
    if not (path / MANIFEST).is_file():
        raise EmoExportError(
            f"{path}: has no {MANIFEST}; give folders that emo-export export made (of --domain, "
            "each domain's own)"
        )
    folder, targets = chosen_targets(path, only)
    return {spec: folder / entry.path for spec, entry in targets.items()}


def _rows(
    path: Path,
    name: str,
    targets: Mapping[str, Path],
    speeds: Mapping[Path, Speed],
    positions: float,
) -> list[Compared]:
    judged, manifest = _judged(path), Manifest.load(path)
    return [
        _compared(name, spec, manifest, place, judged.get(spec), speeds, positions)
        for spec, place in targets.items()
    ]


def _judged(path: Path) -> dict[str, Result]:
    """Target -> its result in parity.json, of those that were judged."""
    file = path / "parity.json"
    if not file.is_file():
        return {}
    stated = read_json(file)
    if not isinstance(stated, dict) or not isinstance(stated.get("targets"), list):
        raise EmoExportError(f"{file}: is not a parity report of emo-export; validate anew")
    results = [Result.from_dict(one, f"{file}: target") for one in stated["targets"]]
    return {result.target: result for result in results}


def _compared(
    package: str,
    spec: str,
    manifest: Manifest,
    place: Path,
    result: Result | None,
    speeds: Mapping[Path, Speed],
    positions: float,
) -> Compared:
    row = next((r for r in result.rows if r.against == ORIGINAL), None) if result else None
    ratio = None
    if result is not None and result.losses is not None:
        losses = result.losses.both or result.losses.bits
        ratio = losses[-1].ratio if losses else None
    family = LIGHT[manifest.targets[spec].spec.family]
    return Compared(
        package,
        spec,
        row.measured.kl_mean if row else None,
        row.intervals.get("kl_mean") if row else None,
        ratio,
        f"{result.heldout_source} ({result.heldout_tokens} tokens)" if result else "",
        manifest.origin.source["pruning"] is not None,
        size_of(place),
        family.per_token(place).at(positions),
        speeds.get(place.resolve()),
    )


def _speeds(report: Any, where: str) -> tuple[dict[Path, Speed], float]:
    """Path of a target -> its speed, and the positions at which `bench --json` measured it.

    A model whose file has another size now is refused: it is not the one that was measured.
    """
    try:
        positions = Settings(**report["settings"]).positions
        found = {}
        for model in report["models"]:
            path = Path(model["path"]).resolve()
            speed = Speed(**model["figures"]["decode"])
            if path.exists() and size_of(path) != model["bytes"]:
                raise EmoExportError(
                    f"{where}: {path} had {model['bytes']} bytes when it was measured and has "
                    f"{size_of(path)} now; measure it again"
                )
            found[path] = speed
    except (KeyError, TypeError, AttributeError) as error:
        raise EmoExportError(f"{where}: is not what bench --json prints ({error!r})") from error
    return found, positions
