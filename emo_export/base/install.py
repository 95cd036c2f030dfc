"""The command that would add an extra to this installation."""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from emo_export.base.engine_packages import ENGINE_OF, ENGINES, module_of
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
    """The command that adds an extra, of the installer that was used here (PEP 376, 610).

    Where nothing of ours is installed, as beside a .pyz, what the extra consists of.
    """
    from importlib import metadata  # not on the way of a command that finds what it needs

    try:
        ours = metadata.distribution(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        if extra in ENGINE_OF:
            return f"pip install {' '.join(map(module_of, ENGINES[ENGINE_OF[extra]]))}"
        return f'pip install "{DISTRIBUTION}[{extra}]"'
    recorded = ours.read_text("direct_url.json")
    wanted = f'"{_origin(recorded)}[{extra}]"'
    if (Path(sys.prefix) / "uv-receipt.toml").is_file():
        return f"uv tool install {wanted}"
    if (Path(sys.prefix) / "pipx_metadata.json").is_file():
        return f"pipx install --force {wanted}"
    by_uv = (ours.read_text("INSTALLER") or "").strip() == "uv"
    told = json.loads(recorded) if recorded else {}
    editable = "-e " if told.get("dir_info", {}).get("editable") else ""
    return f"{'uv ' if by_uv else ''}pip install {editable}{wanted}"


def _origin(recorded: str | None) -> str:
    """What was installed: a folder, or our name; `recorded` is its direct_url.json."""
    from urllib.parse import unquote, urlparse

    place = urlparse(json.loads(recorded)["url"]) if recorded else None
    # A folder, not a wheel file: an archive at some other path may be gone by now.
    if place is None or place.scheme != "file" or place.path.endswith((".whl", ".gz", ".zip")):
        return DISTRIBUTION
    return unquote(place.path)
