"""Faults in the midst of commands that write: what is lost by them. It must be nothing.

    python -m tests.bench.faults

Kills, signals, full and broken disks at random moments of an export, an export that replaces an
older one, `prune`, a prepacked copy and reports; each is then run again and compared byte for byte
with what a run makes that nothing disturbs. Exit 1 where anything is lost. Needs gcc, for the
library that makes calls fail (tests/kit/faults.c), and root or user namespaces for small disks.
"""

from __future__ import annotations

import errno
import json
import random
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import click

from tests.bench.fault_places import places
from tests.kit.faulty import Fault, Preloaded
from tests.kit.paths import GOLDEN
from tests.kit.trials import INTERRUPTED, Bench, Command, Content, Row, content_of

TEXT = "def mean(values):\n    return sum(values) / len(values)\n" * 20
TO = ("--to", "gguf:q4_0", "--to", "onnx:int4")
HEADER = ("fault", "tried", "struck", "gone on with", "survived", "lost")


def commands(work: Path) -> dict[str, Command]:
    """By what they are called in the table. `work` gets the text that they read."""
    text = work / "text.txt"
    text.write_text(TEXT, "utf-8")
    chosen = ("--keep", "6", "--calibration", text, "--calibration-tokens", "256")
    judged = ("--heldout", text, "--heldout-tokens", "64")
    source = GOLDEN / "base"
    export = ("export", source, *chosen, *judged, *TO, "--rounding", "weighted", "-o")
    gptq = ("export", source, *chosen, *TO, "--no-golden", "-o")
    prune = ("prune", source, *chosen, *judged, "--max-shard-size", "1MB", "-o")
    return {
        "export": Command("export", "out", lambda place: (*export, place)),
        "gptq": Command("export with GPTQ", "out", lambda place: (*gptq, place)),
        "prune": Command(
            "prune",
            "out",
            lambda place: (*prune, place),
        ),
    }


def later_commands(work: Path, bench: Bench, all_of: dict[str, Command]) -> dict[str, Command]:
    """Those that need what an export made, which is kept in `work`."""
    old, made = work / "old", work / "made"
    for command, place in ((all_of["gptq"], old), (all_of["export"], made)):
        bench.known(command)
        (bench.fresh(command), bench.run(command), _moved(bench, command, place))
    export = all_of["export"]
    validate = ("validate", made, "--html")
    run = ("run", made / "onnx-int4", "-p", "a", "-n", "1", "--cache-prepacked", "--cache-dir")
    return {
        "overwrite": Command(
            "export --overwrite",
            "out",
            lambda place: (*export.words(place), "--overwrite"),
            old=old,
        ),
        "reports": Command(
            "reports of validate",
            "reports",
            lambda place: (*validate, place / "r.html", "--junit", place / "r.xml"),
            _whole_reports,
            old=_folder(work / "reports"),
            apart=True,
        ),
        "prepacked": Command(
            "run --cache-prepacked",
            "cache",
            lambda place: (*run, place),
            _copies,
        ),
    }


def _moved(bench: Bench, command: Command, place: Path) -> None:
    (bench.tmp.parent / "out" / command.name).rename(place)


def _folder(place: Path) -> Path:
    place.mkdir()
    return place


def _whole_reports(place: Path) -> Content:
    """Times and figures of a run differ; the end of each shows that it is whole."""
    ends = {".html": b"</html>", ".xml": b"</testsuites>"}
    found = {}
    for path in place.iterdir():
        if path.name.startswith("."):
            continue
        if not path.read_bytes().rstrip().endswith(ends[path.suffix]):
            raise AssertionError(f"{path} is cut")
        found[path.name] = ends[path.suffix]
    return found


def _copies(place: Path) -> Content:
    """Copies under their names; their record tells times."""
    found: dict[str, bytes] = {}
    for copy in place.glob("[!.]*"):
        content = content_of(copy)
        if "prepacked.json" not in content:
            raise AssertionError(f"{copy} has no record")
        found |= {name: data for name, data in content.items() if name != "prepacked.json"}
    return found


@dataclass(frozen=True)
class Tries:
    """One row to be: a fault, the command that it strikes, and how often."""

    command: str
    count: int
    name: str = ""
    error: int = 0
    signal: int = 0


