"""`serve` as its clients see it."""

from __future__ import annotations

import json
import shutil
import socket
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest

from emo_export.base.process_memory import rss_anonymous
from emo_export.runtimes.loading import load
from emo_export.runtimes.sampling import GREEDY
from tests.kit.command import Emo
from tests.kit.paths import GOLDEN
from tests.kit.serving import Served, serving
from tests.service.streams import PROMPT, TARGETS, connected, streamed
from tests.service.test_request import BAD, BAD_CHAT, BAD_JSON

pytestmark = pytest.mark.slow

TEMPLATE = """{% for message in messages %}{{ message.role }}: {{ message.content }}
{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"""


@pytest.fixture(scope="module", params=TARGETS)
def served(request: pytest.FixtureRequest, nano: Path) -> Iterator[Served]:
    with serving(nano, "--target", request.param, "--queue", 8) as found:
        yield found


def test_the_engine_s_text_whole_and_as_a_stream(served: Served, nano: Path) -> None:
    family = "gguf:q4_0" if "gguf" in served.process.args[-3] else "onnx:int4"
    with load(nano, family) as model:
        answer = model.answer(PROMPT, GREEDY, max_tokens=60, log_probabilities=True)
        said = list(answer)
    want = "".join(one.text for one in said)
    done = served.client().completions.create(
        model=served.models[0], prompt=PROMPT, max_tokens=60, temperature=0, logprobs=2
    )
    choice = done.choices[0]
    assert choice.text == want and choice.finish_reason == "length"
    assert done.usage is not None
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (3, 60)
    told = choice.logprobs
    assert told is not None and told.token_logprobs is not None and told.top_logprobs is not None
    expected = [one.log_probability for one in said if one.token is not None]
    # llama.cpp's server has flash attention and another batch than its plain loop.
    assert told.token_logprobs == pytest.approx(expected, abs=0.02)
    for value, top in zip(told.token_logprobs, told.top_logprobs, strict=True):
        assert len(top) == 2 and max(top.values()) == pytest.approx(value)
    assert streamed(served, max_tokens=60, temperature=0) == (want, "length")


def test_a_stream_counts_its_tokens(served: Served) -> None:
    stream = served.client().completions.create(
        model=served.models[0],
        prompt=PROMPT,
        max_tokens=9,
        stream=True,
        stream_options={"include_usage": True},
    )
    *_, last = stream
    assert last.choices == [] and last.usage is not None
    assert last.usage.prompt_tokens == 3 and 0 < last.usage.completion_tokens <= 9


def test_stops_seeds_and_empty_prompts(served: Served) -> None:
    whole, _ = streamed(served, max_tokens=60, temperature=0)
    stop = whole[20:24]
    assert streamed(served, max_tokens=60, temperature=0, stop=["never said", stop]) == (
        whole[: whole.index(stop)],
        "stop",
    )
    drawn = [streamed(served, max_tokens=30, temperature=1.5, seed=seed) for seed in (5, 5, 6)]
    assert drawn[0] == drawn[1] != drawn[2]
    empty = served.ask(prompt="", max_tokens=5, temperature=0)
    assert empty.json()["usage"]["prompt_tokens"] == 1
    full = served.ask(prompt=PROMPT, max_tokens=10_000, temperature=0).json()["choices"][0]
    assert full["finish_reason"] == "length" and len(full["text"]) > 500
    assert served.ask(prompt=[1] * 1024).status_code == 400
    assert served.ask(prompt=[4095, 4096]).status_code == 400


def test_models_are_named_and_others_refused(served: Served) -> None:
    client = served.client()
    assert [model.id for model in client.models.list()] == served.models
    assert client.models.retrieve(served.models[0]).owned_by == "emo-export"
    with pytest.raises(openai.NotFoundError, match="there is"):
        client.completions.create(model="gpt-4", prompt="a")
    with pytest.raises(openai.NotFoundError, match="chat template"):
        client.chat.completions.create(
            model=served.models[0], messages=[{"role": "user", "content": "a"}]
        )


