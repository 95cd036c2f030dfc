"""How `serve` begins and ends: who may ask, what can't be served, and signals."""

from __future__ import annotations

import os
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from tests.kit.command import Emo
from tests.kit.serving import serving
from tests.kit.without import without
from tests.service.streams import TARGETS, connected, read_whole, streamed

pytestmark = pytest.mark.slow


@pytest.mark.parametrize("target", TARGETS)
def test_signals_end_it_and_streams_say_so(
    target: str, nano: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number, code in ((signal.SIGTERM, 0), (signal.SIGINT, 130)):
        with serving(nano, "--target", target) as found, ThreadPoolExecutor() as threads:
            stream = threads.submit(streamed, found, max_tokens=700, temperature=0)
            time.sleep(0.3)
            os.kill(found.process.pid, number)
            assert found.process.wait(30) == code
            assert stream.result()[1] == "length"  # it had the time


def test_answers_that_take_too_long_are_told_of_the_end(nano: Path) -> None:
    with serving(nano, "--target", "onnx:int4", "--queue", 40) as found:
        connections = [connected(found, max_tokens=1000) for _ in range(40)]  # half a minute
        time.sleep(1)
        began = time.monotonic()
        found.process.terminate()
        answers = [read_whole(one) for one in connections]
        assert found.process.wait(30) == 0
        assert time.monotonic() - began < 10
    assert answers[0].startswith(b"HTTP/1.1 200")
    assert answers[-1].startswith(b"HTTP/1.1 503") and b"the server ends" in answers[-1]
    assert all(one.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for one in answers)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_second_signal_ends_answers_at_once_and_tells_them(nano: Path, number: int) -> None:
    with serving(nano, "--target", "onnx:int4", "--queue", 40) as found:
        connections = [connected(found, max_tokens=1000) for _ in range(40)]
        time.sleep(1)
        began = time.monotonic()
        for _ in range(2):
            found.process.send_signal(number)
            time.sleep(0.3)
        answers = [read_whole(one) for one in connections]
        assert found.process.wait(30) == (130 if number == signal.SIGINT else 0)
        assert time.monotonic() - began < 4
    assert answers[-1].startswith(b"HTTP/1.1 503") and b"the server ends" in answers[-1]
    assert all(one.startswith((b"HTTP/1.1 200", b"HTTP/1.1 503")) for one in answers)


def test_a_key_lets_in_and_an_origin_may_be_named(nano: Path) -> None:
    options = ("--api-key", "secret", "--cors", "http://localhost:3000")
    with serving(nano, *options, "--host", "0.0.0.0") as found:
        url = found.url.replace("0.0.0.0", "127.0.0.1")
        found.url = url
        with pytest.raises(openai.AuthenticationError):
            found.client("wrong").models.list()
        assert len(list(found.client("secret").models.list())) == 1
        assert httpx.get(url.replace("/v1", "/health")).json() == {"status": "ok"}
        asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
        asked["Access-Control-Request-Headers"] = "authorization,content-type"
        allowed = httpx.options(f"{url}/completions", headers=asked)
        assert allowed.status_code == 200
        assert allowed.headers["access-control-allow-origin"] == asked["Origin"]
        refused = httpx.options(f"{url}/completions", headers=asked | {"Origin": "http://evil"})
        assert refused.status_code == 400


def test_what_can_t_be_served_is_refused(nano: Path, emo: Emo, tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        busy = emo("serve", nano, "--port", taken.getsockname()[1])
    assert busy.code == 2 and "Address already in use" in busy.err
    cases = (
        (("--host", "0.0.0.0"), "EMO_EXPORT_API_KEY"),
        (("--api-key", ""), "key is empty"),
        (("--cors", "localhost"), "expected an origin"),
        (("--domain", "law"), "has no domains.json"),
        (("--context", 5000), "allows 1 to 1024"),
        (("--target", "onnx:int4", "--parallel", 2), "--queue"),
        (("--target", "onnx:int4", "--kv-cache", "f16"), "--kv-cache f16 is for GGUF"),
    )
    for options, text in cases:
        found = emo("serve", nano, "--port", 0, *options)
        assert found.code == 2 and text in found.err, found.err


def test_a_missing_extra_is_named(nano: Path, tmp_path: Path) -> None:
    done = without("starlette,uvicorn", tmp_path, "serve", nano)
    assert done.returncode == 3, done.stderr
    assert "serve needs starlette, uvicorn; pip install" in done.stderr
    assert '[serve]"' in done.stderr
