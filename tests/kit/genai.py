"""onnxruntime-genai on exported folders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime_genai as og

from tests.kit.exporting import Array


@dataclass(frozen=True)
class Written:
    """What came after each prompt: tokens (B, n), and the logits that they were chosen by."""

    tokens: Array
    logits: Array  # (B, n, V)


def generate(
    folder: Path, prompts: Sequence[Sequence[int]], tokens: int, **options: Any
) -> Written:
    """Generate up to `tokens` greedily after prompts of one length; `options` of the search."""
    model, ids = og.Model(str(folder)), np.array(prompts, np.int32)
    params = og.GeneratorParams(model)
    limit = ids.shape[1] + tokens
    params.set_search_options(max_length=limit, batch_size=len(ids), **options)
    generator = og.Generator(model, params)
    generator.append_tokens(ids if len(ids) > 1 else ids[0])
    logits = []
    while not generator.is_done():
        logits.append(np.array(generator.get_logits())[:, -1])
        generator.generate_next_token()
    found = [generator.get_sequence(row)[ids.shape[1] :] for row in range(len(ids))]
    return Written(np.array(found), np.stack(logits, axis=1))
