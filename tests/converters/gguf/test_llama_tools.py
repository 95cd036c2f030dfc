"""Slow: our files in llama.cpp's own tools, and theirs in ours: the published tools as oracle."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from gguf import GGUFReader
from tokenizers import Tokenizer

from emo_export.converters.gguf.imatrix import read_imatrix
from emo_export.files.verifying import verify
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.importance import CHUNK, IMATRIX, ImportanceMatrix
from emo_export.model.names import Role
from emo_export.model.product import Product
from emo_export.reference.calibrate import Calibration
from emo_export.reference.probes import TRICKY
from emo_export.text.documents import read_documents
from emo_export.text.places import find_texts
from tests.kit.command import run_here
from tests.kit.exporting import run_calibration
from tests.kit.llama_tools import LlamaTools, tools, unavailable
from tests.kit.paths import NANO

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(unavailable() is not None, reason=str(unavailable())),
]

ADVERSARIAL = (
    TRICKY
    + "    \n\t  \n\r\n\r\r\nI'M you'Re it''s ''S 12 123 1234 12345678901 1,000.50 ²³ ٣٤٥ "
    + "a\u0301e\u0301 \u00a0\u2003\u3000x\u200b\u200d\ufeff e\u0300\u0301 ÅßİıſK ﬁ "
    + "ไทยภาษา नमस्ते مرحبا שלום 한국어 日本語。、 👨‍👩‍👧‍👦🏳️‍🌈 "
    + "\x01\x7f\x1b[0m <|endoftext|> <|pad|> [PAD1] <s></s> ###\n\n\n\n  end!!!???...\n \n"
)

# Every type of the recipes in mixed files: one type for each of ROLES.
ROLES = ("expert", "expert_down", "attention", "shared_expert", "head", "embed")
MIXES = {
    "k": ("q4_k", "q3_k", "q6_k", "iq4_xs", "q5_k", "q4_k"),
    "legacy": ("q2_k", "q6_k", "q4_0", "q5_1", "q4_1", "q5_0"),
    "i": ("iq4_nl", "q4_1", "iq4_xs", "iq3_s", "q3_k", "q8_0"),
    "i2": ("q4_0", "q5_0", "iq2_xs", "iq2_s", "iq2_xxs", "q6_k"),
    "i3": ("q5_k", "q8_0", "iq3_xxs", "mxfp4", "iq4_nl", "q2_k"),
}
TENSORS = {
    "expert": "ffn_(gate|up)_exps",
    "expert_down": "ffn_down_exps",
    "attention": "attn_(q|k|v|output)",
    "shared_expert": "ffn_(gate|up|down)_shexp",
}


def export(out: Path, *options: object) -> Path:
    """The command; in one process, as ggml makes its grids of I-quants once in each."""
    done = run_here("export", NANO, "-o", out, *options)
    assert done.code == 0, done.err
    return out


@pytest.fixture(scope="module")
def llama() -> LlamaTools:
    return tools()


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some of every kind of calibration text in one file."""
    documents = [
        next(read_documents(file)).text for file in find_texts([NANO / "calibration"]).files
    ]
    path = tmp_path_factory.mktemp("text") / "some.txt"
    path.write_text("\n".join(document[:2500] for document in documents), "utf-8")
    return path