def test_malformed_requests_break_nothing(served: Served) -> None:
    url, host, port = served.url, "127.0.0.1", httpx.URL(served.url).port
    kind = {"Content-Type": "application/json"}
    answers = [httpx.post(f"{url}/completions", content=data, headers=kind) for data in BAD_JSON]
    answers += [
        httpx.post(f"{url}/completions", content=json.dumps(body), headers=kind) for body in BAD
    ]
    answers += [
        httpx.post(f"{url}/chat/completions", content=json.dumps(body), headers=kind)
        for body in BAD_CHAT
    ]
    answers += [
        httpx.post(f"{url}/completions", content=b"{}", headers={"Content-Type": "text/plain"}),
        httpx.post(f"{url}/completions", content=b'"' + b"a" * (2 << 20) + b'"', headers=kind),
        httpx.post(f"{url}/completions", content=iter([b"a" * (1 << 20)] * 3), headers=kind),
        *(httpx.request(method, f"{url}/completions") for method in ("GET", "PUT", "DELETE")),
        *(httpx.request(method, f"{url}/models") for method in ("POST", "PATCH", "DELETE", "PUT")),
        *(httpx.request(method, f"{url}/chat/completions") for method in ("GET", "PUT", "DELETE")),
        *(
            httpx.post(f"{url}/{place}", json={})
            for place in ("embeddings", "edits", "audio/speech")
        ),
        *(
            httpx.post(f"{url}/completions", json={"model": name})
            for name in ("", "x", "é", "a" * 999)
        ),
        *(
            httpx.get(f"{url}{place}")
            for place in ("", "/..", "/%00", "/models/no", "/" + "a" * 999)
        ),
        *(httpx.get(f"{url}/models", headers={name: "evil.com"}) for name in ("Host", "Origin")),
    ]
    broken = b"POST / HTTP/1.1\r\nContent-Length: -1\r\n\r\n"
    for raw in (b"GARBAGE\r\n\r\n", b"\x16\x03\x01\x02", broken):
        with socket.create_connection((host, port), 10) as connection:
            connection.sendall(raw)
            connection.shutdown(socket.SHUT_WR)
            assert connection.recv(100).partition(b" ")[2][:1] in (b"4", b"")
    assert len(answers) >= 100
    for answer in answers:
        assert 400 <= answer.status_code < 500, answer.request.content
        assert answer.json()["error"]["message"]
    assert served.ask(prompt=PROMPT, max_tokens=3).status_code == 200


def test_beyond_the_queue_and_after_clients_went_away(served: Served) -> None:
    clients = [connected(served, max_tokens=1000, stream=True) for _ in range(24)]
    full = served.ask(prompt=PROMPT)
    assert full.status_code == 503 and full.headers["Retry-After"] == "1"
    assert full.json()["error"]["code"] == "queue_full"
    for client in clients:
        client.close()
    began = time.monotonic()
    while served.ask(prompt=PROMPT, max_tokens=1).status_code == 503:
        time.sleep(0.02)
    assert time.monotonic() - began < 1


def test_eight_clients_at_once_and_memory_stays(served: Served) -> None:
    def work() -> list[tuple[str, str | None]]:
        return [streamed(served, max_tokens=40, temperature=0) for _ in range(4)]

    work()
    before = rss_anonymous(served.pid)
    with ThreadPoolExecutor(8) as threads:
        waiting = [threads.submit(work) for _ in range(8)]
        found = [one for work_done in waiting for one in work_done.result()]
    assert len(found) == 32 and {why for _, why in found} == {"length"}
    assert rss_anonymous(served.pid) - before < 30_000_000


