"""ONNX Runtime on real graphs: the cache, the checks before loading, the tokenizer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.runtimes.ort.model import HfTokenizer, OnnxModel
from emo_export.text.bpe import BYTE_OF
from tests.kit import tiny_onnx
from tests.kit.paths import GOLDEN, NANO

IDS = np.random.default_rng(1).integers(0, tiny_onnx.VOCAB, tiny_onnx.CONTEXT)
TEXTS = [
    "",
    "Hello, wörld! Don't  stop\n\n\tat 12345 — 日本語 🙂",
    "def f(x):\n    return x**2  # ½\r\n",
    "a<|endoftext|>b",
]


@pytest.fixture(scope="module", params=[False, True], ids=["standard", "shared_buffer"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("onnx") / "model"
    tiny_onnx.write_folder(path, fused=request.param)
    return path


@pytest.fixture
def damaged(tmp_path: Path) -> Path:
    """A folder of its own for one test, free to damage."""
    tiny_onnx.write_folder(tmp_path / "model")
    return tmp_path / "model"


def test_prefill_pieces_and_steps_agree_with_numpy(folder: Path) -> None:
    model = OnnxModel(folder, threads=1)
    want = tiny_onnx.expected(IDS)
    for sizes in ([40], [1] * 40, [7, 1, 1, 20, 11]):
        model.reset()
        edges = np.cumsum(sizes)[:-1]
        got = np.concatenate([model.forward(piece) for piece in np.split(IDS, edges)])
        assert got.dtype == np.float32 and got.shape == (40, tiny_onnx.VOCAB)
        np.testing.assert_allclose(got, want, atol=2e-5)
    model.close()
    model.close()


def test_an_answer_is_not_overwritten_by_the_next(folder: Path) -> None:
    model = OnnxModel(folder, threads=1)
    first = model.forward(IDS[:3])
    kept = first.copy()
    model.forward(IDS[3:6])
    model.reset()
    model.forward(IDS[10:13])
    np.testing.assert_array_equal(first, kept)


def test_the_context_is_a_limit_and_the_sequence_stays_usable(folder: Path) -> None:
    model = OnnxModel(folder, threads=1)
    model.forward(IDS[:39])
    with pytest.raises(EmoExportError, match="2 tokens after 39 exceed the context of 40"):
        model.forward(IDS[:2])
    np.testing.assert_allclose(model.forward(IDS[39:]), tiny_onnx.expected(IDS)[39:], atol=2e-5)
    with pytest.raises(EmoExportError, match="exceed"):
        model.forward(IDS[:1])
    model.reset()
    model.forward(IDS)


@pytest.mark.parametrize(
    ("ids", "message"),
    [
        ([], "expected int64"),
        ([[1, 2]], "expected int64"),
        ([1.0], "expected int64"),
        ([24], "token 24 is not in a vocabulary of 24"),
        ([3, -1], "token -1 is not"),
    ],
)
def test_wrong_ids_are_refused(folder: Path, ids: list[object], message: str) -> None:
    with pytest.raises(EmoExportError, match=message):
        OnnxModel(folder, threads=1).forward(np.array(ids))


def test_closed_model_refuses(folder: Path) -> None:
    model = OnnxModel(folder, threads=1)
    model.close()
    with pytest.raises(EmoExportError, match="closed"):
        model.forward(IDS[:1])


def test_describe_names_engine_and_settings(folder: Path) -> None:
    options = {"session.intra_op.allow_spinning": "0"}
    facts = OnnxModel(folder, threads=1, session_options=options).describe()
    assert facts["engine"] == "ONNX Runtime" and facts["threads"] == "1"
    assert facts["version"].startswith("onnxruntime 1.")
    assert facts["session options"] == "session.intra_op.allow_spinning=0"


def test_graph_bytes_take_their_data_from_the_folder(folder: Path) -> None:
    graph = (folder / "model.onnx").read_bytes()
    model = OnnxModel(folder, threads=1, graph=graph)
    np.testing.assert_allclose(model.forward(IDS), tiny_onnx.expected(IDS), atol=2e-5)


def test_graph_bytes_need_no_model_onnx(damaged: Path) -> None:
    path = damaged / "model.onnx"
    graph = path.read_bytes()
    path.unlink()
    model = OnnxModel(damaged, threads=1, graph=graph)
    np.testing.assert_allclose(model.forward(IDS), tiny_onnx.expected(IDS), atol=2e-5)


def test_missing_files_are_named(damaged: Path) -> None:
    (damaged / "model.onnx.data").unlink()
    with pytest.raises(EmoExportError, match=r"model\.onnx: has weights in .*model\.onnx\.data"):
        OnnxModel(damaged)
    (damaged / "model.onnx").unlink()
    with pytest.raises(EmoExportError, match=r"there is no model\.onnx in "):
        OnnxModel(damaged)
    (damaged / "config.json").unlink()
    with pytest.raises(EmoExportError, match=r"there is no file .*config\.json"):
        OnnxModel(damaged)


def test_truncated_data_is_refused(damaged: Path) -> None:
    data = damaged / "model.onnx.data"
    data.write_bytes(data.read_bytes()[:-512])
    with pytest.raises(EmoExportError, match=r"model\.onnx\.data.*which has"):
        OnnxModel(damaged)


@pytest.mark.parametrize("content", [b"", b"not an onnx file at all", b"\x00" * 64])
def test_something_else_than_onnx_is_refused(damaged: Path, content: bytes) -> None:
    (damaged / "model.onnx").write_bytes(content)
    with pytest.raises(EmoExportError, match=r"model\.onnx"):
        OnnxModel(damaged)


def test_config_that_disagrees_with_the_graph_is_refused(damaged: Path) -> None:
    path = damaged / "config.json"
    config = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps(config | {"num_hidden_layers": 3}), "utf-8")
    with pytest.raises(EmoExportError, match=r"decoder of 3 layers.*past_key_values\.2"):
        OnnxModel(damaged)
    for bad in ("2", None, 0, True):
        path.write_text(json.dumps(config | {"head_dim": bad}), "utf-8")
        with pytest.raises(EmoExportError, match=f"head_dim is {bad!r}, expected an integer"):
            OnnxModel(damaged)
    path.write_text("[1]", "utf-8")
    with pytest.raises(EmoExportError, match="holds list, expected an object"):
        OnnxModel(damaged)


def test_an_engine_too_old_is_refused_before_loading(damaged: Path) -> None:
    (damaged / "model.onnx.data").unlink()  # would fail if it were loaded
    needs = damaged / "emo_export.json"
    needs.write_text('{"onnxruntime_min": "99.2"}', "utf-8")
    with pytest.raises(EmoExportError, match=r"needs onnxruntime 99\.2 or newer and 1\.\d+.* is"):
        OnnxModel(damaged)
    needs.write_text('{"onnxruntime_min": "new"}', "utf-8")
    with pytest.raises(EmoExportError, match="onnxruntime_min is 'new'"):
        OnnxModel(damaged)
    needs.write_text('{"share_kv_buffer": "yes"}', "utf-8")
    with pytest.raises(EmoExportError, match="share_kv_buffer is 'yes'"):
        OnnxModel(damaged)


def test_threads_below_one_are_refused(damaged: Path) -> None:
    with pytest.raises(EmoExportError, match="threads is 0"):
        OnnxModel(damaged, threads=0)


def test_missing_packages_name_the_command(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependencyError, match=r'pip install ".*\[ort\]"'):
        OnnxModel(damaged)


def test_the_tokenizers_library_is_for_uncommon_files_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = json.loads((NANO / "tokenizer.json").read_text("utf-8"))
    text = json.dumps(content | {"normalizer": {"type": "NFC"}})
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    (tmp_path / "generation_config.json").write_text("{}", "utf-8")
    found = HfTokenizer(tmp_path).encode("e\u0301 <|endoftext|>")
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(MissingDependencyError, match=r"normalizer NFC takes .* pip install tok"):
        HfTokenizer(tmp_path)
    assert found == HfTokenizer(NANO).encode("\u00e9 <|endoftext|>")


@pytest.mark.parametrize("folder", [NANO, GOLDEN / "base"], ids=["nano", "base"])
@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_text(folder: Path, text: str) -> None:
    tokenizer = HfTokenizer(folder)
    ids = tokenizer.encode(text)
    joined = b"".join(tokenizer.piece(token) for token in ids).decode("utf-8")
    assert joined == text.replace("<|endoftext|>", "")
    assert any(token in tokenizer.stop_ids for token in ids) == ("<|endoftext|>" in text)


def test_special_and_unused_tokens_have_no_bytes() -> None:
    tokenizer = HfTokenizer(NANO)
    assert tokenizer.stop_ids == {4075}
    assert tokenizer.piece(4075) == tokenizer.piece(4095) == tokenizer.piece(5000) == b""


def test_every_byte_has_one_character() -> None:
    assert sorted(BYTE_OF.values()) == list(range(256))


def test_several_stop_tokens_and_broken_files(tmp_path: Path) -> None:
    text = (GOLDEN / "base" / "tokenizer.json").read_text("utf-8")
    (tmp_path / "tokenizer.json").write_text(text, "utf-8")
    settings = tmp_path / "generation_config.json"
    with pytest.raises(EmoExportError, match=r"there is no file .*generation_config\.json"):
        HfTokenizer(tmp_path)
    settings.write_text('{"eos_token_id": [491, 511]}', "utf-8")
    assert HfTokenizer(tmp_path).stop_ids == {491, 511}
    settings.write_text("{}", "utf-8")
    assert HfTokenizer(tmp_path).stop_ids == frozenset()
    settings.write_text('{"eos_token_id": 491}', "utf-8")
    fused = json.dumps(json.loads(text) | {"decoder": {"type": "Fuse"}})
    for content, message in (
        ("{", "is not JSON"),
        ("{}", "is not a tokenizer"),
        (fused, "is not byte-level BPE"),
        (text.replace("\u0120", "\u2581"), "is not written in the byte-level alphabet"),
    ):
        (tmp_path / "tokenizer.json").write_text(content, "utf-8")
        with pytest.raises(EmoExportError, match=message):
            tokenizer = HfTokenizer(tmp_path)
            [tokenizer.piece(token) for token in range(512)]