@pytest.fixture(scope="module")
def ours(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An export with importance of our own, and the float32 GGUF that their tools start from."""
    out = tmp_path_factory.mktemp("ours") / "out"
    collect = ("--calibration", NANO / "calibration", "--calibration-tokens", 6000)
    return export(out, "--to", "gguf:f32", "--to", "gguf:q4_k_m", "--no-golden", *collect)


@pytest.fixture(scope="module")
def theirs(llama: LlamaTools, ours: Path, text: Path) -> Path:
    """An importance matrix of llama-imatrix, the head's too."""
    path = text.parent / "llama-imatrix.gguf"
    options = ("-f", text, "-o", path, "--no-ppl", "--process-output", "-c", CHUNK)
    llama.run("llama-imatrix", "-m", ours / "model-F32.gguf", *options)
    return path


def test_llama_quantize_takes_our_imatrix(llama: LlamaTools, ours: Path, tmp_path: Path) -> None:
    matrix = ours / IMATRIX
    source, target = ours / "model-F32.gguf", tmp_path / "q.gguf"
    done = llama.run("llama-quantize", "--imatrix", matrix, source, target, "Q4_K_M")
    said = done.stdout + done.stderr
    entries = sum(t.name.endswith(".in_sum2") for t in GGUFReader(matrix).tensors)
    assert f"loaded {entries} importance matrix entries" in said
    # Nothing multiplies the embedding: it is looked up.
    assert re.findall(r"did not find weights for (\S+)", said) == ["token_embd.weight"]


def test_export_takes_their_imatrix(theirs: Path, tmp_path: Path) -> None:
    """The folder is whole, and the file within its limits in llama.cpp."""
    out = export(tmp_path / "out", "--to", "gguf:q4_k_m", "--imatrix", theirs)
    assert verify(out) == []
    assert (out / "parity.json").is_file()


def test_our_sums_are_those_of_llama_imatrix(theirs: Path, text: Path) -> None:
    """Over exactly the chunks that llama-imatrix cuts: of 512 tokens, the last part dropped."""
    checkpoint = Checkpoint.open(NANO)
    encoded = Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(text.read_text("utf-8"))
    ids = np.array(encoded.ids, dtype=np.int64)
    chunks = [ids[s : s + CHUNK] for s in range(0, len(ids) - CHUNK + 1, CHUNK)]
    calibration = Calibration(checkpoint.config, chunks, "chunks")
    run_calibration(Product.whole(checkpoint), calibration)
    found, want = calibration.matrix, read_imatrix(theirs, checkpoint.config, "deepseek")
    assert len(chunks) >= 5 and want.tokens == found.tokens == CHUNK * len(chunks)
    assert set(found.sums) == set(want.sums)
    assert Role.HEAD in {slot.role for slot in found.sums}
    _assert_near(found, want)


def _assert_near(found: ImportanceMatrix, want: ImportanceMatrix) -> None:
    """llama.cpp's cache is float16, so that a near tie of a router may choose another expert."""
    for slot, count in want.counts.items():
        assert abs(found.counts[slot] - count) <= max(2, 0.02 * count), slot.name
        if found.counts[slot] == count and count:
            np.testing.assert_allclose(
                found.sums[slot], want.sums[slot], rtol=0.02, atol=1e-3 * want.sums[slot].max()
            )
    same = [found.counts[slot] == count for slot, count in want.counts.items()]
    assert np.mean(same) > 0.9


@pytest.mark.parametrize("name", list(MIXES))
def test_our_blocks_are_llama_quantizes(
    name: str, llama: LlamaTools, ours: Path, tmp_path: Path
) -> None:
    """Byte for byte, with the same importance, every tensor of the file."""
    matrix, kinds = ours / IMATRIX, dict(zip(ROLES, MIXES[name], strict=True))
    options = [word for role in ROLES for word in ("--tensor-type", f"{role}={kinds[role]}")]
    collect = ("--imatrix", matrix, "--no-golden")
    out = export(tmp_path / "out", "--to", "gguf:q4_k_m", *options, *collect)
    chosen = ["--output-tensor-type", kinds["head"], "--token-embedding-type", kinds["embed"]]
    for role, tensors in TENSORS.items():
        chosen += ["--tensor-type", f"{tensors}={kinds[role]}"]
    source, target = ours / "model-F32.gguf", tmp_path / "theirs.gguf"
    llama.run("llama-quantize", "--imatrix", matrix, *chosen, source, target, "Q4_K_M")
    ours_by_name = {t.name: t for t in GGUFReader(out / "model-Q4_K_M.gguf").tensors}
    theirs_by_name = {t.name: t for t in GGUFReader(target).tensors}
    assert set(ours_by_name) == set(theirs_by_name)
    different = {}
    for key, tensor in theirs_by_name.items():
        assert ours_by_name[key].tensor_type == tensor.tensor_type, key
        unequal = (ours_by_name[key].data != tensor.data).mean()
        if unequal:
            different[key] = (tensor.tensor_type.name, float(unequal))
    assert not different


def test_llama_tokenize_gives_the_tokenizers_ids(
    llama: LlamaTools, ours: Path, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    path.write_bytes(ADVERSARIAL.encode("utf-8"))
    options = ("-f", path, "--ids", "--no-escape")  # else it reads a backslash and n as one newline
    done = llama.run("llama-tokenize", "-m", ours / "model-Q4_K_M.gguf", *options)
    found = [int(word) for word in re.findall(r"\d+", done.stdout)]
    encoded = Tokenizer.from_file(str(NANO / "tokenizer.json")).encode(ADVERSARIAL)
    assert found == encoded.ids


def test_llama_perplexity_finds_the_quantised_file_near_the_float_one(
    llama: LlamaTools, ours: Path, text: Path, tmp_path: Path
) -> None:
    """Its own KL divergence, which nothing of ours computes."""
    base, common = tmp_path / "base.kld", ("-f", text, "-c", 256, "--kl-divergence-base")
    llama.run("llama-perplexity", "-m", ours / "model-F32.gguf", *common, base)
    quantised = ("-m", ours / "model-Q4_K_M.gguf", "--kl-divergence")
    done = llama.run("llama-perplexity", *quantised, *common, base)
    # Rows of chunk, perplexity, its log ratio, mean KL so far. The summary that follows them is not
    # read: 0.7.0 loses its last lines of log now and then.
    pair = r"\s+(-?[\d.]+) ±\s+[\d.]+"
    rows = re.findall(rf"^\s+\d+{pair}{pair}{pair}", done.stdout, re.MULTILINE)
    assert len(rows) > 5, done.stdout
    assert 0 < float(rows[-1][2]) < 0.01


def test_the_cards_command_runs(llama: LlamaTools, ours: Path) -> None:
    card = (ours / "README.md").read_text("utf-8")
    lines = [line for line in card.splitlines() if re.match(r"llama-\w+ -m \S*Q4_K_M", line)]
    assert lines, card
    name, *arguments = shlex.split(lines[0], comments=True)
    place = arguments.index("-m") + 1
    arguments[place] = str(ours / Path(arguments[place]).name)
    done = llama.run(name, *arguments, timeout=60)
    assert done.stdout.strip()
