"""What runs beside optimum, in an environment of its own: python tests/kit/optimum_calls.py WORK.

WORK/calls.json holds a list of calls, each with a name, a function of this file under "do", and its
arguments; the arrays that they answer go to WORK/answers.npz under their names.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnxruntime
import torch
from optimum.onnxruntime import ORTModelForCausalLM

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "examples"))

import optimum_export

Rows = list[list[int]]
NO_ENTRIES: Mapping[str, str] = MappingProxyType({})


def export(checkpoint: str, folder: str) -> Any:
    """optimum's own export."""
    optimum_export.export(checkpoint, folder)
    return 0


def logits(checkpoint: str, rows: Rows) -> Any:
    """What the torch model of examples/optimum_export.py computes: (n, T, V)."""
    model = optimum_export.EmoForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.no_grad():
        return model(input_ids=torch.tensor(rows), use_cache=False).logits.numpy()


def reference(checkpoint: str, rows: Rows, settings: dict[str, Any]) -> Any:
    """transformers' generate over that torch model, each prompt alone and without padding."""
    model = optimum_export.EmoForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    found = []
    for row in rows:
        ids = torch.tensor([row])
        mask = torch.ones_like(ids)
        out = model.generate(ids, attention_mask=mask, do_sample=False, **settings)
        found.append(out[0, len(row) :].tolist())
    return _padded(found, -1)


def generate(
    folder: str,
    rows: Rows,
    settings: dict[str, Any],
    *,
    use_io_binding: bool = False,
    use_cache: bool = True,
    entries: Mapping[str, str] = NO_ENTRIES,
) -> Any:
    """optimum's generate over an exported folder, all prompts in one batch, padded on the left.

    `entries` are ONNX Runtime's session options by key.
    """
    session = onnxruntime.SessionOptions()
    session.intra_op_num_threads = 1
    for key, value in entries.items():
        session.add_session_config_entry(key, value)
    model = ORTModelForCausalLM.from_pretrained(
        folder, session_options=session, use_io_binding=use_io_binding, use_cache=use_cache
    )
    if not model.can_use_cache or model.is_merged:
        raise ValueError(f"{folder}: can_use_cache {model.can_use_cache}, merged {model.is_merged}")
    pad = model.config.pad_token_id
    width = max(map(len, rows))
    ids = torch.tensor([[pad] * (width - len(row)) + row for row in rows])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    out = model.generate(ids, attention_mask=mask, do_sample=False, **settings)
    ends = settings.get("eos_token_id", model.generation_config.eos_token_id)
    return _padded([_until(row, ends) for row in out[:, width:].tolist()], -1)


def _until(row: list[int], end: int) -> list[int]:
    """A row up to its end of text, which is part of it."""
    return row[: row.index(end) + 1] if end in row else row


def _padded(rows: Rows, fill: int) -> Any:
    width = max(map(len, rows))
    return np.array([row + [fill] * (width - len(row)) for row in rows])


FUNCTIONS = {f.__name__: f for f in (export, logits, reference, generate)}


def main() -> None:
    """Answer every call."""
    work = Path(sys.argv[1])
    torch.set_num_threads(1)
    answers = {}
    for call in json.loads((work / "calls.json").read_text("utf-8")):
        name, do = call.pop("name"), call.pop("do")
        answers[name] = FUNCTIONS[do](**call)
    np.savez(work / "answers.npz", **answers)


if __name__ == "__main__":
    main()
