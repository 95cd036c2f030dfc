"""A request's JSON, held against what it may say: nothing is ignored that would change the answer.

Fields and their ranges are those of OpenAI's API reference for completions and chat completions;
`top_k`, `min_p` and `repetition_penalty` are ours, by the names that vLLM has for them.
"""

from __future__ import annotations

import json
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.runtimes.history import Render
from emo_export.runtimes.sampling import Sampling
from emo_export.runtimes.serving import Wanted
from emo_export.service.refusal import bad

SEEDS = 2**32 - 1  # llama.cpp draws one itself for the largest 32-bit number
MOST_STOPS = 4
LONGEST_STOP = 1000
COMPLETION_TOKENS = 16  # OpenAI's default
PENALTIES = 1e-6, 1e6  # beyond these, logits in float32 get to 0 or to infinity
MOST_LOGPROBS, MOST_TOP_LOGPROBS = 5, 20  # OpenAI's limits

COMMON = frozenset(
    "model stream stream_options max_tokens temperature top_p top_k min_p repetition_penalty seed "
    "stop logprobs n user".split()
)
COMPLETION = COMMON | {"prompt", "echo", "best_of", "suffix"}
CHAT = COMMON | {"messages", "max_completion_tokens", "top_logprobs"}
WITHOUT_EFFECT: Mapping[str, tuple[Any, ...]] = {
    "presence_penalty": (0,),
    "frequency_penalty": (0,),
    "logit_bias": ({},),
    "response_format": ({"type": "text"},),
    "tools": ([],),
    "tool_choice": ("none", "auto"),
    "store": (False,),
    "metadata": ({},),
}
"""Fields that clients send with a value that asks for nothing; another value is refused."""


@dataclass(frozen=True)
class Asked:
    """A request that holds: what the engine is asked, and how the answer is to be written."""

    model: str | None
    wanted: Wanted
    stream: bool
    usage: bool  # at the end of a stream


@dataclass(frozen=True)
class Message:
    """One message of a conversation."""

    role: str
    content: str


def parse_json(data: bytes) -> Mapping[str, Any]:
    """The object in a body. Raises Refusal for anything else."""
    try:
        body = json.loads(data, parse_constant=_no_constant)
    except (ValueError, RecursionError) as error:
        raise bad("body", f"is not JSON ({error})"[:300]) from error
    if not isinstance(body, dict):
        raise bad("body", "is not a JSON object")
    return {name: value for name, value in body.items() if value is not None}


def parse_completion(body: Mapping[str, Any], context: int) -> Asked:
    """A request for /v1/completions of a model with so many positions. Raises Refusal."""
    _check_fields(body, COMPLETION)
    if body.get("echo", False) is not False:
        raise bad("echo", "is not supported; leave it out")
    if body.get("suffix", "") != "":
        raise bad("suffix", "is not supported: the model only writes on")
    if body.get("best_of", 1) != 1:
        raise bad("best_of", "is not supported beyond 1")
    likeliest = body.get("logprobs")
    if likeliest is not None:
        likeliest = _whole(body, "logprobs", 0, MOST_LOGPROBS, 0)
    count = _whole(body, "max_tokens", 1, 2**31 - 1, COMPLETION_TOKENS)
    prompt = _prompt(body.get("prompt", ""))
    return _asked(body, prompt, min(count, context), likeliest)


def parse_chat(body: Mapping[str, Any], context: int, write: Render) -> Asked:
    """A request for /v1/chat/completions; `write` makes a prompt of messages. Raises Refusal."""
    _check_fields(body, CHAT)
    if "max_tokens" in body and "max_completion_tokens" in body:
        raise bad("max_tokens", "is given beside max_completion_tokens")
    name = "max_tokens" if "max_tokens" in body else "max_completion_tokens"
    count = _whole(body, name, 1, 2**31 - 1, context)
    told = _flag(body, "logprobs")
    if "top_logprobs" in body and not told:
        raise bad("top_logprobs", "has no effect without logprobs")
    likeliest = _whole(body, "top_logprobs", 0, MOST_TOP_LOGPROBS, 0) if told else None
    messages = [(one.role, one.content) for one in _messages(body.get("messages"))]
    try:
        prompt = write(messages)
    except EmoExportError as error:
        raise bad("messages", str(error)) from error
    return _asked(body, prompt, min(count, context), likeliest)


