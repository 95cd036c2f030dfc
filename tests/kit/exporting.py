"""Exports and references that several test modules share; each is made once for the session."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.tokenizer import read_tokenizer
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.converters.onnx.formats import Float32
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.converters.onnx.writer import OnnxWriter
from emo_export.interfaces import Format, Packed, Runtime, TensorDecl, Writer
from emo_export.line import Line, Output
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import ImportanceMatrix
from emo_export.model.names import Role, Slot
from emo_export.model.product import Product
from emo_export.model.recipes import Part
from emo_export.model.scheme import QuantScheme
from emo_export.pipeline import stream
from emo_export.reference.calibrate import Calibration
from emo_export.reference.passes import Rows, logits
from emo_export.spec import GGUF, ONNX, Spec
from tests.kit.oracle import oracle_logits
from tests.kit.synth import CONFIGS, make_checkpoint
from tests.kit.workspace import computed_once, made_once

Array = npt.NDArray[Any]

# On matrices this small, threads wait for each other at spin locks: ten times slower when other
# work shares the cores.
torch.set_num_threads(1)

TIGHT = 1e-10  # mean KL of float32 against the oracle; 5e-13 was measured


def export_to(
    folder: Path,
    checkpoint_path: Path,
    gguf: Sequence[str] = (),
    onnx: Sequence[str] = (),
    accuracy_level: int = 4,
    last_only: bool = False,
) -> dict[str, Path]:
    """Export in one pass through the pipeline; answers target -> file (GGUF) or folder (ONNX)."""
    product = open_product(checkpoint_path)
    config, context = product.config, product.config.context_length()
    folder.mkdir(parents=True, exist_ok=True)
    made = {f"gguf:{t}": folder / f"model-{t}.gguf" for t in gguf}
    made |= {f"onnx:{t}": folder / f"onnx-{t}" for t in onnx}
    writers: list[Writer] = [
        GgufWriter(
            made[f"gguf:{t}"],
            config,
            gguf_scheme(t, config),
            tokenizer=read_tokenizer(checkpoint_path, config),
            model_name="test",
            context=context,
        )
        for t in gguf
    ]
    for t in onnx:
        name = f"onnx:{t}"
        scheme, place = onnx_scheme(Spec.parse(name), config), made[name]
        settings: dict[str, int] = {"context": context, "accuracy_level": accuracy_level}
        settings["last_only"] = last_only
        writers.append(OnnxWriter(place, product, scheme, **settings))
    write_all(product, *writers)
    return made


def export_plain(folder: Path, checkpoint_path: Path, kind: str) -> QuantScheme:
    """KIND@if for ONNX Runtime 1.21: attention spelt out, int4 everywhere if at all."""
    product = open_product(checkpoint_path)
    config = product.config
    changed = {} if kind == "f32" else dict.fromkeys(set(Part) - {Part.ROUTER, Part.VECTOR}, kind)
    scheme = onnx_scheme(Spec(ONNX, kind, "if"), config, changed)
    settings = {"context": config.context_length(), "accuracy_level": 4}
    writer = OnnxWriter(folder, product, scheme, plain_attention=True, **settings)
    write_all(product, writer)
    return scheme


def write_all(product: Product, *writers: Writer) -> None:
    """Open the writers, push every weight of a product to them, close them."""
    for writer in writers:
        writer.open()
    stream([Line(product, [Output(writer) for writer in writers])])
    for writer in writers:
        writer.close()


def open_product(path: Path) -> Product:
    """A checkpoint, all of it."""
    return Product.whole(Checkpoint.open(path))


def dequantised_source(
    product: Product, scheme: QuantScheme, importance: ImportanceMatrix | None = None
) -> Rows:
    """What a scheme makes of the weights, computed without a file: a check on reading files back.

    A graph's scheme has factors (`Scaled`), which its dequantising divides out.
    """

    def read(slot: Slot, start: int, stop: int) -> Array:
        if slot.role == Role.HEAD and product.config.tie_word_embeddings:
            slot = Slot(Role.EMBED)
        form = scheme.format_of(slot)
        weights = None if importance is None else importance.row(slot)
        return form.dequantize(form.quantize(product.rows(slot, start, stop), weights))

    return read


@functools.cache
def exported(checkpoint: Path, target: str) -> Path:
    """The file or folder of one target such as `gguf:q4_0`, made when it is first asked for."""
    family, _, name = target.partition(":")
    make = functools.partial(export_to, checkpoint_path=checkpoint, **{family: (name,)})
    folder = made_once(f"{checkpoint.name}-{target}", make)
    return folder / (f"model-{name}.gguf" if family == GGUF else f"onnx-{name}")


@dataclass(frozen=True)
class Case:
    """A synthetic checkpoint, token ids (n, T), and the oracle's logits (n, T, V) and routers."""

    folder: Path
    ids: Array
    logits: Array
    routers: list[Array]


