"""Files that are no importance matrix of this model: one sentence with file, tensor and remedy."""

from __future__ import annotations

import struct
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from emo_export.converters.gguf.imatrix import read_imatrix, write_imatrix
from emo_export.errors import EmoExportError
from emo_export.model.config import EmoConfig
from emo_export.model.importance import ImportanceMatrix
from tests.kit.exporting import Array
from tests.kit.fuzzing import read_or_refuse
from tests.kit.imatrix_files import KEYS, config_named, random_matrix, tensors_of, write_gguf
from tests.kit.synth import make_config

CONFIG = config_named("mha")
Q, EXPS = "blk.0.attn_q.weight", "blk.1.ffn_down_exps.weight"


def read(path: Path) -> ImportanceMatrix:
    return read_imatrix(path, CONFIG, "deepseek")


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("imatrix") / "good.gguf"
    write_imatrix(path, random_matrix(CONFIG), CONFIG, "deepseek")
    return path


def refused(path: Path) -> str:
    with pytest.raises(EmoExportError) as error:
        read(path)
    said = str(error.value)
    assert str(path) in said and "\n" not in said
    return said


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"GG",
        b"Some text about importance.",
        struct.pack("<ii", 2, 19) + b"blk.0.attn_q.weight" + struct.pack("<ii", 1, 64) + bytes(256),
        b"GGUF" + struct.pack("<IQQ", 3, 2**60, 2**60),
    ],
)
def test_what_is_no_gguf(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "imatrix.dat"
    path.write_bytes(content)
    said = refused(path)
    assert ".dat" in said and "-o FILE.gguf" in said and "--calibration FILE" in said


def test_a_folder_and_nothing(tmp_path: Path) -> None:
    assert "is a folder" in refused(tmp_path)
    assert "there is no file" in refused(tmp_path / "absent.gguf")


def test_a_model(small_exports: dict[str, Path]) -> None:
    said = refused(small_exports["gguf:q4_0"])
    assert "no importance matrix" in said and "--calibration FILE" in said


Change = Callable[[dict[str, Array]], object]


def _drop(name: str, tensors: dict[str, Array]) -> None:
    del tensors[name]


def _rename(name: str, new: str, tensors: dict[str, Array]) -> None:
    tensors[new + ".in_sum2"] = tensors.pop(name + ".in_sum2")
    tensors[new + ".counts"] = tensors.pop(name + ".counts")


def _set(name: str, value: float, tensors: dict[str, Array]) -> None:
    tensors[name].reshape(-1)[-1] = value


def _cut(name: str, rows: int, cols: int, tensors: dict[str, Array]) -> None:
    tensors[name] = np.ascontiguousarray(tensors[name][:rows, :cols])


def _half(name: str, tensors: dict[str, Array]) -> None:
    tensors[name] = tensors[name].astype(np.float16)


CHANGES: dict[str, tuple[Change, str]] = {
    "counts missing": (partial(_drop, Q + ".counts"), rf"{Q}\.in_sum2 but no {Q}\.counts"),
    "sums missing": (partial(_drop, Q + ".in_sum2"), f"says nothing of {Q} and 0 more"),
    "all sums missing": (
        lambda t: [t.pop(n) for n in list(t) if n.endswith("2")],
        r"says nothing of blk\.0\.attn_q\.weight and 19 more",
    ),
    "another layer": (partial(_rename, Q, "blk.2.attn_q.weight"), r"measures blk\.2\.attn_q"),
    "another model's tensor": (
        partial(_rename, EXPS, "blk.1.ffn_down.weight"),
        r"measures blk\.1\.ffn_down\.weight, which .* another model or --arch",
    ),
    "NaN": (partial(_set, Q + ".in_sum2", np.nan), rf"{Q}\.in_sum2 holds a NaN"),
    "infinite": (partial(_set, EXPS + ".in_sum2", np.inf), rf"{EXPS}\.in_sum2 holds a NaN"),
    "negative": (partial(_set, EXPS + ".in_sum2", -1.0), rf"{EXPS}\.in_sum2 holds .* negative"),
    "absurd": (partial(_set, EXPS + ".in_sum2", 1e38), rf"{EXPS}\.in_sum2 holds .* large"),
    "NaN count": (partial(_set, EXPS + ".counts", np.nan), rf"{EXPS}\.counts holds a NaN"),
    "negative count": (partial(_set, EXPS + ".counts", -7), rf"{EXPS}\.counts holds"),
    "fewer experts": (partial(_cut, EXPS + ".in_sum2", 5, 99), r"shape \[5, 32\], .* \[7, 32\]"),
    "fewer counts": (partial(_cut, EXPS + ".counts", 1, 1), r"shape \[1, 1\], .* \[7, 1\]"),
    "narrower": (partial(_cut, Q + ".in_sum2", 1, 32), rf"{Q}\.in_sum2 is F32 of shape \[1, 32\]"),
    "another type": (partial(_half, Q + ".in_sum2"), rf"{Q}\.in_sum2 is F16"),
}


@pytest.mark.parametrize("how", CHANGES)
def test_tensors_that_do_not_fit(how: str, good: Path, tmp_path: Path) -> None:
    change, said = CHANGES[how]
    tensors = tensors_of(good)
    change(tensors)
    with pytest.raises(EmoExportError, match=said) as error:
        read(write_gguf(tmp_path / "bad.gguf", tensors))
    assert str(tmp_path / "bad.gguf") in str(error.value)
    assert "--calibration FILE" in str(error.value) or "damaged" in str(error.value)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("odd_48_20", "shape [1, 48], this model needs F32 of [1, 64]; it is of another model"),
        ("no_shared", "says nothing of blk.0.ffn_gate_shexp.weight and 5 more"),
        ("one_layer", "says nothing of blk.1.attn_q.weight and 9 more"),
        ("dense_first", "measures blk.0.ffn_down.weight, which this model's GGUF has not"),
        ("nine_experts", "shape [8, 64], this model needs F32 of [7, 64]"),
    ],
)
def test_another_models_matrix(name: str, said: str, tmp_path: Path) -> None:
    nine = EmoConfig.from_dict(make_config(num_experts=9))
    other = nine if name == "nine_experts" else config_named(name)
    write_imatrix(tmp_path / "other.gguf", random_matrix(other), other, "deepseek")
    assert said in refused(tmp_path / "other.gguf")


