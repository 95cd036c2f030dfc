"""Which arithmetic ONNX Runtime has for weights of few bits on this CPU, told from its results.

At accuracy level 4 a kernel may round the activations to int8, and does where the CPU has the
instructions for it; no call tells whether. So the operators are run on small fixed matrices, and
what comes out is held against each arithmetic. Sources: onnxruntime `ContribOperators.md`
(MatMulNBits, QMoE), MLAS `qnbitgemm` (a scale per block of activations), KleidiAI `qai8dxp` (scale
and zero point per token; it stores the weights' scales as bfloat16), MLAS `qlutgemm` (tables of the
sums of four activations of either sign, after T-MAC, arXiv 2407.00088).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from emo_export.runtimes.ort.engine import CPU, import_onnxruntime
from emo_export.runtimes.ort.onnx_bytes import Attribute, one_node_model

FLOAT = "float activations"
BLOCKS = "int8 activations, a scale per block"
TOKENS = "int8 activations, a scale per token"
TABLES = "int8 tables of sums of activations, a scale per 64"
OTHER = "an arithmetic that is none of those known"
NOT_RUN = "does not run here"

_COLS, _ROWS, _BLOCK = 256, 128, 128
_LENGTHS = (1, 8)  # tokens at once: a kernel of its own may serve a single one
_SAME = 1e-4  # of the largest result: the right arithmetic was 1e-5 off at most, another 3e-3
_SETTINGS: Mapping[str, Attribute] = {"accuracy_level": 4, "block_size": _BLOCK}
_LOG_FATAL = 4

F64 = npt.NDArray[np.float64]
U8 = npt.NDArray[np.uint8]
F32 = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Weights:
    """A matrix: levels (N, C) from -2**(bits-1) on, scales (N, C / block)."""

    bits: int
    levels: F64
    scales: F32

    def product(self, x: F64) -> F64:
        """The product of x (T, C) with it, (T, N)."""
        found: F64 = x @ (self.levels * np.repeat(self.scales, _BLOCK, axis=-1)).T
        return found


Product = Callable[[F64, Weights], F64]


def nbits_paths() -> dict[str, str]:
    """Each of MatMulNBits and QMoE with 2, 4 and 8 bits -> its arithmetic, as `QMoE 4 bits`.

    Raises MissingDependencyError without onnxruntime. Takes a quarter of a second. A kernel that is
    there may still fail in a graph: MatMulNBits inside an `If` crashes in 1.22 and 1.28.0 on Arm
    with dot product (onnxruntime issue 31137).
    """
    ort = import_onnxruntime()
    tried = {"MatMulNBits": _matmul, "QMoE": _experts}
    return {
        f"{name} {bits} bits": _joined([arithmetic(ort, bits, tokens) for tokens in _LENGTHS])
        for name, arithmetic in tried.items()
        for bits in (2, 4, 8)
    }


def judged(found: F32, compute: Callable[[Product], F64]) -> str:
    """The arithmetic with which `compute` gives what was found."""
    for name, product in _ARITHMETICS.items():
        want = compute(product)
        if np.abs(found - want).max() <= _SAME * np.abs(want).max():
            return name
    return OTHER


def _joined(said: list[str]) -> str:
    if len(set(said)) == 1:
        return said[0]
    return "; ".join(f"{what} ({n} at once)" for n, what in zip(_LENGTHS, said, strict=True))


def _matmul(ort: Any, bits: int, tokens: int) -> str:
    stored, weights = _weights(bits, (_ROWS, _COLS))
    blocks = stored.reshape(_ROWS, _COLS // _BLOCK, -1)
    sizes = {"K": _COLS, "N": _ROWS, "bits": bits}
    model = one_node_model(
        "com.microsoft",
        "MatMulNBits",
        ["x", "w", "s"],
        {**_SETTINGS, **sizes},
        {"w": blocks, "s": weights.scales},
    )
    x = _activations(tokens)
    found = _run(ort, model, {"x": x})
    if found is None:
        return NOT_RUN
    return judged(found, lambda product: product(x.astype(np.float64), weights))


def _experts(ort: Any, bits: int, tokens: int) -> str:
    """All tokens go to the second of two experts."""
    stored1, weights1 = _weights(bits, (2, 2 * _BLOCK, _COLS))
    stored2, weights2 = _weights(bits, (2, _COLS, _BLOCK))
    settings: dict[str, Attribute] = {"k": 1, "expert_weight_bits": bits, "swiglu_fusion": 1}
    settings |= {"activation_type": "swiglu", "activation_alpha": 1.0, "activation_beta": 0.0}
    model = one_node_model(
        "com.microsoft",
        "QMoE",
        ["x", "r", "w1", "s1", "", "w2", "s2"],
        {**_SETTINGS, **settings},
        {"w1": stored1, "s1": weights1.scales, "w2": stored2, "s2": weights2.scales},
    )
    x = _activations(tokens)
    chosen = np.tile(np.array([0, 1], np.float32), (tokens, 1))
    found = _run(ort, model, {"x": x, "r": chosen})

    fc1, fc2 = (Weights(bits, w.levels[1], w.scales[1]) for w in (weights1, weights2))

    def compute(product: Product) -> F64:
        both = product(x.astype(np.float64), fc1)
        gate, up = both[:, 0::2], both[:, 1::2]
        return product(gate / (1 + np.exp(-gate)) * up, fc2)

    return NOT_RUN if found is None else judged(found, compute)


def _run(ort: Any, model: bytes, feeds: Mapping[str, F32]) -> F32 | None:
    """The result, or None where ONNX Runtime refuses, as without a kernel for these bits."""
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = _LOG_FATAL, 1
    try:
        session = ort.InferenceSession(model, options, providers=[CPU])
        (found,) = session.run(None, feeds)
    except Exception:  # ONNX Runtime's share no other base class; some fail only when they run
        return None
    result: F32 = found
    return result


def _weights(bits: int, shape: tuple[int, ...]) -> tuple[U8, Weights]:
    """Stored levels (…, C * bits / 8) and the weights that they and their scales stand for."""
    rng = np.random.default_rng(bits)
    levels = rng.integers(0, 1 << bits, shape, dtype=np.uint8)
    # Powers of two, because bfloat16 holds them: the activations alone are to be judged.
    scales = np.exp2(rng.integers(-9, -6, (*shape[:-1], shape[-1] // _BLOCK))).astype(np.float32)
    values = levels.astype(np.float64) - (1 << (bits - 1))
    each = 8 // bits
    stored = np.zeros((*shape[:-1], shape[-1] // each), np.uint8)
    for at in range(each):  # the first column is in a byte's lowest bits
        stored |= levels[..., at::each] << (bits * at)
    return stored, Weights(bits, values, scales)


def _activations(tokens: int) -> F32:
    return np.random.default_rng(tokens).standard_normal((tokens, _COLS)).astype(np.float32)


def _float(x: F64, weights: Weights) -> F64:
    return weights.product(x)


def _per_block(x: F64, weights: Weights) -> F64:
    blocks = x.reshape(len(x), -1, _BLOCK)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    return weights.product((np.rint(blocks / scale) * scale).reshape(x.shape))


def _per_token(x: F64, weights: Weights) -> F64:
    low, high = (np.sign(s) * np.maximum((s * x).max(-1, keepdims=True), 0) for s in (-1, 1))
    scale = (high - low) / 255
    zero = np.rint(-128 - low / scale)
    return weights.product((np.clip(np.rint(x / scale) + zero, -128, 127) - zero) * scale)


def _tables(x: F64, weights: Weights) -> F64:
    """A level is the sum of its bits as signs: b1 b0 - 2 = (s1 + s0 / 2) - 1 / 2, s = 2 b - 1."""
    if weights.bits != 2:
        return _float(x, weights)
    fours = x.reshape(len(x), -1, 4)
    most = np.abs(fours).sum(-1).reshape(len(x), -1, 16)  # a scale serves 16 tables
    scale = np.repeat(most.max(-1) / 127, 16, axis=-1)[:, None]
    stored, scales = weights.levels.astype(np.int64) + 2, weights.scales.astype(np.float64)
    four_scales = np.repeat(scales, _BLOCK // 4, axis=-1)
    total = -np.repeat(scales, _BLOCK, axis=-1) @ x.T / 2
    for bit, worth in ((0, 0.5), (1, 1.0)):
        signs = (2 * ((stored >> bit) & 1) - 1).reshape(len(stored), -1, 4)
        sums = np.einsum("tgc,ngc->tng", fours, signs)
        rounded = np.rint(sums / scale) * scale
        total += worth * (rounded * four_scales).sum(-1).T
    found: F64 = total.T
    return found


_ARITHMETICS: Mapping[str, Product] = {
    FLOAT: _float,
    BLOCKS: _per_block,
    TOKENS: _per_token,
    TABLES: _tables,
}
