"""Every reader of files that come from strangers, as something that takes any bytes.

A reader gets a file of its kind in a folder of its own, and either reads it or raises
EmoExportError, within SECONDS of CPU time and MEMORY more bytes.
"""

from __future__ import annotations

import io
import resource
import shutil
import signal
import time
import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.domains import read_domains
from emo_export.files.gguf_header import GgufArray, read_gguf, read_item
from emo_export.files.gguf_parts import read_model
from emo_export.files.manifest import Manifest
from emo_export.files.onnx_data import check_data
from emo_export.files.onnx_header import read_onnx
from emo_export.files.onnx_needs import read_requirements
from emo_export.files.recipe_file import read_recipes, types_in
from emo_export.inspect.checkpoint import inspect_path
from emo_export.model.chat_templates import chat_templates
from emo_export.model.checkpoint import Checkpoint
from emo_export.model.config import EmoConfig
from emo_export.model.safetensors_file import read_header
from emo_export.parity.golden import Golden
from emo_export.parity.result import Result
from emo_export.runtimes.ort.int8_cache import with_int8_cache
from emo_export.runtimes.ort.split import split_model
from emo_export.sweep.spec_file import read_spec
from emo_export.text.documents import read_blocks, read_documents
from tests.kit.paths import ROOT

SECONDS, MEMORY = 1.0, 200 << 20
HANG_SECONDS = 20  # of the clock, on a machine that is shared
LONGEST_TEXT = 64 << 10  # characters of an error
CORPUS = ROOT / "tests" / "fuzz" / "corpus"
Read = Callable[[Path], object]


@dataclass(frozen=True)
class Reader:
    """What reads a file under `name`, with other files `beside` it.

    `whole` makes the file of the bytes that are tried, where most bytes would be no file at all.
    """

    name: str
    read: Read
    beside: Mapping[str, bytes] = field(default_factory=dict)
    whole: Callable[[bytes], bytes] = bytes
    longest: int = 6000


def attempt(reader: Reader, folder: Path, content: bytes) -> str:
    """Let it read; the error's text, or an empty string. What else it raises escapes."""
    path = folder / reader.name
    path.write_bytes(reader.whole(content))
    try:
        reader.read(path)
    except EmoExportError as error:
        said = str(error)
        assert said and len(said) <= LONGEST_TEXT, said[:1000]
        assert error.exit_code == 2, error
        return said
    return ""


