"""What a path is: a checkpoint, a .gguf, an exported ONNX folder or an exported package.

Only headers and JSON are read. Facts are what the files say; warnings are what is wrong in them.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from emo_export.checkpoint import Checkpoint, read_json
from emo_export.config import EmoConfig, LayerShape
from emo_export.errors import EmoExportError
from emo_export.inspect_gguf import gguf_facts
from emo_export.inspect_onnx import MODEL, onnx_facts
from emo_export.manifest import NAME as MANIFEST
from emo_export.manifest import Manifest
from emo_export.names import shape_of, slots
from emo_export.scheme import part_of

ACCEPTED = (
    "a Hugging Face checkpoint folder (config.json), a .gguf file, an exported ONNX folder "
    f"({MODEL}) or a folder that export made ({MANIFEST})"
)
