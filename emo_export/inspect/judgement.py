"""What is wrong with a GGUF file, in plain words: whether it is an EMO, and what it would compute.

A file that is no EMO is held against what any GGUF must be; an EMO also against docs/emo.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from emo_export.files.gguf_header import GgufFile
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.files.tensor_names import Form, Held
from emo_export.inspect.finding import Finding, Level, Subject
from emo_export.inspect.judge_graph import graph_findings
from emo_export.inspect.judge_tokens import token_findings
from emo_export.inspect.judge_weights import weight_findings
from emo_export.inspect.kin import Kin, kin_of
from emo_export.model.names import Role

FLOATS = ("F32", "F16", "BF16")
SLACK = 4096  # bytes behind the last tensor that may be padding
LEVELS: tuple[Level, ...] = ("wrong", "risk", "note")
COUNTED: dict[Level, tuple[str, str]] = {
    "wrong": ("thing wrong", "things wrong"),
    "risk": ("risk", "risks"),
}


def judge(path: Path, file: GgufFile) -> tuple[str, list[Finding]]:
    """One line of judgement, and the findings, the worst first. `file` is from read_gguf."""
    subject = Subject(path, file)
    kind = subject.text("general.type")
    if kind == "imatrix":
        return _imatrix(subject), list(_file(subject))
    if kind not in (None, "model") or subject.arch == "clip":
        return f"not a language model: {kind or subject.arch}", list(_file(subject))
    kin = kin_of(subject)
    found = [*_file(subject), *_structure(subject)]
    found += token_findings(subject, kin.is_emo)
    whole = not isinstance(parts := file.keys.get("split.count"), int) or parts < 2
    if kin.is_emo and whole:  # of a part, most tensors are elsewhere
        found += [*graph_findings(subject), *weight_findings(subject)]
    found.sort(key=lambda finding: LEVELS.index(finding.level))
    return _line(kin, found), found


def _imatrix(subject: Subject) -> str:
    """What an importance matrix of llama-imatrix or of an export was made from."""
    chunks, size, text = (
        subject.file.keys.get(f"imatrix.{key}") for key in ("chunk_count", "chunk_size", "datasets")
    )
    about = ""
    if isinstance(chunks, int) and isinstance(size, int):
        about = f" of about {chunks * size} tokens"
    if isinstance(text, list):
        about += f" of {', '.join(str(name)[:60] for name in text[:8])}"
    count = sum(name.endswith(".in_sum2") for name in subject.tensors)
    return (
        f"no model but an importance matrix{about}, for {count} tensors: give it to "
        "emo-export export --imatrix or llama-quantize --imatrix"
    )


def _line(kin: Kin, found: list[Finding]) -> str:
    counts = Counter(finding.level for finding in found)
    said = [
        f"{counts[level]} {words[counts[level] > 1]}"
        for level, words in COUNTED.items()
        if counts[level]
    ]
    checked = "" if kin.is_emo else " (of what holds for any model)"
    if not found:
        checked += "; of the weights only some rows were looked at"
    return f"{kin.text}; {', '.join(said) or 'nothing wrong'} found{checked}"


def _file(subject: Subject) -> Iterator[Finding]:
    file = subject.file
    end = max((t.offset + t.nbytes for t in file.tensors), default=file.data_offset)
    if file.size > end + SLACK:
        what = f"{file.size - end} bytes lie behind the last tensor"
        yield Finding("risk", what, "nothing reads them; the file may be two files in one")
    parts = file.keys.get("split.count")
    if isinstance(parts, int) and parts > 1:
        what = f"this is one of {parts} parts (split.count)"
        yield Finding("risk", what, "the others are needed beside it, and were not looked at")


def _structure(subject: Subject) -> Iterator[Finding]:
    """What must hold for a model of any architecture."""
    yield from _quantised_routers(subject)
    said, blocks = subject.number("block_count"), subject.blocks
    split = isinstance(parts := subject.file.keys.get("split.count"), int) and parts > 1
    if blocks and said != len(blocks) and not split:
        shown = "missing" if said is None else said
        what = f"block_count is {shown} but there are tensors of {len(blocks)} blocks"
        yield Finding("wrong", what, "layers are left out, or llama.cpp does not open the file")
    experts = subject.number("expert_count")
    for name, tensor in subject.tensors.items():
        held = GGUF_NAMES.held(name)
        if held is not None and _by_expert(held) and tensor.shape[0] != experts:
            shown = "missing" if experts is None else experts
            what = f"{name} has {tensor.shape[0]} experts, expert_count is {shown}"
            yield Finding("wrong", what, "llama.cpp does not open the file")
            break
    names = [GGUF_NAMES.name(Role.EMBED)]
    names += (
        [GGUF_NAMES.name(Role.FINAL_NORM)] if subject.expert_blocks else []
    )  # not every encoder has one
    for name in names:
        if name not in subject.tensors and not split:
            what = f"tensor {name} is missing"
            yield Finding("wrong", what, "llama.cpp does not open the file")


def _by_expert(held: Held) -> bool:
    """Whether a tensor's first dimension is that of the experts."""
    return held.form == Form.STACK or (held.roles, held.form) == ((Role.ROUTER,), Form.OWN)


def _quantised_routers(subject: Subject) -> Iterator[Finding]:
    found = [
        tensor
        for name, tensor in subject.tensors.items()
        if ".ffn_gate_inp." in name and tensor.type not in FLOATS
    ]
    if found:
        more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
        yield Finding(
            "risk",
            f"router {found[0].name} is quantised ({found[0].type}){more}",
            "small errors there choose other experts: text may loop (with 4 bits it does), to save "
            "0.05% of the size",
            "Keep routers in F32",
        )
