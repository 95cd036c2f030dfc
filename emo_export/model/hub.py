"""Where a checkpoint is: a local folder, or a Hugging Face id fetched into the hub's cache."""

from __future__ import annotations

import re
from pathlib import Path

from emo_export.base.install import install_command
from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.model.source_card import CARD

SMALL_FILES = [
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "pruning_metadata.json",
    "chat_template.jinja",
    "additional_chat_templates/*.jinja",
    "model.safetensors.index.json",
]
HUB_FILES = [*SMALL_FILES, "*.safetensors"]


def locate(source: str, progress: bool = False, weights: bool = True) -> Path:
    """A local folder as it is, or a Hugging Face id fetched into the hub's cache (resumable).

    Only the files of HUB_FILES are fetched, or without `weights` those of SMALL_FILES, and the
    card; remote code
    never is. Raises EmoExportError when the source is neither, MissingDependencyError without
    huggingface_hub.
    """
    path = Path(source).expanduser()
    if path.exists() or not re.fullmatch(r"[\w.-]+/[\w.-]+(@[\w./-]+)?", source):
        return path
    try:
        import huggingface_hub
        from huggingface_hub.utils.tqdm import disable_progress_bars
    except ImportError as error:
        raise MissingDependencyError(
            f"{source}: fetching from the hub needs huggingface_hub; {install_command('convert')}"
        ) from error
    if not progress:
        disable_progress_bars()
    repo, _, revision = source.partition("@")
    wanted = [*(HUB_FILES if weights else SMALL_FILES), CARD]
    try:
        # A pattern's * also matches "/": without ignoring folders, copies of the weights in other
        # layouts (original/, checkpoint-100/) would be fetched too.
        found = huggingface_hub.snapshot_download(
            repo,
            revision=revision or None,
            allow_patterns=wanted,
            ignore_patterns=["*/*.safetensors"],
        )
    except Exception as error:
        # The client lets the errors of its HTTP library through (httpx in 1.x, httpx2 in 2.x)
        # when a transfer breaks off, and ValueError for a malformed id.
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise EmoExportError(
            f"{source}: is no local folder and could not be fetched from the hub ({reason}); "
            "run the command again: files fetched whole are kept"
        ) from error
    return Path(found)
