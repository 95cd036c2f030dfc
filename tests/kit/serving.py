"""`serve` in a process of its own, as a user starts it."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import openai


@dataclass
class Served:
    """A server that answers; `pid` is the process with the engine."""

    url: str
    pid: int
    models: list[str]
    process: subprocess.Popen[str]

    def ask(self, **fields: Any) -> httpx.Response:
        return httpx.post(f"{self.url}/completions", json=fields, timeout=120)

    def client(self, key: str = "none") -> openai.OpenAI:
        return openai.OpenAI(base_url=self.url, api_key=key, max_retries=0, timeout=120)


@contextmanager
def serving(path: Path, *options: object) -> Iterator[Served]:
    """A server on a free port of loopback, ended with the block."""
    command = [sys.executable, "-m", "emo_export", "serve", path, "--port", 0, "--json", *options]
    with subprocess.Popen([*map(str, command)], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield Served(**json.loads(process.stdout.readline()), process=process)
        finally:
            process.terminate()
