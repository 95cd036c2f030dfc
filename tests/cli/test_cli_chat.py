"""`chat`: turns from a pipe and on a terminal, Ctrl-C, a full context, a prompt cache."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.kit.command import Emo
from tests.kit.exporting import exported
from tests.kit.paths import GOLDEN, NANO


def typed(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    stdin = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(text.encode()))
    monkeypatch.setattr(sys, "stdin", stdin)


def test_turns_are_one_text(emo: Emo, monkeypatch: pytest.MonkeyPatch) -> None:
    """What two turns say is what the model says of the whole text."""
    path = exported(NANO, "gguf:q4_0")
    options = ["--temperature", "0", "--json"]
    typed(monkeypatch, "def mean(values):\n\n/help\n")
    done = emo("chat", path, "-n", "8", *options)
    assert done.code == 0, done.err
    events = [json.loads(line) for line in done.out.splitlines()]
    ends = [event for event in events if event["event"] == "end"]
    assert [end["prompt_tokens"] for end in ends] == [5, 13]
    assert [end["read_tokens"] for end in ends] == [5, 1]
    whole = emo("run", path, "def mean(values):", "-n", "16", *options)
    said = [json.loads(line) for line in whole.out.splitlines()]
    assert [e["id"] for e in events if e["event"] == "token"] == [
        e["id"] for e in said if e["event"] == "token"
    ]
    assert "/reset begins anew" in done.err


@pytest.mark.slow
def test_a_full_context_is_told(emo: Emo, monkeypatch: pytest.MonkeyPatch) -> None:
    path = exported(NANO, "gguf:q4_0")
    typed(monkeypatch, "a b c d e f g h " * 55 + "\nx\n" + "a b c d " * 400 + "\ny\n")
    done = emo("chat", path, "-n", "600", "--temperature", "0", "--system", "Letters:")
    assert done.code == 0, done.err
    assert "the context is full: the answer ends here" in done.err
    assert "the context of 1024 tokens is full: the oldest " in done.err
    assert "tokens, the context 1024: shorten it" in done.err
    assert done.err.count("tokens read") == 3


@pytest.mark.slow
def test_a_prompt_that_was_kept_is_not_read_again(
    tmp_path: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, cache = exported(NANO, "onnx:int4"), tmp_path / "cache"
    options = ["--temperature", "0", "-n", "6", "--prompt-cache", cache]
    first = emo("run", path, "In the beginning God created", *options)
    again = emo("run", path, "In the beginning God created", *options)
    assert first.out == again.out and "1 tokens read" in again.err, again.err
    typed(monkeypatch, "In the beginning God created\n")
    chat = emo("chat", path, *options)
    assert chat.out == first.out and "1 tokens read" in chat.err
    cache.write_bytes(b"mine")
    refused = emo("run", path, "In the", *options)
    assert refused.code == 2 and "is not a prompt cache" in refused.err
    assert cache.read_bytes() == b"mine"
    early = emo("run", path, "In the", "--prompt-cache", tmp_path / "nowhere" / "cache")
    assert early.code == 2 and "can't be written" in early.err and not early.out


@pytest.mark.parametrize("text", ["\udcff", ""])
def test_what_is_not_text_is_refused(text: str, emo: Emo, monkeypatch: pytest.MonkeyPatch) -> None:
    stdin = SimpleNamespace(isatty=lambda: False, buffer=io.BytesIO(b"\xff\xfe" if text else b""))
    monkeypatch.setattr(sys, "stdin", stdin)
    done = emo("chat", exported(NANO, "gguf:q4_0"), "-q")
    assert (done.code, done.out) == (2 if text else 0, "")
    assert ("UTF-8" in done.err) == bool(text)


TEMPLATE = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.mark.slow
@pytest.mark.parametrize("target", ["gguf:q4_0", "onnx:int4"])
def test_a_model_with_a_template_answers_by_it(
    target: str, tmp_path: Path, emo: Emo, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = tmp_path / "chatty"
    shutil.copytree(GOLDEN / "base", checkpoint)
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    done = emo("export", checkpoint, "-o", tmp_path / "out", "--to", target, "--no-golden")
    assert done.code == 0, done.err
    options = ["-n", "6", "--temperature", "0"]
    typed(monkeypatch, "Hi\nAnd?\n")
    told = emo("chat", tmp_path / "out", "--system", "Be.", *options, "--json")
    events = [json.loads(line) for line in told.out.splitlines()]
    ends = [event for event in events if event["event"] == "end"]
    said, at = "", events.index(ends[0])
    for event in events[:at]:
        said += event["text"]
    begun = "system: Be.\nuser: Hi\nassistant:"
    assert emo("run", tmp_path / "out", begun, *options).out == f"{said}\n"
    then = f"system: Be.\nuser: Hi\nassistant: {said}\nuser: And?\nassistant:"
    rest = "".join(event["text"] for event in events[at:] if event["event"] == "token")
    assert emo("run", tmp_path / "out", then, *options).out == f"{rest}\n"


class Terminal:
    """`chat` on a terminal of its own."""

    def __init__(self, *arguments: object) -> None:
        parent, child = pty.openpty()
        line = [sys.executable, "-m", "emo_export", "chat", *map(str, arguments)]
        environment = {**os.environ, "TERM": "dumb"}
        self._process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *line],
            stdin=child,
            stdout=child,
            stderr=child,
            env=environment,
        )
        os.close(child)
        self._there, self.shown, self._at = parent, "", 0

    def wait_for(self, text: str) -> None:
        """Read until it shows a text after the one that was waited for before."""
        ends = time.monotonic() + 60
        while (found := self.shown.find(text, self._at)) < 0:
            assert time.monotonic() < ends, self.shown
            if select.select([self._there], [], [], 0.1)[0]:
                self.shown += os.read(self._there, 4096).decode("utf-8", "replace")
        self._at = found + len(text)

    def type(self, text: str) -> None:
        os.write(self._there, text.encode())

    def end(self) -> int:
        ends = time.monotonic() + 60
        while self._process.poll() is None:
            assert time.monotonic() < ends, self.shown
            if select.select([self._there], [], [], 0.1)[0]:
                try:
                    self.shown += os.read(self._there, 4096).decode("utf-8", "replace")
                except OSError:  # nobody has it open any more
                    self._process.wait(20)
        os.close(self._there)
        return int(self._process.returncode)


@pytest.mark.slow
@pytest.mark.parametrize(("ending", "code"), [("\4", 0), ("\3\3", 130), ("/quit\n", 0)])
def test_ctrl_c_ends_an_answer_and_not_the_chat(ending: str, code: int) -> None:
    chat = Terminal(exported(NANO, "gguf:q4_0"), "-n", 5000)
    chat.wait_for("> ")
    chat.type("In the beginning\n")
    chat.wait_for("\n")
    time.sleep(0.1)  # some of the second that the context takes
    chat.type("\3")
    chat.wait_for("tokens read")
    chat.wait_for("> ")
    if ending == "\3\3":
        time.sleep(0.5)  # readline shows its prompt before it listens
        chat.type("\3")
        chat.wait_for("once more")
        chat.wait_for("> ")
        time.sleep(0.5)
        ending = "\3"
    chat.type(ending)
    assert chat.end() == code, chat.shown
    assert signal.Signals.SIGINT.name not in chat.shown and "Traceback" not in chat.shown
