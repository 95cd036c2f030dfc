"""Where llama.cpp's shared library is: in the xllamacpp wheel, or where the user says."""

from __future__ import annotations

import importlib.util
import os
from pathlib import Path

from emo_export.base.install import install_command
from emo_export.errors import EmoExportError, MissingDependencyError

LIBRARY = "EMO_EXPORT_LIBLLAMA"
"""Environment variable: a libllama.so to use in place of the wheel's (a distribution's, Termux's, a
build of one's own). Where its ggml loads its kernels at run time, they are looked for beside it."""


def library_path(purpose: str) -> Path:
    """The file that exports the `llama_*` and `ggml_*` functions.

    Raises MissingDependencyError, which names the purpose, without xllamacpp, and EmoExportError
    when EMO_EXPORT_LIBLLAMA names no file.
    """
    if own := own_library():
        return own
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


def own_library() -> Path | None:
    """What EMO_EXPORT_LIBLLAMA names; EmoExportError when it is no file."""
    if not os.environ.get(LIBRARY):
        return None
    path = Path(os.environ[LIBRARY]).absolute()
    if not path.is_file():
        raise EmoExportError(f"{LIBRARY} is {path}, where there is no file; name a libllama.so")
    return path
