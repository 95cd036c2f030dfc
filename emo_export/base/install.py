"""The pip command that would add an extra to this installation."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Sequence

from emo_export.errors import MissingDependencyError

DISTRIBUTION = "emo-export"


CONVERT = ("torch", "gguf", "onnx", "ml_dtypes", "tokenizers")
"""What converting and the reference need to be installed."""


def need(modules: Sequence[str], extra: str, what: str) -> None:
    """Raise MissingDependencyError, with the command that installs it, unless all can be found."""
    missing = [name for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingDependencyError(f"{what} needs {', '.join(missing)}; {install_command(extra)}")


def install_command(extra: str) -> str:
    """`pip install …[extra]`, from where this distribution was installed (PEP 610)."""
    return f'pip install "{_origin()}[{extra}]"'


def _origin() -> str:
    from importlib import metadata  # not on the way of a command that finds what it needs
    from urllib.parse import unquote, urlparse

    try:
        recorded = metadata.distribution(DISTRIBUTION).read_text("direct_url.json")
    except metadata.PackageNotFoundError:
        return DISTRIBUTION
    place = urlparse(json.loads(recorded)["url"]) if recorded else None
    # A folder, not a wheel file: an archive at some other path may be gone by now.
    if place is None or place.scheme != "file" or place.path.endswith((".whl", ".gz", ".zip")):
        return DISTRIBUTION
    return unquote(place.path)
