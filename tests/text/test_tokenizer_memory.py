"""What a tokenizer that is gone leaves in memory."""

from __future__ import annotations

import gc
import os
from pathlib import Path

from emo_export.base.process_memory import rss_anonymous
from emo_export.text.tokenizer_file import open_library

ROUNDS, WORDS = 24, 1500
LEFT = 40_000  # bytes a round; a cache that stays with its thread takes some 250 000


def test_tokenizers_leave_nothing_in_the_thread(golden: Path) -> None:
    """The library keeps what a cache held with the thread that filled it (tokenizers 0.23)."""
    text = golden / "base" / "tokenizer.json"

    def encode(turn: int) -> None:
        open_library(text).encode(" ".join(f"w{turn}x{n}" for n in range(WORDS)))

    for turn in range(4):  # what is made once
        encode(turn)
    before = held()
    for turn in range(ROUNDS):
        encode(turn + 4)
    assert held() - before < ROUNDS * LEFT


def held() -> int:
    """Bytes of memory that are this process's own."""
    gc.collect()
    return rss_anonymous(os.getpid())
