"""Prompts written by a chat template; and the process in which that is done.

    python -m emo_export.runtimes.rendering

A template is a program of whoever made the model. Jinja's sandbox keeps it from this machine's
files, not from taking all its time and memory, so it runs in a process that can be ended. Each line
of JSON on stdin has `template`, `special` (name -> text) and `messages`, which are null where only
the template is looked at; each line on stdout has `prompt` or `refused`.

Rendered as transformers 5 does (`utils/chat_template_utils.py`): Jinja in a sandbox, blocks
trimmed, with `raise_exception`, `strftime_now` and the texts of the special tokens.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, NoReturn

from jinja2 import Template as Compiled
from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

MOST_BYTES = 512 << 20  # of address space, of which Python and Jinja take some 50 MB
LONGEST = 16 << 20  # characters of a prompt

_RAISED = (
    TemplateError,
    TypeError,
    ValueError,
    LookupError,
    ArithmeticError,
    AttributeError,
    AssertionError,
    RuntimeError,
    SyntaxError,  # Python's own, for what Jinja made of blocks that are nested too deep
)
"""What a program of a stranger ends with."""


class RefusedError(Exception):
    """A template that is none, or that does not write these messages: how it goes on about it."""


def rendered(
    template: str, special: Mapping[str, str], messages: Sequence[tuple[str, str]] | None
) -> str:
    """(role, text) of messages -> the prompt that ends where the answer begins.

    Of None: an empty text, once the template is known to be one. Raises RefusedError.
    """
    try:
        compiled = _compiled(template)
    except _RAISED as error:
        raise RefusedError(f"is no template ({error})") from error
    except MemoryError as error:
        raise RefusedError(_too_much()) from error
    if messages is None:
        return ""
    try:
        prompt = compiled.render(
            messages=[{"role": role, "content": text} for role, text in messages],
            add_generation_prompt=True,
            **special,
        )
        prompt.encode("utf-8")  # a template may write half of a surrogate pair
    except _RAISED as error:
        raise RefusedError(f"refuses them ({error})"[:1000]) from error
    except MemoryError as error:
        raise RefusedError(_too_much()) from error
    if len(prompt) > LONGEST:
        raise RefusedError(f"writes {len(prompt)} characters, more than {LONGEST}")
    return prompt


@functools.lru_cache(1)
def _compiled(text: str) -> Compiled:
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals |= {"raise_exception": _raise, "strftime_now": _now}
    return environment.from_string(text)


def _too_much() -> str:
    return f"takes more than {MOST_BYTES >> 20} MiB of memory"


def _raise(message: str) -> NoReturn:
    raise TemplateError(message)


def _now(form: str) -> str:
    return datetime.datetime.now().strftime(form)


def _answer(asked: Mapping[str, Any]) -> Mapping[str, str]:
    try:
        return {"prompt": rendered(asked["template"], asked["special"], asked["messages"])}
    except RefusedError as refused:
        return {"refused": str(refused)}


def main() -> None:
    """Answer until stdin ends."""
    import resource  # not on Windows

    with contextlib.suppress(ValueError, OSError):  # macOS has no such limit
        resource.setrlimit(resource.RLIMIT_AS, (MOST_BYTES, MOST_BYTES))
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)
        for line in sys.stdin.buffer:
            answers.write(json.dumps(_answer(json.loads(line))) + "\n")
            answers.flush()


if __name__ == "__main__":
    main()
