"""Ours beside llama-quantize: the same model, the same calibration text, the same held-out text.

    python -m tests.bench.peers [--types q4_k_m,q3_k_m] [--tokens 12000] [--json]

llama-imatrix measures importance over emo-nano's calibration text on our float32 GGUF, and
llama-quantize packs that file with its defaults. We export at the same type with --calibration of
the same text. Each tool is also given the other's importance, so that what the recipe does and
what the importance does can be told apart. All files are judged by the same engine and code.
Exit 1 when ours is larger, or its mean KL is more than 0.8 of llama-quantize's.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import click
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from emo_export.model.importance import IMATRIX
from emo_export.text.documents import read_documents
from emo_export.text.places import find_texts
from tests.bench.quality import (
    CALIBRATION,
    Original,
    Quality,
    export,
    measure,
    measure_exact,
    original,
    workspace,
)
from tests.kit.llama_tools import LlamaTools, tools

MOST_RATIO = 0.8
ALL_TOKENS = 1_000_000
PEER, OURS = "llama-quantize", "emo-export"
LLAMA_IMATRIX, CALIBRATED = "llama-imatrix", "--calibration"
WIDTH = 100


@dataclass(frozen=True)
class Entry:
    """One file: who packed it with whose importance, and how far it is from the original.

    `shipped` is llama.cpp on the file, `exact` on its float32 twin.
    """

    type: str
    packed_by: str
    importance: str
    nbytes: int
    shipped: Quality
    exact: Quality


@dataclass(frozen=True)
class Verdict:
    """Ours against llama-quantize's defaults: ratios of mean KL, and of bytes."""

    type: str
    shipped: float
    exact: float
    size: float

    @property
    def passed(self) -> bool:
        """No larger, and near enough to the original either way."""
        return max(self.shipped, self.exact) <= MOST_RATIO and self.size <= 1


@click.command()
@click.option("--types", default="q4_k_m,q3_k_m", show_default=True)
@click.option("--tokens", default=12000, show_default=True, help="Of held-out text.")
@click.option("--json", "as_json", is_flag=True)
def main(types: str, tokens: int, as_json: bool) -> None:
    """Measure both on emo-nano; exit 1 when ours is larger or not clearly nearer."""
    started = time.monotonic()
    found, names = tools(), types.split(",")
    with workspace("peers") as folder:
        files = list(_pack(found, names, folder))
        _say(f"packed after {time.monotonic() - started:.0f} s; now the float original")
        reference = original(tokens)
        entries = [_judge(*file, reference) for file in files]
    verdicts = [_verdict(name, entries) for name in names]
    passed = all(verdict.passed for verdict in verdicts)
    if as_json:
        content = {"tools": found.version, "tokens": reference.tokens, "passed": passed}
        content |= {"files": [asdict(e) for e in entries], "ratios": [asdict(v) for v in verdicts]}
        click.echo(json.dumps(content))
    else:
        _show(entries, verdicts, f"llama.cpp {found.version}, {reference.tokens} held-out tokens")
    _say(f"{time.monotonic() - started:.0f} s")
    sys.exit(0 if passed else 1)


def _pack(
    found: LlamaTools, names: list[str], folder: Path
) -> Iterator[tuple[str, str, str, Path]]:
    """Every file: (type, who packed it, whose importance, path)."""
    text = folder / "calibration.txt"
    documents = [d.text for file in find_texts([CALIBRATION]).files for d in read_documents(file)]
    text.write_text("\n".join(documents), "utf-8")
    specs = [word for name in names for word in ("--to", f"gguf:{name}")]
    _say("emo-export, with importance of its own")
    collect = ("--calibration", text, "--calibration-tokens", ALL_TOKENS)
    export(folder / "ours", "--to", "gguf:f32", *specs, *collect)
    source = folder / "ours" / "model-F32.gguf"
    _say("llama-imatrix")
    theirs = folder / "llama-imatrix.gguf"
    found.run("llama-imatrix", "-m", source, "-f", text, "-o", theirs, "--no-ppl", "-c", 512)
    _say("emo-export, with the importance of llama-imatrix")
    export(folder / "mixed", *specs, "--imatrix", theirs)
    matrices = {LLAMA_IMATRIX: theirs, CALIBRATED: folder / "ours" / IMATRIX}
    for name in names:
        for importance, matrix in matrices.items():
            path = folder / f"{name}{importance}.gguf"
            _say(f"llama-quantize {name}, with {importance}")
            found.run("llama-quantize", "--imatrix", matrix, source, path, name.upper())
            yield name, PEER, importance, path
        yield name, OURS, LLAMA_IMATRIX, folder / "mixed" / f"model-{name.upper()}.gguf"
        yield name, OURS, CALIBRATED, folder / "ours" / f"model-{name.upper()}.gguf"


def _judge(name: str, packed_by: str, importance: str, path: Path, reference: Original) -> Entry:
    shipped, exact = measure(path, reference), measure_exact(path, reference)
    _say(f"{name} by {packed_by} with {importance}: KL {shipped.kl:.5f}, exact {exact.kl:.5f}")
    return Entry(name, packed_by, importance, path.stat().st_size, shipped, exact)


def _peer(name: str, entries: list[Entry]) -> Entry:
    """What llama-quantize makes of its own tools' importance."""
    wanted = (name, PEER, LLAMA_IMATRIX)
    return next(e for e in entries if (e.type, e.packed_by, e.importance) == wanted)


def _ratios(entry: Entry, entries: list[Entry]) -> Verdict:
    peer = _peer(entry.type, entries)
    return Verdict(
        entry.type,
        entry.shipped.kl / peer.shipped.kl,
        entry.exact.kl / peer.exact.kl,
        entry.nbytes / peer.nbytes,
    )


def _verdict(name: str, entries: list[Entry]) -> Verdict:
    wanted = (name, OURS, CALIBRATED)
    ours = next(e for e in entries if (e.type, e.packed_by, e.importance) == wanted)
    return _ratios(ours, entries)


def _show(entries: list[Entry], verdicts: list[Verdict], title: str) -> None:
    out = Console(width=WIDTH, highlight=False)
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for heading in ("type", "packed by", "importance"):
        table.add_column(heading)
    for heading in ("MB", "KL", "ratio", "exact KL", "ratio", "top-1", "perplexity"):
        table.add_column(heading, justify="right")
    for entry in entries:
        ratio = _ratios(entry, entries)
        table.add_row(
            entry.type,
            entry.packed_by,
            entry.importance,
            f"{entry.nbytes / 1e6:.3f}",
            f"{entry.shipped.kl:.5f}",
            f"{ratio.shipped:.2f}",
            f"{entry.exact.kl:.5f}",
            f"{ratio.exact:.2f}",
            f"{entry.shipped.top1:.1%}",
            f"x{entry.shipped.perplexity_ratio:.4f}",
        )
    out.print(table)
    for verdict in verdicts:
        word = "within" if verdict.passed else "NOT WITHIN"
        out.print(
            f"{verdict.type}: KL {verdict.shipped:.2f} of llama-quantize's ({verdict.exact:.2f} "
            f"with exact activations) at {verdict.size:.4f} of its bytes: {word} {MOST_RATIO}"
        )


def _say(text: str) -> None:
    click.echo(text, err=True)


if __name__ == "__main__":
    main()
