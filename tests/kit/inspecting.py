"""An inspection as its reader sees it."""

from __future__ import annotations

import io
import json
from pathlib import Path

from rich.console import Console

from emo_export.inspect.checkpoint import Inspection
from emo_export.inspect.view import render

Files = dict[str, Path]


def shown(inspection: Inspection) -> str:
    json.dumps(inspection.as_dict(), allow_nan=False)
    out = io.StringIO()
    Console(file=out, width=200).print(render(inspection))
    return out.getvalue()


def lengthen(folder: Path) -> None:
    with (folder / "model.onnx.data").open("ab") as file:
        file.write(b"x")
