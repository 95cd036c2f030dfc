"""Whether a change to the house changed what is exported: digests of every target's files.

    python -m tests.bench.same_bytes --record before.json     # on the commit to compare with
    python -m tests.bench.same_bytes --against before.json    # on the changed one

Exports emo-nano and the golden checkpoints to every type and graph, with and without importance,
through the command line alone, so that the same script runs on both sides of any change inside.
Exit code 1 where a digest differs, or a target is on one side only.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

TOP = Path(__file__).parents[2]
NANO = TOP / "examples" / "emo-nano"
CALIBRATION = NANO / "calibration" / "python.jsonl"
MODEL_FILES = (".gguf", ".onnx", ".data")
COMMAND = [str(Path(sys.executable).with_name("emo-export"))]

PLAIN = (
    "f32 f16 bf16 q8_0 q6_k q5_k_m q5_k_s q5_1 q5_0 q4_k_m q4_k_s q4_1 q4_0 iq4_nl iq4_xs mxfp4 "
    "q3_k_l q3_k_m q3_k_s iq3_s iq3_xxs q2_k iq2_s"
).split()
MEASURED = ["iq2_xs", "iq2_xxs"]
"""Types that ggml packs with importance only."""
GRAPHS = ("f32 int8 int4 f32@if int8@if int4@if f32@standard int8@standard").split()

ONNX = [f"onnx:{name}" for name in GRAPHS]
RUNS: Sequence[tuple[str, list[str], list[str]]] = (
    ("plain", [], [*(f"gguf:{name}" for name in PLAIN), *ONNX]),
    (
        "importance",
        ["--calibration", str(CALIBRATION), "--calibration-tokens", "2048"],
        [*(f"gguf:{name}" for name in (*PLAIN, *MEASURED)), *ONNX],
    ),
    ("glm4moe", ["--arch", "glm4moe"], ["gguf:f32", "gguf:q8_0", "gguf:q4_0"]),
    (
        "overrides",
        ["--tensor-type", "head=int4", "--tensor-type", "attention=q5_k", "--block-size", "32"],
        ["gguf:q4_k_m", "onnx:int4", "onnx:int8@if"],
    ),
    (
        "options",
        ["--plain-attention", "--last-logits", "--accuracy-level", "0", "--context", "64"],
        ["onnx:int4@if", "onnx:int4"],
    ),
)


def checkpoints() -> dict[str, Path]:
    """emo-nano and every golden checkpoint, by name."""
    golden = sorted(p.parent for p in (TOP / "tests" / "golden").glob("*/config.json"))
    return {"emo-nano": NANO} | {path.name: path for path in golden}


def export(checkpoint: Path, out: Path, options: list[str], specs: list[str]) -> str:
    """Export; the last line of what was refused, or an empty string."""
    targets = [part for spec in specs for part in ("--to", spec)]
    done = subprocess.run(
        [*COMMAND, "export", str(checkpoint), "-o", str(out), "--no-golden", *options, *targets],
        capture_output=True,
        text=True,
    )
    if done.returncode not in (0, 2):
        raise SystemExit(f"{checkpoint.name} {specs}: exit {done.returncode}\n{done.stderr}")
    return done.stderr.strip().splitlines()[-1] if done.returncode else ""


def digests(folder: Path) -> Iterator[tuple[str, str]]:
    """(path, SHA-256) of the files that hold a model."""
    for path in sorted(folder.rglob("*")):
        if path.suffix in MODEL_FILES and path.is_file():
            with path.open("rb") as handle:
                name = path.relative_to(folder).as_posix()
                yield name, hashlib.file_digest(handle, "sha256").hexdigest()


def measure() -> dict[str, str]:
    """`checkpoint/run/file` -> digest, or `refused` for a target that is."""
    found: dict[str, str] = {}
    for name, checkpoint in checkpoints().items():
        for run, options, specs in RUNS:
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder) / checkpoint.name
                if not export(checkpoint, out, options, specs):
                    found |= {f"{name}/{run}/{file}": digest for file, digest in digests(out)}
                    continue
                for spec in specs:  # something is refused: each by itself
                    alone = Path(folder) / spec.replace(":", "-") / checkpoint.name
                    if export(checkpoint, alone, options, [spec]):
                        found[f"{name}/{run}/{spec}"] = "refused"
                    else:
                        found |= {f"{name}/{run}/{file}": d for file, d in digests(alone)}
            print(f"{name} {run}: {len(found)} so far", file=sys.stderr)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--record", type=Path, help="write the digests here")
    parser.add_argument("--against", type=Path, help="compare with digests recorded before")
    options = parser.parse_args()
    found = measure()
    if options.record:
        options.record.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    if options.against:
        before = json.loads(options.against.read_text(encoding="utf-8"))
        differing = [
            key for key in before.keys() | found.keys() if before.get(key) != found.get(key)
        ]
        for key in sorted(differing):
            print(f"differs: {key}: {before.get(key)} -> {found.get(key)}")
        print(f"{len(found)} files and refusals, {len(differing)} differ")
        raise SystemExit(bool(differing))


if __name__ == "__main__":
    main()
