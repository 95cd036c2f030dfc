"""The files of an exported folder beside its weights: parity.json, card, Modelfiles, manifest."""

from __future__ import annotations

import json
import platform
import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path

from emo_export import __version__
from emo_export.base.disk import size_of, writing
from emo_export.card import model_card
from emo_export.card_running import modelfile, modelfile_name
from emo_export.files.manifest import Manifest, Origin, write_manifest
from emo_export.files.target_entry import TargetEntry
from emo_export.model.chat_templates import DEFAULT, chat_templates
from emo_export.model.product import Product
from emo_export.parity.result import Result, as_json

TOOLS = ("torch", "numpy", "gguf", "onnx", "onnxruntime", "xllamacpp", "tokenizers")


def complete(
    folder: Path,
    product: Product,
    title: str,
    entries: Mapping[str, TargetEntry],
    results: Sequence[Result],
    origin: Origin,
) -> Manifest:
    """Write what a folder has beside weights and reference; the manifest last.

    `results` of a validation, which go into the card; `title` is the card's; `origin` goes into
    the manifest.
    """
    sizes = {
        spec: sum(size_of(folder / path) for path in entry.paths) for spec, entry in entries.items()
    }
    with writing(folder / "README.md"):
        card = model_card(product, title, entries, sizes, results)
        (folder / "README.md").write_text(card, encoding="utf-8")
    _write_modelfiles(folder, entries, product.path)
    return write_manifest(folder, origin, entries)


def write_parity(path: Path, results: Sequence[Result]) -> None:
    """Write parity.json: every comparison with its figures, limits and verdict."""
    # A list of numbers is easier to read, and shorter, on one line; no string has a line break.
    text = re.sub(
        r"\[\n[-+\d.eE,\snul]*\]",
        lambda found: " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]"),
        json.dumps(as_json(results), indent=2),
    )
    with writing(path):
        path.write_text(text + "\n", encoding="utf-8")


def _write_modelfiles(folder: Path, entries: Mapping[str, TargetEntry], source: Path) -> None:
    """A Modelfile for Ollama beside each GGUF file."""
    has_template = DEFAULT in chat_templates(source)
    for entry in entries.values():
        if entry.context is not None and entry.trunk is None:  # told of GGUF alone, in one file
            path = folder / modelfile_name(entry.path)
            with writing(path):
                path.write_text(modelfile(entry.path, entry.context, has_template), "utf-8")


def tool_versions() -> dict[str, str]:
    """Of this program and of what it converts with."""
    found = {"emo-export": __version__, "python": platform.python_version()}
    for name in TOOLS:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
