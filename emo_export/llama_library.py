"""Where llama.cpp's shared library is: in the extension module of the xllamacpp wheel."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from emo_export.errors import MissingDependencyError
from emo_export.install import install_command


def library_path(purpose: str) -> Path:
    """The file that exports the `llama_*` and `ggml_*` functions.

    Raises MissingDependencyError, which names the purpose, without xllamacpp.
    """
    # find_spec of a top-level name imports nothing, unlike `import xllamacpp`, whose Cython module
    # takes over llama.cpp's log.
    spec = importlib.util.find_spec("xllamacpp")
    folders = list(spec.submodule_search_locations or ()) if spec else []
    for folder in folders:
        for path in sorted(Path(folder).glob("xllamacpp*")):
            if path.suffix in (".so", ".pyd"):
                return path
    raise MissingDependencyError(
        f"{purpose} needs the package xllamacpp: {install_command('llama')}"
    )
