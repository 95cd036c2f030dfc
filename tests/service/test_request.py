"""What a request may say, and what becomes of it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest

from emo_export.runtimes.sampling import Sampling
from emo_export.service.refusal import Refusal
from emo_export.service.request import parse_chat, parse_completion, parse_json

BAD_JSON = (b"", b"{", b"[]", b"7", b"\xff\xfe", b'{"prompt": NaN}', b"[" * 5000, b'{"a": 1e999}')
BAD: tuple[dict[str, Any], ...] = (
    {"prompt": 5},
    {"prompt": {"a": 1}},
    {"prompt": ["a", "b"]},
    {"prompt": [1, "a"]},
    {"prompt": [1.0]},
    {"prompt": [True]},
    {"prompt": [-1]},
    {"prompt": [1 << 40]},
    {"prompt": "\ud800"},
    {"max_tokens": 0},
    {"max_tokens": -1},
    {"max_tokens": "4"},
    {"max_tokens": 4.0},
    {"max_tokens": True},
    {"max_tokens": 1 << 40},
    {"temperature": -1},
    {"temperature": "hot"},
    {"temperature": 1e12},
    {"temperature": True},
    {"top_p": 0},
    {"top_p": 1.5},
    {"top_k": -1},
    {"top_k": 1.5},
    {"min_p": 2},
    {"repetition_penalty": 0},
    {"repetition_penalty": 1e-40},
    {"repetition_penalty": 1e8},
    {"seed": -1},
    {"seed": 2**32 - 1},
    {"seed": "1"},
    {"stop": ""},
    {"stop": 5},
    {"stop": ["a"] * 5},
    {"stop": ["a", ""]},
    {"stop": [5]},
    {"stop": "a" * 2000},
    {"stop": "\ud800"},
    {"logprobs": 6},
    {"logprobs": True},
    {"n": 2},
    {"best_of": 2},
    {"echo": True},
    {"suffix": "end"},
    {"stream": "yes"},
    {"stream": 1},
    {"stream_options": {"include_usage": True}},
    {"stream": True, "stream_options": {"foo": True}},
    {"stream": True, "stream_options": 5},
    {"presence_penalty": 1},
    {"frequency_penalty": -0.5},
    {"logit_bias": {"5": 1}},
    {"response_format": {"type": "json_object"}},
    {"tools": [{"type": "function"}]},
    {"model": 5},
    {"foo": 1},
    {"\ud800": 1},
)
BAD_CHAT: tuple[dict[str, Any], ...] = (
    {},
    {"messages": []},
    {"messages": "hi"},
    {"messages": ["hi"]},
    {"messages": [{"role": "user"}]},
    {"messages": [{"role": "king", "content": "hi"}]},
    {"messages": [{"role": "user", "content": 5}]},
    {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
    {"messages": [{"role": "user", "content": [{"type": "text", "text": 5}]}]},
    {"messages": [{"role": "user", "content": "\udfff"}]},
    {"messages": [{"role": "user", "content": "hi"}], "top_logprobs": 3},
    {"messages": [{"role": "user", "content": "hi"}], "logprobs": 1},
    {"messages": [{"role": "user", "content": "hi"}], "max_tokens": 1, "max_completion_tokens": 1},
    {"messages": [{"role": "user", "content": "hi"}], "prompt": "hi"},
)


def refusal(call: Any, *arguments: Any) -> Refusal:
    with pytest.raises(Refusal) as caught:
        call(*arguments)
    return caught.value


def test_what_is_wrong_is_told_with_its_field() -> None:
    for data in BAD_JSON[:-1]:
        assert refusal(parse_json, data).status == 400
    for body in BAD:
        found = refusal(parse_completion, body, 100)
        assert found.status == 400
        assert str(found.param).encode().isascii()  # also half of a surrogate pair
        assert found.param in ("sampling", "\\ud800", *body), body
    for body in BAD_CHAT:
        assert refusal(parse_chat, body, 100, str).status == 400


def test_infinity_is_no_temperature() -> None:
    body = parse_json(b'{"temperature": 1e999}')
    assert refusal(parse_completion, body, 100).param == "temperature"


def test_what_was_not_said_is_as_openai_has_it() -> None:
    asked = parse_completion({}, 100)
    assert asked.wanted.prompt == "" and asked.wanted.max_tokens == 16
    assert asked.wanted.sampling == Sampling(temperature=1.0, top_p=1.0)
    assert asked.wanted.stop == () and asked.wanted.alternatives is None
    assert not asked.stream and not asked.usage and asked.model is None
    assert parse_completion({}, 100).wanted.seed != asked.wanted.seed


def test_all_fields_arrive() -> None:
    data = {"model": "m", "prompt": [[1, 2]], "max_tokens": 500, "temperature": 0, "top_p": 0.5}
    data |= {"top_k": 3, "min_p": 0.1, "repetition_penalty": 1.1, "seed": 7, "stop": ["a", "b"]}
    data |= {"logprobs": 2, "stream": True, "stream_options": {"include_usage": True}, "n": 1}
    data |= {"user": "u", "suffix": None, "logit_bias": {}, "presence_penalty": 0}
    asked = parse_completion(parse_json(json.dumps(data).encode()), 100)
    wanted = asked.wanted
    assert wanted.sampling == Sampling(1.1, 0.0, 3, 0.5, 0.1)
    assert (wanted.prompt, wanted.max_tokens, wanted.seed) == ((1, 2), 100, 7)
    assert (wanted.stop, wanted.alternatives) == (("a", "b"), 2)
    assert asked.model == "m" and asked.stream and asked.usage


def test_messages_become_a_prompt() -> None:
    def write(messages: Sequence[tuple[str, str]]) -> str:
        return "|".join(f"{role}:{text}" for role, text in messages)

    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    messages = [{"role": "system", "content": "be"}, {"role": "user", "content": parts}]
    asked = parse_chat({"messages": messages, "logprobs": True, "top_logprobs": 4}, 100, write)
    assert asked.wanted.prompt == "system:be|user:ab"
    assert asked.wanted.max_tokens == 100 and asked.wanted.alternatives == 4
    assert parse_chat({"messages": messages, "logprobs": True}, 9, write).wanted.alternatives == 0