@functools.cache
def case(name: str) -> Case:
    """One entry of tests.kit.synth.CONFIGS."""
    return case_of(name, CONFIGS[name])


def case_of(name: str, settings: Mapping[str, Any]) -> Case:
    """A checkpoint with these settings; the name tells it from all others."""
    folder = made_once(name, functools.partial(make_checkpoint, **settings))
    ids = np.random.default_rng(11).integers(0, 500, (2, 20))

    def compute() -> dict[str, Array]:
        logits, routers = oracle_logits(folder, ids)
        return {"logits": logits} | {str(layer): each for layer, each in enumerate(routers)}

    stored = computed_once(f"{name}-oracle", compute)
    return Case(folder, ids, stored.pop("logits"), list(stored.values()))


def scheme_of(product: Product, target: str) -> QuantScheme:
    """The scheme of `gguf:TYPE` or `onnx:TYPE`."""
    spec = Spec.parse(target)
    if spec.family == ONNX:
        return onnx_scheme(spec, product.config)
    return gguf_scheme(spec.type, product.config)


@functools.cache
def _dequantised(path: Path, target: str, ids: bytes, width: int) -> Array:
    def compute() -> dict[str, Array]:
        product = open_product(path)
        source = dequantised_source(product, scheme_of(product, target))
        sequences = np.frombuffer(ids, np.int64).reshape(-1, width)
        return {"logits": np.stack(logits(product.config, source, list(sequences)))}

    digest = hashlib.sha256(f"{path} {width} ".encode() + ids).hexdigest()[:16]
    return computed_once(f"dequantised-{target}-{digest}", compute)["logits"]


def dequantised_logits(path: Path, target: str, ids: Array) -> Array:
    """What the torch reference computes with the weights that a target stores: (n, T, V)."""
    return _dequantised(path, target, ids.astype(np.int64).tobytes(), ids.shape[1])


def kl(reference: Array, found: Array) -> Array:
    """KL(reference || found) of each position, in nats, apart from emo_export.parity.golden."""
    p, q = (
        x - np.logaddexp.reduce(x, axis=-1, keepdims=True)
        for x in (reference.astype(np.float64), found.astype(np.float64))
    )
    return np.asarray((np.exp(p) * (p - q)).sum(-1))


def prefill(runtime: Runtime, ids: Array) -> Array:
    """Each sequence of (n, T) in one call."""
    return in_pieces(runtime, ids, [ids.shape[1]])


def steps(runtime: Runtime, ids: Array) -> Array:
    """Each sequence of (n, T) token by token through the KV cache."""
    return in_pieces(runtime, ids, [1] * ids.shape[1])


def in_pieces(runtime: Runtime, ids: Array, sizes: Sequence[int]) -> Array:
    """Each sequence of (n, T) in calls of these sizes."""
    edges = np.cumsum(sizes)[:-1]
    rows = []
    for row in ids:
        runtime.reset()
        rows.append(np.concatenate([runtime.forward(piece) for piece in np.split(row, edges)]))
    return np.stack(rows)


def assert_same(reference: Array, found: Array, mean_kl: float) -> None:
    """Mean KL within a limit, and the same most likely token everywhere."""
    assert np.isfinite(found).all()
    assert kl(reference, found).mean() <= mean_kl
    np.testing.assert_array_equal(found.argmax(-1), reference.argmax(-1))


class Idle:
    """A writer for a pass that only calibrates: every matrix stays float32, nothing is written."""

    target = "idle"

    def declarations(self) -> Sequence[TensorDecl]:
        return []

    def format_of(self, slot: Slot) -> Format:
        return Float32()

    def open(self) -> None:
        return

    def outline(self) -> None:
        return

    def write(self, slot: Slot, start: int, packed: Packed) -> None:
        return

    def close(self) -> Sequence[Path]:
        return []

    def abort(self) -> None:
        return


def run_calibration(product: Product, calibration: Calibration) -> None:
    """A pass that only calibrates, as for quantising, and writes nothing."""
    line = Line(product, [Output(Idle(), calibration)], [calibration])
    stream([line])