def lay(reader: Reader, folder: Path) -> Path:
    """A folder with what is beside the file of a reader."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    for name, content in reader.beside.items():
        (folder / name).write_bytes(content)
    return folder


def _hangs(number: int, frame: object) -> None:
    raise TimeoutError(f"nothing was told in {HANG_SECONDS} seconds")


@contextmanager
def within_limits(seconds: float = SECONDS, memory: int = MEMORY) -> Iterator[None]:
    """Fail where what is inside takes more CPU time, or asks the system for more memory."""
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text("ascii").split()[0])
    resource.setrlimit(resource.RLIMIT_AS, (pages * resource.getpagesize() + memory, hard))
    start = time.process_time()
    signal.signal(signal.SIGALRM, _hangs)
    signal.alarm(HANG_SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        resource.setrlimit(resource.RLIMIT_AS, (hard, hard))
    assert time.process_time() - start < seconds


# --- what is read ------------------------------------------------------------------------------


def _safetensors(path: Path) -> None:
    for tensor in read_header(path).values():
        assert 0 < tensor.nbytes <= path.stat().st_size
        tensor.rows(0, 1)


def _checkpoint(path: Path) -> None:
    Checkpoint.open(path.parent)


def _inspect_folder(path: Path) -> None:
    inspect_path(path.parent).as_dict()


def _gguf(path: Path) -> None:
    file = read_gguf(path)
    for value in file.keys.values():
        if isinstance(value, GgufArray) and value.type != "array":
            read_item(path, value, value.length - 1)
    read_model(path)
    inspect_path(path).as_dict()


def _imatrix(path: Path) -> None:
    from emo_export.converters.gguf.imatrix import read_imatrix

    read_imatrix(path, EmoConfig.from_json(path.parent / "config.json"), "deepseek")


def _gguf_weights(path: Path) -> None:
    from emo_export.converters.gguf.read_back import GgufWeights
    from emo_export.model.names import slots

    config = EmoConfig.from_json(path.parent / "config.json")
    weights = GgufWeights(path, config)
    for slot in slots(config):
        weights.rows(slot, 0, 1)


def _onnx(path: Path) -> None:
    file = read_onnx(path)
    inspect_path(path).as_dict()
    check_data(path, file)


def _onnx_bytes(path: Path) -> None:
    content = path.read_bytes()
    split = split_model(content)
    split.packing_only(split.weights)
    split.groups(1 << 20)
    import numpy as np

    with_int8_cache(content, np.ones((1, 2, 2, 4), np.float32), ["past_key_values.0.key"])


def _resume(path: Path) -> None:
    from emo_export.model.reads import Reads
    from emo_export.resuming import RESUME, Progress

    made, state = path.parent / "made", path.parent / RESUME
    for folder in (made, state):
        folder.mkdir(exist_ok=True)
    path.replace(state / path.name)
    Progress(made, {}, Reads()).find()


def _manifest(path: Path) -> None:
    manifest = Manifest.load(path.parent)
    assert manifest.kept is None or manifest.kept is not None
    assert manifest.scales is not None
    inspect_path(path.parent).as_dict()


def _records(path: Path) -> None:
    """Small files of ours, all of which are JSON objects."""
    first: EmoExportError | None = None
    folder = path.parent
    reads: list[Callable[[], object]] = [
        lambda: read_domains(folder),
        lambda: [types_in(facts, path) for facts in read_recipes(path).values()],
        lambda: read_requirements(folder),
        lambda: chat_templates(folder),
        lambda: Result.from_dict(read_json(path), str(path)),
    ]
    for read in reads:
        try:
            read()
        except EmoExportError as error:
            first = first or error
    if first is not None:
        raise first


def _tokenizer(path: Path) -> None:
    from emo_export.converters.gguf.tokenizer import read_tokenizer
    from emo_export.converters.onnx.genai_tokenizer import why_no_genai
    from emo_export.runtimes.ort.tokenizer import HfTokenizer

    text = "Hello,  w\u00f6rld 12345\n\n\tdef f(x):  pass   <|endoftext|>"
    why_no_genai(path.parent, [0])
    config = EmoConfig.from_json(path.parent / "config.json")
    found = HfTokenizer(path.parent)
    for token in found.encode(text):
        found.piece(token)
    read_tokenizer(path.parent, config)


def _text(path: Path) -> None:
    list(read_documents(path))
    list(read_blocks(path, 64))


# --- the files of the bytes that are tried -----------------------------------------------------


def npz_of(content: bytes) -> bytes:
    """An archive of members: a byte of name, two of length, one of how it is stored, its bytes.

    Without it a check sum would stop whatever is tried.
    """
    out = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(out, "w") as archive:
        at, number = 0, 0
        while at + 4 <= len(content) and number < 40:
            name, length, packed = (
                content[at],
                content[at + 1] << 8 | content[at + 2],
                content[at + 3],
            )
            part = content[at + 4 : at + 4 + length]
            names = GOLDEN_NAMES if packed < 128 else RESUME_NAMES
            info = zipfile.ZipInfo(names[name % len(names)])
            info.compress_type = zipfile.ZIP_DEFLATED if packed & 1 else zipfile.ZIP_STORED
            archive.writestr(info, part)
            at, number = at + 4 + length, number + 1
    return out.getvalue()


PARTS = ("logits", "margin", "heldout_nll", "experts")
GOLDEN_NAMES = [
    f"{name}.npy"
    for name in (
        *("input_ids heldout_ids heldout_source text text_ids stop_ids greedy_prompt".split()),
        *("greedy domains usage".split()),
        *(f"original/{part}" for part in PARTS),
        *(f"gguf:q4_0/{part}" for part in PARTS),
    )
]
RESUME_NAMES = ["blocks.npy", "files.npy", "written/0/0/0.npy", "heard/0/0/hidden.npy"]

CONFIG = b"""{"model_type": "emo", "vocab_size": 8, "hidden_size": 4, "intermediate_size": 2,
"num_hidden_layers": 1, "num_attention_heads": 2, "max_position_embeddings": 16,
"rms_norm_eps": 1e-6, "rope_theta": 10000.0, "num_experts": 2, "num_experts_per_tok": 1,
"num_shared_experts": 0, "eos_token_id": 7}"""
SHARD = b"\x02\0\0\0\0\0\0\0{}"

READERS: Mapping[str, Reader] = {
    "json": Reader("any.json", read_json),
    "safetensors": Reader("model.safetensors", _safetensors),
    "index": Reader(
        "model.safetensors.index.json",
        _checkpoint,
        {"config.json": CONFIG, "a.safetensors": SHARD, "b.safetensors": SHARD},
    ),
    "config": Reader("config.json", _inspect_folder),
    "gguf": Reader("model.gguf", _gguf),
    "gguf-weights": Reader("model.gguf", _gguf_weights, {"config.json": CONFIG}),
    "imatrix": Reader("imatrix.gguf", _imatrix, {"config.json": CONFIG}),
    "onnx": Reader("model.onnx", _onnx, {"config.json": CONFIG, "model.onnx.data": bytes(512)}),
    "onnx-bytes": Reader("model.onnx", _onnx_bytes),
    "golden": Reader("golden.npz", Golden.load, whole=npz_of),
    "zip": Reader("golden.npz", Golden.load),
    "resume": Reader("state.npz", _resume, whole=npz_of),
    "manifest": Reader("manifest.json", _manifest),
    "domains": Reader("domains.json", _records),
    "records": Reader("emo_export.json", _records),
    "templates": Reader("tokenizer_config.json", _records),
    "tokenizer": Reader(
        "tokenizer.json",
        _tokenizer,
        {"config.json": CONFIG, "generation_config.json": b'{"eos_token_id": 7}'},
    ),
    "sweep": Reader("sweep.toml", read_spec, {"a.txt": b"text"}),
    "text": Reader("text.jsonl", _text),
}


def kept(name: str) -> list[bytes]:
    """The corpus of a reader."""
    return [path.read_bytes() for path in sorted((CORPUS / name).iterdir())]
