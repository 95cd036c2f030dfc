"""A conversation written as a prompt, by the chat template that came with the model."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path

from emo_export.base.child_process import Child, ChildHangsError
from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufArray
from emo_export.files.gguf_parts import read_model
from emo_export.model.chat_templates import DEFAULT, SETTINGS, chat_templates

RENDER_SECONDS = 10.0
"""For one prompt, and the start of the process that writes it: 1 s on a small board."""


class Template:
    """A chat template, which writes prompts in a process of its own (`rendering`)."""

    def __init__(
        self, place: Path, text: str, begin: str, end: str, seconds: float = RENDER_SECONDS
    ) -> None:
        """`begin`, `end`: the texts of the tokens by these names, which templates quote.

        Raises EmoExportError for a text that is no template.
        """
        self._asked = {"template": text, "special": {"bos_token": begin, "eos_token": end}}
        self._seconds, self._lock = seconds, threading.Lock()
        self._child: Child | None = None
        self._ask(f"{place}: its chat template", None)

    def write(self, messages: Sequence[tuple[str, str]]) -> str:
        """(role, text) of messages -> the prompt that ends where the answer begins.

        Raises EmoExportError where the template does, and where it takes too long or too much.
        """
        return self._ask("the model's chat template", messages)

    def _ask(self, who: str, messages: Sequence[tuple[str, str]] | None) -> str:
        with self._lock:
            if self._child is None:
                module = "emo_export.runtimes.rendering"
                self._child = Child("the process of the chat template", module, self._seconds)
            try:
                answer = self._child.ask({**self._asked, "messages": messages})
            except BaseException as error:  # also Ctrl-C: its answer would be taken for the next
                self._end()
                if isinstance(error, ChildHangsError):
                    raise EmoExportError(
                        f"{who} does not end within {self._seconds:g} seconds"
                    ) from error
                raise
        if "refused" in answer:
            raise EmoExportError(f"{who} {answer['refused']}")
        return str(answer["prompt"])

    def _end(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child = None

    def close(self) -> None:
        """End its process; a second call does nothing."""
        with self._lock:
            self._end()


def has_template(path: Path) -> bool:
    """Whether a .gguf file or an ONNX folder has a chat template; needs no Jinja."""
    if path.is_dir():
        return DEFAULT in chat_templates(path)
    return isinstance(read_model(path).keys.get("tokenizer.chat_template"), str)


def template_of(path: Path) -> Template | None:
    """The default template of a .gguf file or an ONNX folder, or None for a model without.

    Raises EmoExportError for files that can't be read.
    """
    if path.is_dir():
        text = chat_templates(path).get(DEFAULT)
        if text is None:
            return None
        settings = read_json(path / SETTINGS) if (path / SETTINGS).is_file() else {}
        begin, end = (_named(settings.get(name)) for name in ("bos_token", "eos_token"))
        return Template(path, text, begin, end)
    keys = read_model(path).keys
    text = keys.get("tokenizer.chat_template")
    if not isinstance(text, str):
        return None
    tokens = keys.get("tokenizer.ggml.tokens")
    begin, end = (
        _token(path, tokens, keys.get(f"tokenizer.ggml.{name}_token_id")) for name in ("bos", "eos")
    )
    return Template(path, text, begin, end)


def _named(value: object) -> str:
    """A token of tokenizer_config.json: its text, or an object that has it."""
    content = value.get("content") if isinstance(value, dict) else value
    return content if isinstance(content, str) else ""


def _token(path: Path, tokens: object, number: object) -> str:
    """The text of one token of a checked header."""
    if not isinstance(number, int) or number < 0:
        return ""
    if isinstance(tokens, list | tuple):
        return str(tokens[number]) if number < len(tokens) else ""
    if not isinstance(tokens, GgufArray) or number >= tokens.length:
        return ""
    with path.open("rb") as file:
        file.seek(tokens.start)
        for _ in range(number):
            file.seek(int.from_bytes(file.read(8), "little"), 1)
        return file.read(int.from_bytes(file.read(8), "little")).decode("utf-8", errors="replace")