def test_a_matrix_of_another_arch(tmp_path: Path) -> None:
    """Where the dense layer stands among the experts, it has no tensor of its own."""
    config = config_named("dense_middle")
    write_imatrix(tmp_path / "i.gguf", random_matrix(config), config, "glm4moe")
    lead = config_named("dense_first")
    with pytest.raises(EmoExportError, match=r"another model or --arch|says nothing of"):
        read_imatrix(tmp_path / "i.gguf", lead, "deepseek")


@pytest.mark.parametrize(("chunks", "size"), [(2**32 - 1, 2**32 - 1), (2**31, 2**12)])
def test_a_text_too_long_to_be_true(chunks: int, size: int, good: Path, tmp_path: Path) -> None:
    keys = KEYS | {"imatrix.chunk_count": chunks, "imatrix.chunk_size": size}
    path = write_gguf(tmp_path / "long.gguf", tensors_of(good), keys)
    assert f"imatrix.chunk_count {chunks}" in refused(path)


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(data=st.data())
def test_damaged_files_are_read_or_refused(data: st.DataObject, good: Path, tmp_path: Path) -> None:
    content = bytearray(good.read_bytes())
    header = 4000  # keys and tensor infos, where most can go wrong
    places = st.integers(0, header) | st.integers(0, len(content) - 1)
    for place in data.draw(st.lists(places, max_size=3)):
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    cut = data.draw(st.just(len(content)) | st.integers(0, len(content)))

    def read_all(path: Path) -> None:
        matrix = read(path)
        for slot in matrix.sums:
            row = matrix.row(slot)
            assert row is not None and np.isfinite(row).all() and row.any()
        assert 0 <= matrix.chunks < 2**31

    read_or_refuse(read_all, tmp_path / "fuzzed.gguf", bytes(content[:cut]))
