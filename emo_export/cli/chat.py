"""The work of `chat`: turns of what the user types and what the model writes."""

from __future__ import annotations

import contextlib
import re
import signal
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from emo_export.base.install import need
from emo_export.cli.output import say
from emo_export.cli.run import begun, figures, keep, put_end, put_event, put_piece
from emo_export.cli.targets import OnnxSettings, open_with
from emo_export.errors import EmoExportError
from emo_export.interfaces import Tokenizer
from emo_export.runtimes.generate import End, Said, generate
from emo_export.runtimes.history import History, PlainHistory, TemplateHistory, fitted
from emo_export.runtimes.loading import Model, first_that_runs
from emo_export.runtimes.opening import tokenizer_of
from emo_export.runtimes.remembering import Interrupted, Remembering
from emo_export.runtimes.sampling import Sampling
from emo_export.runtimes.template import has_template, template_of

HELP = (
    "/reset begins anew, /quit or Ctrl-D ends the chat, Ctrl-C an answer",
    "an empty line lets the model go on",
)


@dataclass(frozen=True)
class Settings:
    """What `chat` was asked for, as its help describes it."""

    system: str
    sampling: Sampling
    max_tokens: int
    seed: int | None
    stop: tuple[str, ...]
    in_json: bool
    logprobs: bool
    quiet: bool


def run_chat(
    path: Path,
    settings: Settings,
    target: str | None,
    threads: int | None,
    onnx: OnnxSettings,
    kv_cache: str | None,
    prompt_cache: Path | None,
) -> None:
    """Chat until the user ends it. Raises EmoExportError for what can't be opened or read."""
    place = first_that_runs(path, target)
    with (
        Model(place, open_with(place, threads, onnx, kv_cache)) as model,
        contextlib.ExitStack() as held,
    ):
        typing = Typing()
        if prompt_cache is None:
            memory = Remembering(model.runtime, typing.is_stopped)
        else:
            memory = begun(prompt_cache, place, model, typing.is_stopped)
        tokenizer = tokenizer_of(place, model.runtime)
        history = _history(place, tokenizer, settings.system, held)
        if not settings.quiet and sys.stdin.isatty():
            plain = isinstance(history, PlainHistory)
            say(
                f"{place}: what you type is {'gone on with' if plain else 'answered'}, in a "
                f"context of {model.runtime.context_length} tokens; Ctrl-D ends, /help tells more"
            )
        chat = _Chat(memory, tokenizer, history, settings)
        with typing.heard():
            for text in typing.turns():
                if not chat.turn(text, typing):
                    break
        if prompt_cache is not None:
            keep(prompt_cache, place, memory, len(memory.ids), len(memory.ids))


def _history(place: Path, tokenizer: Tokenizer, system: str, held: contextlib.ExitStack) -> History:
    """By the model's chat template, which `held` closes, or plain. Raises EmoExportError."""
    if not has_template(place):
        return PlainHistory(tokenizer, system)
    need(["jinja2"], "serve", f"{place}: its chat template")
    template = template_of(place)
    assert template is not None
    held.callback(template.close)
    return TemplateHistory(tokenizer, template.write, system)


class Typing:
    """What the user types, and Ctrl-C, which ends an answer and twice in a row the chat."""

    def __init__(self) -> None:
        self._answering = self._stopped = False

    def is_stopped(self) -> bool:
        """Whether the answer is to end."""
        return self._stopped

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        """Hear Ctrl-C."""
        before = signal.getsignal(signal.SIGINT)

        def hear(number: int, frame: FrameType | None) -> None:
            if self._answering:
                self._stopped = True
            else:
                raise KeyboardInterrupt

        if before is not signal.SIG_IGN:
            signal.signal(signal.SIGINT, hear)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, before)

    @contextlib.contextmanager
    def answering(self) -> Iterator[None]:
        """While the model writes."""
        self._answering, self._stopped = True, False
        try:
            yield
        finally:
            self._answering = self._stopped = False

    def turns(self) -> Iterator[str]:
        """Each line, until the end of the input.

        Raises KeyboardInterrupt for two Ctrl-C in a row, EmoExportError for what is not UTF-8.
        """
        if not sys.stdin.isatty():
            for line in sys.stdin.buffer:
                try:
                    yield line.decode("utf-8").rstrip("\r\n")
                except UnicodeError as error:
                    raise EmoExportError(f"stdin: is not UTF-8 ({error})") from error
            return
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401 - input() edits lines with it
        again = False
        while True:
            try:
                text = input("> ")
            except EOFError:
                say("")
                return
            except KeyboardInterrupt:
                say("")
                if again:
                    raise
                again = True
                say("Ctrl-D, or Ctrl-C once more, ends the chat")
                continue
            again = False
            yield text


class _Chat:
    """A chat on its way."""

    def __init__(
        self, memory: Remembering, tokenizer: Tokenizer, history: History, settings: Settings
    ) -> None:
        self._memory, self._tokenizer = memory, tokenizer
        self._history, self._settings = history, settings
        self._turns = 0

    def turn(self, text: str, typing: Typing) -> bool:
        """Answer a text or obey a command; False ends the chat."""
        word = text.strip()
        if word == "/quit":
            return False
        if word == "/help":
            for line in HELP:
                say(line)
            return True
        if word == "/reset":
            self._history.reset()
            return True
        if re.fullmatch(r"/[a-z]+", word):
            say(f"{word}: there is no such command; /help tells which there are")
            return True
        length = self._memory.context_length
        if (count := len(self._tokenizer.encode(text))) >= length:
            say(f"the text has {count} tokens, the context {length}: shorten it")
            return True
        self._history.add(text)
        try:
            prompt, forgotten = fitted(self._history, length, self._settings.max_tokens)
        except EmoExportError as error:
            self._history.withdraw()
            say(str(error))
            return True
        if forgotten:
            say(f"the context of {length} tokens is full: the oldest {forgotten} are forgotten")
        with typing.answering():
            self._answer(prompt)
        self._turns += 1
        return True

    def _answer(self, prompt: list[int]) -> None:
        settings = self._settings
        answer = generate(
            self._memory,
            self._tokenizer,
            prompt,
            settings.sampling,
            max_tokens=settings.max_tokens,
            seed=None if settings.seed is None else settings.seed + self._turns,
            stop=settings.stop,
            log_probabilities=settings.logprobs,
            unread=self._memory.unread,
        )
        said: list[Said] = []
        try:
            for one in answer:
                said.append(one)
                if settings.in_json:
                    put_event(one, settings.logprobs)
                else:
                    put_piece(one.text)
        except Interrupted:
            answer.end = End.INTERRUPTED
        ids = [one.token for one in said if one.token is not None]
        self._history.answered(ids, "".join(one.text for one in said))
        if settings.in_json:
            put_end(answer)
            return
        put_piece("\n")
        if answer.end == End.CONTEXT:
            say("the context is full: the answer ends here")
        if not settings.quiet:
            say(figures(answer))
