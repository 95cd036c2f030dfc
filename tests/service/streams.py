"""Streams of `serve`, by the openai client and by raw connections."""

from __future__ import annotations

import json
import socket

import httpx

from tests.kit.serving import Served

TARGETS = ("gguf:q4_0", "onnx:int4")
PROMPT = "def main("


def streamed(found: Served, **fields: object) -> tuple[str, str | None]:
    """The text of a stream by the openai client, and why it ended."""
    text, why = "", None
    stream = found.client().completions.create(
        model=found.models[0], prompt=PROMPT, stream=True, **fields
    )
    for chunk in stream:
        text += chunk.choices[0].text
        why = chunk.choices[0].finish_reason or why
    return text, why


def connected(found: Served, **fields: object) -> socket.socket:
    """A connection on which a request was sent."""
    body = json.dumps({"prompt": PROMPT, "temperature": 0, **fields})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    connection = socket.create_connection(("127.0.0.1", httpx.URL(found.url).port), 60)
    connection.sendall((head + "Content-Type: application/json\r\n\r\n" + body).encode())
    return connection


def read_whole(connection: socket.socket) -> bytes:
    """All that comes until the server closes the connection."""
    return b"".join(iter(lambda: connection.recv(1 << 16), b""))