def _asked(
    body: Mapping[str, Any], prompt: str | tuple[int, ...], count: int, likeliest: int | None
) -> Asked:
    if body.get("n", 1) != 1:
        raise bad("n", "is not supported beyond 1")
    stream = _flag(body, "stream")
    options = body.get("stream_options", {})
    if not isinstance(options, dict) or options.keys() - {"include_usage"}:
        raise bad("stream_options", "expected an object with include_usage")
    if options and not stream:
        raise bad("stream_options", "has no effect without stream")
    seed = _whole(body, "seed", 0, SEEDS - 1, secrets.randbelow(SEEDS))
    wanted = Wanted(prompt, _sampling(body), count, seed, _stops(body.get("stop", [])), likeliest)
    model = body.get("model")
    if model is not None and not isinstance(model, str):
        raise bad("model", "expected a text")
    return Asked(model, wanted, stream, _flag(options, "include_usage"))


def _check_fields(body: Mapping[str, Any], known: frozenset[str]) -> None:
    for name, value in body.items():
        if name in WITHOUT_EFFECT:
            if value not in WITHOUT_EFFECT[name]:
                raise bad(name, "is not supported; leave it out")
        elif name not in known:
            raise bad(name[:100], "is no field that is known here; leave it out")


def _sampling(body: Mapping[str, Any]) -> Sampling:
    penalty = _number(body, "repetition_penalty", 1.0)
    low, high = PENALTIES
    if not low <= penalty <= high:
        raise bad("repetition_penalty", f"expected a number from {low:g} to {high:g}")
    try:
        return Sampling(
            repetition_penalty=penalty,
            temperature=_number(body, "temperature", 1.0),
            top_k=_whole(body, "top_k", 0, 2**31 - 1, 0),
            top_p=_number(body, "top_p", 1.0),
            min_p=_number(body, "min_p", 0.0),
        )
    except EmoExportError as error:
        raise bad("sampling", str(error)) from error


def _prompt(value: object) -> str | tuple[int, ...]:
    if isinstance(value, list) and len(value) == 1 and isinstance(value[0], str | list):
        value = value[0]
    if isinstance(value, str):
        return _text("prompt", value)
    if isinstance(value, list):
        if all(type(token) is int and 0 <= token < 2**31 for token in value):
            return tuple(value)
        if all(isinstance(one, str | list) for one in value):
            raise bad("prompt", f"has {len(value)} texts, expected one; send each alone")
    raise bad("prompt", "expected a text or a list of token ids")


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
        raise bad("stop", "expected a text or a list of texts")
    if len(stops) > MOST_STOPS or not all(0 < len(stop) <= LONGEST_STOP for stop in stops):
        raise bad("stop", f"expected up to {MOST_STOPS} texts of 1 to {LONGEST_STOP} characters")
    return tuple(_text("stop", stop) for stop in stops)


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise bad("messages", "expected a list of messages")
    return [_message(number, message) for number, message in enumerate(value)]


def _message(number: int, message: object) -> Message:
    where = f"messages[{number}]"
    if not isinstance(message, dict) or message.keys() - {"role", "content", "name"}:
        raise bad(where, "expected an object with role and content")
    role, content = message.get("role"), message.get("content")
    if role not in ("system", "developer", "user", "assistant"):
        raise bad(f"{where}.role", "expected system, developer, user or assistant")
    if isinstance(content, list):
        parts = [part for part in content if isinstance(part, dict) and part.get("type") == "text"]
        texts = [part.get("text") for part in parts]
        content = "".join(text for text in texts if isinstance(text, str))
        if len(parts) != len(message["content"]) or not all(isinstance(t, str) for t in texts):
            raise bad(f"{where}.content", "expected texts alone")
    if not isinstance(content, str):
        raise bad(f"{where}.content", "expected a text")
    return Message(role, _text(f"{where}.content", content))


def _text(name: str, value: str) -> str:
    """JSON may hold half of a surrogate pair, which is no text."""
    try:
        value.encode("utf-8")
    except UnicodeEncodeError as error:
        raise bad(name, f"is not Unicode ({error.reason})") from error
    return value


def _flag(body: Mapping[str, Any], name: str) -> bool:
    value = body.get(name, False)
    if not isinstance(value, bool):
        raise bad(name, "expected true or false")
    return value


def _whole(body: Mapping[str, Any], name: str, low: int, high: int, otherwise: int) -> int:
    value = body.get(name, otherwise)
    if type(value) is not int or not low <= value <= high:
        raise bad(name, f"expected a whole number from {low} to {high}")
    return value


def _number(body: Mapping[str, Any], name: str, otherwise: float) -> float:
    value = body.get(name, otherwise)
    if isinstance(value, bool) or not isinstance(value, int | float) or not abs(value) < 1e9:
        raise bad(name, "expected a number")
    return float(value)


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
