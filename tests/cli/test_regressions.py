"""One test for each bug that a review of the converters found."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys

import numpy as np
import pytest

from emo_export.converters.gguf.formats import GGML_FORMATS
from emo_export.converters.gguf.scheme import gguf_scheme
from emo_export.converters.gguf.writer import GgufWriter
from emo_export.converters.onnx.scheme import onnx_scheme
from emo_export.errors import EmoExportError
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.parity.golden import Golden
from emo_export.spec import ONNX, Spec
from tests.converters.gguf.test_gguf_tokenizer import added, changed, read
from tests.converters.onnx.test_nbits_formats import KINDS, by_onnxruntime, kind_of, nearest
from tests.converters.test_placed_file import WRITE
from tests.kit.exporting import case
from tests.kit.synth import make_checkpoint, make_config
from tests.parity.test_parity import small_golden


@pytest.mark.parametrize(("bits", "block"), KINDS)
def test_1_exact_ties_take_the_sign_that_onnxruntime_takes(bits, block):
    rows = np.random.default_rng(0).integers(-4, 5, (64, 4 * block)).astype(np.float32)
    packed = nearest(kind_of(bits, block), rows)
    weight, scales = by_onnxruntime(rows, bits, block)
    np.testing.assert_array_equal(packed["scales"], scales)
    np.testing.assert_array_equal(packed["weight"], weight)


def test_2_the_refusal_names_the_tensor_that_does_not_fit():
    config = EmoConfig.from_dict(make_config(hidden_size=64, intermediate_size=20))
    with pytest.raises(EmoExportError, match=r"experts\.0\.down_proj\.weight: rows of 20 fit no"):
        onnx_scheme(Spec(ONNX, "int4"), config)


@pytest.mark.parametrize("row", [64, 4096])
def test_3_abort_after_a_full_disk_raises_nothing(tmp_path, row):
    script = 'mount -t tmpfs -o size=128k tmpfs "$1" && shift && exec "$@"'
    unshare = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", script, "sh"]
    code = WRITE.replace("    print(error)\n", "    print(error)\n    file.abort()\n")
    command = [
        *unshare,
        str(tmp_path),
        sys.executable,
        "-c",
        code,
        str(tmp_path / "x"),
        "0",
        str(row),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")


@pytest.mark.parametrize(("name", "value"), [("q8_0", 1e7), ("q4_0", 6e5), ("bf16", 3.4e38)])
def test_4_overflow_is_refused_by_every_type(name, value):
    rows = np.zeros((1, 32), np.float32)
    rows[0, 3] = value
    with pytest.raises(EmoExportError):
        GGML_FORMATS[name].quantize(rows)


@pytest.mark.parametrize("text", ["[PAD601]", "a"])
def test_5_two_ids_of_one_text_are_refused(tmp_path, text):
    # Otherwise llama.cpp ends the process: GGML_ASSERT(id_to_token.size() == token_to_id.size())
    with pytest.raises(EmoExportError):
        read(changed(tmp_path, lambda c: c["added_tokens"].append(added(600, text))))


def test_6_an_end_of_text_beyond_the_vocabulary_is_refused(tmp_path):
    folder = changed(tmp_path, lambda content: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"eos_token_id": None}))
    (folder / "generation_config.json").write_text('{"eos_token_id": 99999}')
    with pytest.raises(EmoExportError):
        read(folder)  # llama.cpp would stop at token 11, and says so nowhere


def test_7_a_tokenizer_without_merges_is_refused(tmp_path):
    # gguf-py drops an empty array; llama.cpp: "cannot find tokenizer merges in model file"
    with pytest.raises(EmoExportError):
        read(make_checkpoint(tmp_path, vocab_size=300))


def test_8_added_ids_that_the_library_would_not_give_are_refused(tmp_path):
    from tokenizers import Tokenizer

    folder = changed(tmp_path, lambda c: c["added_tokens"].append(added(600, "|||IP|||")))
    library = Tokenizer.from_file(str(folder / "tokenizer.json"))
    assert library.encode("|||IP|||").ids == [512]  # not 600
    with pytest.raises(EmoExportError):
        read(folder)


def test_9_no_damage_of_a_golden_escapes(tmp_path):
    path = tmp_path / "golden.npz"
    small_golden().save(path)
    data = path.read_bytes()
    for index in range(len(data) - 700, len(data)):
        path.write_bytes(data[:index] + bytes([data[index] ^ 0xFF]) + data[index + 1 :])
        with contextlib.suppress(EmoExportError):
            Golden.load(path)


def test_9_an_npy_file_is_refused(tmp_path):
    np.save(tmp_path / "array.npy", np.zeros(3))
    with pytest.raises(EmoExportError):
        Golden.load(tmp_path / "array.npy")


def test_10_a_gguf_writer_that_was_never_opened_does_not_close(tmp_path):
    config = Checkpoint.open(case("mha").folder).config
    settings = {"tokenizer": None, "model_name": "x", "context": 8}
    with pytest.raises(EmoExportError, match="not open"):  # as OnnxWriter does
        GgufWriter(tmp_path / "x.gguf", config, gguf_scheme("f32", config), **settings).close()
