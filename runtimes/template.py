"""A conversation written as a prompt, by the chat template that came with the model.

Rendered as transformers 5 does (`utils/chat_template_utils.py`): Jinja in a sandbox, blocks
trimmed, with `raise_exception`, `strftime_now` and the texts of the special tokens.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from emo_export.base.json_file import read_json
from emo_export.errors import EmoExportError
from emo_export.files.gguf_header import GgufArray
from emo_export.files.gguf_parts import read_model
from emo_export.model.chat_templates import DEFAULT, SETTINGS, chat_templates


class Template:
    """A chat template, ready to write prompts."""

    def __init__(self, place: Path, text: str, begin: str, end: str) -> None:
        """`begin`, `end`: the texts of the tokens by these names, which templates quote.

        Raises EmoExportError for a text that is no template.
        """
        from jinja2 import TemplateSyntaxError
        from jinja2.sandbox import ImmutableSandboxedEnvironment

        environment = ImmutableSandboxedEnvironment(
            trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
        )
        environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
        self._special = {"bos_token": begin, "eos_token": end}
        try:
            self._template = environment.from_string(text)
        except TemplateSyntaxError as error:
            raise EmoExportError(f"{place}: its chat template is no template ({error})") from error

    def write(self, messages: Sequence[tuple[str, str]]) -> str:
        """(role, text) of messages -> the prompt that ends where the answer begins.

        Raises EmoExportError where the template does.
        """
        from jinja2 import TemplateError

        try:
            return self._template.render(
                messages=[{"role": role, "content": text} for role, text in messages],
                add_generation_prompt=True,
                **self._special,
            )
        except (TemplateError, TypeError, ValueError, LookupError, ArithmeticError) as error:
            raise EmoExportError(f"the model's chat template refuses them ({error})") from error


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


def _raise(message: str) -> NoReturn:
    from jinja2 import TemplateError

    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)
