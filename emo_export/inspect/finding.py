"""A GGUF as its judges see it, and what a judge says of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from emo_export.files.gguf_header import GgufArray, GgufFile, GgufTensor
from emo_export.files.gguf_names import GGUF_NAMES
from emo_export.model.names import Role

Level = Literal["wrong", "risk", "note"]
AGAIN = "Convert the checkpoint again (emo-export export)"


@dataclass(frozen=True)
class Finding:
    """What was found, what follows from it, and what to do about it.

    `wrong`: the model computes something else than EMO, or does not open. `risk`: it may.
    `note`: worth knowing. `target` is set in a folder with several files.
    """

    level: Level
    what: str
    consequence: str
    remedy: str = ""
    target: str = ""

    @property
    def text(self) -> str:
        """The whole finding in one line."""
        return f"{self.head}: {self.rest}"

    @property
    def head(self) -> str:
        """What was found, and in which file of a folder."""
        return f"{self.target}: {self.what}" if self.target else self.what

    @property
    def rest(self) -> str:
        """What follows, and what to do."""
        return f"{self.consequence}. {self.remedy}" if self.remedy else self.consequence


@dataclass(frozen=True)
class Subject:
    """A GGUF file whose header has been read."""

    path: Path
    file: GgufFile

    @cached_property
    def arch(self) -> str:
        """Its architecture; every key of its shape begins with this."""
        return str(self.file.keys.get("general.architecture"))

    @cached_property
    def tensors(self) -> Mapping[str, GgufTensor]:
        """Tensors by name."""
        return {tensor.name: tensor for tensor in self.file.tensors}

    @cached_property
    def blocks(self) -> list[int]:
        """Numbers of the blocks that have tensors."""
        numbers = (name.split(".")[1] for name in self.tensors if name.startswith("blk."))
        return sorted({int(n) for n in numbers if n.isascii() and n.isdigit()})

    @cached_property
    def expert_blocks(self) -> list[int]:
        """Numbers of the blocks that have a router."""
        return [i for i in self.blocks if GGUF_NAMES.name(Role.ROUTER, i) in self.tensors]

    def has(self, part: str) -> bool:
        """Whether a tensor's name contains `part`."""
        return any(part in name for name in self.tensors)

    def number(self, name: str) -> int | float | None:
        """A key of the architecture, when it is a finite number (or a yes or no, as 1 or 0)."""
        value = self.file.keys.get(f"{self.arch}.{name}")
        fits = isinstance(value, int | float) and math.isfinite(value)
        return value if fits else None

    def text(self, key: str) -> str | None:
        """A key of any group, when it is a text."""
        value = self.file.keys.get(key)
        return value if isinstance(value, str) else None

    def id_of(self, name: str) -> int | None:
        """A token id among the tokenizer's keys."""
        value = self.file.keys.get(f"tokenizer.ggml.{name}")
        return value if type(value) is int else None

    @property
    def token_count(self) -> int | None:
        """How many tokens the tokenizer has; None without one."""
        tokens = self.file.keys.get("tokenizer.ggml.tokens")
        if isinstance(tokens, GgufArray):
            return tokens.length
        return len(tokens) if isinstance(tokens, list) else None
