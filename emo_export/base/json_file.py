"""Reading a JSON object from a file, with errors that name it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError


def read_json(path: Path) -> dict[str, Any]:
    """Parse a file that holds one JSON object.

    Raises EmoExportError when it is missing, unreadable, no JSON, or something else than an object.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise EmoExportError(f"there is no file {path}") from error
    except OSError as error:
        raise EmoExportError(f"{path}: cannot be read ({error.strerror})") from error
    except (ValueError, RecursionError) as error:
        raise EmoExportError(f"{path} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise EmoExportError(f"{path} holds {type(value).__name__}, expected an object")
    return value