@pytest.mark.parametrize("target", TARGETS)
def test_a_template_makes_it_converse(target: str, tmp_path: Path, emo: Emo) -> None:
    checkpoint = tmp_path / "chatty"
    shutil.copytree(GOLDEN / "base", checkpoint)
    (checkpoint / "chat_template.jinja").write_text(TEMPLATE)
    out = tmp_path / "out"
    assert emo("export", checkpoint, "-o", out, "--to", target, "--no-golden").code == 0
    messages = [{"role": "system", "content": "Be."}, {"role": "user", "content": "Hi"}]
    with serving(out) as found:
        client = found.client()
        done = client.chat.completions.create(
            model="out", messages=messages, max_tokens=6, temperature=0, logprobs=True
        )
        plain = client.completions.create(
            model="out", prompt="system: Be.\nuser: Hi\nassistant:", max_tokens=6, temperature=0
        )
        choice = done.choices[0]
        assert choice.message.content == plain.choices[0].text
        assert choice.logprobs is not None and len(choice.logprobs.content or ()) > 0
        stream = client.chat.completions.create(
            model="out", messages=messages, max_tokens=6, temperature=0, stream=True
        )
        chunks = [chunk.choices[0].delta for chunk in stream]
        assert chunks[0].role == "assistant"
        assert "".join(chunk.content or "" for chunk in chunks) == choice.message.content
        assert httpx.post(f"{found.url}/chat/completions", json={"messages": []}).status_code == 400


def test_domains_are_models(tmp_path: Path, emo: Emo) -> None:
    out, words = tmp_path / "out", []
    for name in ("code", "prose"):
        (tmp_path / f"{name}.txt").write_text(f"the text of {name} is this; " * 30)
        words += ["--domain", f"{name}={tmp_path / name}.txt"]
    targets = ("--to", "gguf:q8_0", "--to", "onnx:int8", "--keep", 6)
    done = emo("export", GOLDEN / "base", "-o", out, *targets, *words, "--no-validate")
    assert done.code == 0, done.err
    for target in ("gguf:q8_0", "onnx:int8"):
        with serving(out, "--target", target) as found:
            assert found.models == ["code", "prose"]
            texts = []
            for name in found.models:
                with load(out / name, target) as model:
                    want = "".join(model.text("the", max_tokens=8, temperature=0))
                answer = found.ask(model=name, prompt="the", max_tokens=8, temperature=0).json()
                text = answer["choices"][0]["text"]
                # llama.cpp keeps back the bytes that are no character yet.
                assert len(text) > 3 and want.startswith(text) and answer["model"] == name
                texts.append(want)
            assert texts[0] != texts[1]
            assert found.ask(prompt="the").status_code == 404
        with serving(out, "--target", target, "--domain", "prose") as found:
            assert found.models == ["prose"]


def test_tokens_are_themselves_where_a_stop_holds_their_text_back(served: Served) -> None:
    fields = {"prompt": "The king", "max_tokens": 60, "temperature": 0, "logprobs": 2}
    free = served.ask(**fields).json()["choices"][0]["logprobs"]
    stop = free["tokens"][2][-1] + free["tokens"][3]
    told = served.ask(**fields, stop=stop).json()["choices"][0]["logprobs"]
    assert told["tokens"] == free["tokens"][:4]
    assert [len(top) for top in told["top_logprobs"]] == [2] * 4


def test_a_client_that_says_nothing_is_hung_up_on(served: Served) -> None:
    address = httpx.URL(served.url)
    with (
        socket.create_connection((address.host, address.port or 80), timeout=20) as idle,
        socket.create_connection((address.host, address.port or 80), timeout=20) as slow,
        socket.create_connection((address.host, address.port or 80), timeout=20) as second,
    ):
        slow.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\nX: ")
        second.sendall(b"GET /health HTTP/1.1\r\nHost: localhost\r\n\r\nGET /health HT")
        answer = b""
        while not answer.endswith(b"}"):  # which may come in parts
            answer += second.recv(4096)
        assert answer.startswith(b"HTTP/1.1 200")
        start = time.monotonic()
        assert idle.recv(1) == slow.recv(1) == second.recv(1) == b""
        assert time.monotonic() - start < 15
