"""Whether a GGUF is an EMO, and how that is known.

No key says so: llama.cpp has no architecture of that name. What marks one are its names, its
tokenizer (dolma2: cl100k's split, 100278 tokens padded to 100352, end of text 100257) and its
shape, on a mixture of experts without q/k norms. Source: allenai/Emo_1b14b_1T.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from emo_export.errors import EmoExportError
from emo_export.inspect.finding import Subject
from emo_export.inspect.rows import read_rows

END_OF_TEXT = 100257
TOKENS = range(100278, 100353)  # the tokens of dolma2, up to the padded vocabulary
CL100K = "dbrx"  # llama.cpp's name of cl100k's split
RELEASED = {"embedding_length": 2048, "expert_feed_forward_length": 1024, "block_count": 16}
NAMES = re.compile(
    r"general\.(name|basename|finetune|repo_url|url|description)|"
    r"general\.(source|base_model)\..*(name|url|organization)"
)
EMO = re.compile(r"(?<![a-z])emo(?![a-z])", re.IGNORECASE)
EXACT = ("deepseek", "glm4moe", "bailingmoe")
# Tensors of kinds of attention and state that no EMO has.
FOREIGN = (".attn_kv_a", ".ssm_", ".shortconv", ".time_mix", ".attn_sinks", ".attn_qkv")

Verdict = Literal["emo", "likely", "unknown", "other"]


@dataclass(frozen=True)
class Kin:
    """Whether a file is an EMO: certainly, by the looks of it, unknown, or something else."""

    verdict: Verdict
    reason: str

    @property
    def is_emo(self) -> bool:
        """Whether it is to be judged as an EMO."""
        return self.verdict in ("emo", "likely")

    @property
    def text(self) -> str:
        """The verdict and how it is known."""
        said = {
            "emo": "an EMO",
            "likely": "looks like an EMO",
            "unknown": "can't tell whether this is an EMO",
            "other": "not an EMO",
        }
        return f"{said[self.verdict]} ({self.reason})"


def kin_of(subject: Subject) -> Kin:
    """Tell whether a file is an EMO."""
    arch = f"architecture {subject.arch!r}"
    names, marks = list(_names(subject)), list(_marks(subject))
    if not subject.expert_blocks and not subject.number("expert_count"):
        return Kin("other", f"{arch} without experts")
    found = next((part for part in FOREIGN if subject.has(part)), None)
    if found:
        return Kin("other", f"{arch} has {found.strip('._')} tensors, which no EMO has")
    normed = subject.has(".attn_q_norm.")
    if normed and marks and _invented_norms(subject):
        marks.append("q/k norms of ones, as a converter invents them")
    elif normed and not (names and marks):
        return Kin("other", f"{arch} with q/k norms, which no EMO has")
    if names:
        return Kin("emo", names[0])
    if marks:
        return Kin("likely", "; ".join(marks))
    if subject.arch in EXACT and subject.text("tokenizer.ggml.model") in (None, "none"):
        return Kin("unknown", f"{arch}, no tokenizer, and no name that says so")
    return Kin("other", f"{arch}, and neither its names nor its tokenizer are an EMO's")


def _invented_norms(subject: Subject) -> bool:
    """Whether q is normalised by weights that are all exactly one: training leaves none so."""
    norm = next(t for name, t in subject.tensors.items() if ".attn_q_norm." in name)
    try:
        return bool((read_rows(subject.path, norm, 0, 1) == 1).all())
    except EmoExportError:
        return False


def _names(subject: Subject) -> Iterator[str]:
    for key, value in subject.file.keys.items():
        if isinstance(value, str) and NAMES.fullmatch(key) and EMO.search(value[:200]):
            yield f"{key} is {value[:60]!r}"


def _marks(subject: Subject) -> Iterator[str]:
    shape = [subject.number(name) == size for name, size in RELEASED.items()]
    sizes = (subject.token_count, subject.number("vocab_size"))
    vocabulary = any(size in TOKENS for size in sizes if size is not None)
    if all(shape) and vocabulary:
        yield "it has the released EMO's shape"
    # DBRX itself splits text the same way.
    if subject.text("tokenizer.ggml.pre") == CL100K and subject.arch != "dbrx":
        yield "a mixture of experts with EMO's split of text, tokenizer.ggml.pre 'dbrx'"
    elif vocabulary and subject.id_of("eos_token_id") == END_OF_TEXT:
        yield f"a mixture of experts with EMO's vocabulary, end of text {END_OF_TEXT}"
