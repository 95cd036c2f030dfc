"""The chat templates of a checkpoint, wherever they are stored.

Source: transformers 5, `tokenization_utils_base.py`: `chat_template.jinja` and
`additional_chat_templates/NAME.jinja`; before 4.50 `chat_template` in tokenizer_config.json, a text
or a list of `{name, template}`, which is not looked at beside a chat_template.jinja.
"""

from __future__ import annotations

import re
from pathlib import Path

from emo_export.base.json_file import read_json, read_text
from emo_export.errors import EmoExportError

TEMPLATE, TEMPLATES = "chat_template.jinja", "additional_chat_templates"
SETTINGS = "tokenizer_config.json"
_NAME = re.compile(r"\w[\w .-]{0,99}")
DEFAULT = "default"


def template_files(folder: Path) -> dict[str, Path]:
    """Name -> file of the templates that are files."""
    single = folder / TEMPLATE
    files = {path.stem: path for path in sorted((folder / TEMPLATES).glob("*.jinja"))}
    return files | ({DEFAULT: single} if single.is_file() else {})


def chat_templates(folder: Path) -> dict[str, str]:
    """Name -> Jinja text, the default one first; empty for a model without.

    Raises EmoExportError for a setting that is no template and a file that is not UTF-8.
    """
    files = {name: read_text(file) for name, file in template_files(folder).items()}
    found = files if DEFAULT in files else _settings(folder / SETTINGS) | files
    return {name: found[name] for name in sorted(found, key=lambda name: (name != DEFAULT, name))}


def _settings(path: Path) -> dict[str, str]:
    setting = read_json(path).get("chat_template") if path.is_file() else None
    if not setting:
        return {}
    found: dict[str, str] = {}
    for entry in setting if isinstance(setting, list) else [{"name": DEFAULT, "template": setting}]:
        one = entry if isinstance(entry, dict) else {}
        name, text = one.get("name"), one.get("template")
        if not isinstance(name, str) or not isinstance(text, str):
            raise EmoExportError(
                f"{path}: chat_template is neither a text nor a list of objects with name and "
                "template"
            )
        if not _NAME.fullmatch(name):  # it becomes the name of a file
            raise EmoExportError(f"{path}: {name!r} is no name for a chat template")
        found[name] = text
    return found