def tries(kills: int, each: int) -> list[Tries]:
    """All of them; without a name it is SIGKILL at a moment of time."""
    kill, term, interrupt = signal.SIGKILL, signal.SIGTERM, signal.SIGINT
    found = [Tries("export", kills), Tries("gptq", each)]
    for command in ("export", "overwrite", "prune", "prepacked", "reports"):
        found.append(Tries(command, each, "SIGKILL", signal=kill))
        found.append(Tries(command, each, "disk full (ENOSPC)", error=errno.ENOSPC))
        found.append(Tries(command, each, "disk broken (EIO)", error=errno.EIO))
    for command in ("export", "overwrite"):
        found.append(Tries(command, each, "SIGTERM", signal=term))
        found.append(Tries(command, each, "SIGINT", signal=interrupt))
    return found


def rows(bench: Bench, work: Path, asked: Sequence[Tries], seed: int) -> Iterator[Row]:
    """A row for each."""
    found = commands(work)
    for one in asked:
        if one.command not in found:
            found |= later_commands(work, bench, found)
        rng = random.Random(f"{seed} {one}")
        if one.name:
            yield at_calls(bench, found[one.command], one, rng)
        else:
            yield at_moments(bench, found[one.command], one.count, rng)


def at_moments(bench: Bench, command: Command, count: int, rng: random.Random) -> Row:
    """SIGKILL after a random part of the time that an undisturbed run takes."""
    row = Row(f"SIGKILL at a random moment: {command.title}")
    seconds = bench.known(command)[3]
    while row.tried < count:
        fault = Fault(seconds=rng.uniform(0.02, 1.0) * seconds, signal=signal.SIGKILL)
        bench.try_once(command, fault, row, (-signal.SIGKILL,))
    return row


def at_calls(bench: Bench, command: Command, asked: Tries, rng: random.Random) -> Row:
    """A fault at random ones of the calls that change a file."""
    row = Row(f"{asked.name} at a random write, flush, rename or removal: {command.title}")
    calls = bench.known(command)[2]
    codes = (2,) if asked.error else (-asked.signal, INTERRUPTED)
    for at in sorted(rng.sample(range(1, calls + 1), min(asked.count, calls))):
        fault = Fault(at, error=asked.error, signal=asked.signal)
        bench.try_once(command, fault, row, codes)
    if row.tried and not row.struck:
        row.lost.append(f"{row.title}: no fault reached the command")
    return row


def table(found: Sequence[Row]) -> list[list[str]]:
    """Cells."""
    numbers = ((row.tried, row.struck, row.went_on, row.survived, len(row.lost)) for row in found)
    return [[row.title, *map(str, cells)] for row, cells in zip(found, numbers, strict=True)]


@click.command()
@click.option("--kills", default=100, show_default=True, help="SIGKILL at random moments.")
@click.option("--each", default=10, show_default=True, help="Of every other fault.")
@click.option("--seed", default=14, show_default=True)
@click.option("--part", default="0/1", show_default=True, help="N/OF: some of the rows.")
@click.option("--json", "as_json", is_flag=True)
def main(kills: int, each: int, seed: int, part: str, as_json: bool) -> None:
    """Try every fault, and print what was lost."""
    number, of = map(int, part.split("/"))
    found: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="emo-faults-") as name:
        work = Path(name).resolve()
        bench = Bench(Preloaded(work), work / "root")
        asked = tries(kills, each)[number::of]
        last = places(work) if number == of - 1 else ()
        for row in chain(rows(bench, work, asked, seed), last):
            found.append(row)
            click.echo(f"{row.title}: {row.tried} tried, {len(row.lost)} lost", err=True)
            for what in row.lost:
                click.echo(f"  {what}", err=True)
    cells = table(found)
    if as_json:
        click.echo(json.dumps({"seed": seed, "columns": HEADER, "rows": cells}))
    else:
        for line in (HEADER, *cells):
            click.echo("| " + " | ".join(line) + " |")
    lost = sum(len(row.lost) for row in found)
    click.echo(f"tried {sum(row.tried for row in found)}, lost {lost}", err=True)
    sys.exit(1 if lost else 0)


if __name__ == "__main__":
    main()
