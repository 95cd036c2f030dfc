"""Which ONNX Runtime opens which graph: export here, judge in an environment with an older one.

    python -m tests.bench.ort_versions make /tmp/graphs
    OLDER/bin/python -m tests.bench.ort_versions check /tmp/graphs    # numpy and onnxruntime only

`make` writes every configuration of tests.kit.synth in every target, with the logits of the
oracle or of the dequantised weights; `check` prints each target's worst mean KL and exits 1 when
one is above its limit or does not load.
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import numpy as np

LIMITS = {"f32": 1e-10, "int8": 5e-2, "int4": 5e-2}
"""Mean KL: untrained models, whose flat logits magnify the rounding of int8 activations."""


def make(folder: Path) -> None:
    """Write NAME/TARGET/ and NAME/TARGET.npz (ids, logits)."""
    from emo_export.errors import EmoExportError
    from emo_export.model.recipes import ONNX_RECIPES
    from tests.kit.exporting import case, dequantised_logits, exported
    from tests.kit.synth import CONFIGS

    for name in CONFIGS:
        made = case(name)
        (folder / name).mkdir(parents=True)
        for graph, recipes in ONNX_RECIPES.items():
            for type_name in recipes:
                target = f"onnx:{type_name}@{graph}"
                try:
                    place = exported(made.folder, target)
                except EmoExportError as error:
                    print(f"{name} {target}: {error}", file=sys.stderr)
                    continue
                want = made.logits
                if type_name != "f32":
                    want = dequantised_logits(made.folder, target, made.ids)
                stem = folder / name / f"{type_name}@{graph}"
                shutil.copytree(place, stem)
                np.savez(f"{stem}.npz", ids=made.ids, logits=want)
        make_plain(folder / name, name)


def make_plain(folder: Path, name: str) -> None:
    """Write f32@if-plain and int4@if-plain, which ONNX Runtime 1.21 opens, with their logits."""
    from emo_export.errors import EmoExportError
    from emo_export.model.checkpoint import Checkpoint
    from emo_export.model.product import Product
    from emo_export.reference.passes import logits
    from tests.kit.exporting import case, dequantised_source, export_plain

    made = case(name)
    checkpoint = Checkpoint.open(made.folder)
    for kind in ("f32", "int4"):
        stem, want = folder / f"{kind}@if-plain", made.logits
        try:
            scheme = export_plain(stem, made.folder, kind)
        except EmoExportError as error:
            print(f"{name} {kind}@if-plain: {error}", file=sys.stderr)
            continue
        if kind != "f32":
            source = dequantised_source(Product.whole(checkpoint), scheme)
            want = np.stack(logits(checkpoint.config, source, list(made.ids)))
        np.savez(f"{stem}.npz", ids=made.ids, logits=want)


def check(folder: Path) -> int:
    """Run every model that `make` left, the prompt at once and token by token."""
    import onnxruntime

    worst: dict[str, float] = {}
    failed: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*/*.npz")):
        data, target = np.load(file), file.stem
        try:
            found = max(_mean_kl(file.with_suffix(""), data, step) for step in (20, 1))
        except Exception as error:  # ONNX Runtime's share no other base class
            failed.setdefault(target, []).append(f"{file.parent.name}: {str(error)[:160]}")
            continue
        worst[target] = max(worst.get(target, 0.0), found)
        if not found <= LIMITS[target.split("@")[0]]:
            failed.setdefault(target, []).append(f"{file.parent.name}: mean KL {found:.1e}")
    print(f"onnxruntime {onnxruntime.__version__}")
    for target in sorted({*worst, *failed}):
        wrong = failed.get(target, [])
        kl = f"{worst[target]:.1e}" if target in worst else "-"
        print(f"{target}: worst mean KL {kl}, {len(wrong)} failed {wrong[:1]}")
    return 1 if failed else 0


def _mean_kl(folder: Path, data: np.lib.npyio.NpzFile, step: int) -> float:
    import json

    import onnxruntime

    config = json.loads((folder / "config.json").read_text("utf-8"))
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = 1, 4
    model = str(folder / "model.onnx")
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    names = [value.name for value in session.get_inputs()][2:]
    rows = []
    for ids in data["ids"]:
        shape = (1, config["num_key_value_heads"], 0, config["head_dim"])
        past = [np.zeros(shape, np.float32)] * len(names)
        for start in range(0, len(ids), step):
            stop = min(start + step, len(ids))
            feeds = dict(zip(names, past, strict=True))
            feeds |= {"input_ids": ids[None, start:stop], "attention_mask": np.ones((1, stop), int)}
            logits, *past = session.run(None, feeds)
            rows.append(logits[0])
    found = np.concatenate(rows).astype(np.float64)
    want = data["logits"].reshape(found.shape).astype(np.float64)
    p, q = (x - np.logaddexp.reduce(x, axis=-1, keepdims=True) for x in (want, found))
    return float((np.exp(p) * (p - q)).sum(-1).mean())


if __name__ == "__main__":
    command, path = sys.argv[1:]
    if command == "make":
        make(Path(path))
    else:
        sys.exit(check(Path(path)))
