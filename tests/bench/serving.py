"""`serve` under load, and its decode beside the engine's own loop.

    python -m tests.bench.serving [PACKAGE...] [--seconds 60] [--clients 8] [--threads 1]

Each package (default: emo-nano, exported first) is served as GGUF and as ONNX. Clients send streams
one after another for some seconds: every one must be 200 and end with its reason and [DONE]. Of
memory, the anonymous part is looked at after a quarter of the time and at the end: it may grow by a
twentieth and 4 MB. Then all clients go away in the middle of long answers: how long until another
is answered. Last, decode by turns: the engine's own loop in this process (a step, the likeliest
token), and one stream from `serve`, timed by its client, whole less one of a single token. Exit 1
where a request failed, memory grew or a place was not free within a second.
"""

from __future__ import annotations

import json
import os
import socket
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import httpx
import numpy as np

from emo_export.base.process_memory import rss_anonymous
from emo_export.errors import EmoExportError
from emo_export.runtimes.loading import first_that_runs
from emo_export.runtimes.opening import open_runtime
from tests.kit.command import run_here
from tests.kit.paths import NANO
from tests.kit.serving import Served, serving

TARGETS = ("gguf:q4_0", "onnx:int4")
PROMPT = list(range(40, 72))
ANSWER, CONTEXT = 96, 1024  # tokens: of a request under load, of the longest
COLUMNS = ("package", "target", "requests", "failed", "tokens", "tok/s of all")
COLUMNS += ("MB after a quarter", "MB at the end", "s until free")
COLUMNS += ("own loop tok/s", "serve tok/s", "of the loop", "CPU ms a token", "CPU ms, serve")


@dataclass(frozen=True)
class Load:
    requests: int
    failed: int
    tokens: int
    seconds: float
    quarter: int
    end: int

    @property
    def well(self) -> bool:
        return not self.failed and self.end <= self.quarter * 1.05 + 4e6


def request(port: int, **fields: Any) -> bytes:
    body = json.dumps({"prompt": PROMPT, "temperature": 0, "stream": True, **fields})
    head = f"POST /v1/completions HTTP/1.1\r\nHost: localhost:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    return (head + body).encode()


def received(port: int, data: bytes) -> Iterator[bytes]:
    """What comes back, as it comes."""
    with socket.create_connection(("127.0.0.1", port), 600) as connection:
        connection.sendall(data)
        while found := connection.recv(1 << 16):
            yield found


def tokens_of(answer: bytes) -> int:
    """The tokens of a stream that came whole; 0 for another."""
    whole = answer.startswith(b"HTTP/1.1 200") and b"data: [DONE]\n\n" in answer
    counts = [line for line in answer.split(b"\n") if b'"completion_tokens"' in line]
    reasons = answer.count(b'"finish_reason": "length"') + answer.count(b'"finish_reason": "stop"')
    if not whole or len(counts) != 1 or reasons != 1:
        return 0
    return int(json.loads(counts[0].removeprefix(b"data: "))["usage"]["completion_tokens"])


def load(found: Served, port: int, clients: int, seconds: float) -> Load:
    """Streams of all clients for some seconds."""
    ends = time.monotonic() + seconds

    def client(number: int) -> list[int]:
        counts = []
        while time.monotonic() < ends:
            asked = {"seed": 1000 * number + len(counts), "temperature": 1, "max_tokens": ANSWER}
            data = request(port, **asked, stream_options={"include_usage": True})
            counts.append(tokens_of(b"".join(received(port, data))))
        return counts

    began = time.monotonic()
    with ThreadPoolExecutor(clients) as threads:
        waiting = [threads.submit(client, number) for number in range(clients)]
        time.sleep(seconds / 4)
        quarter = rss_anonymous(found.pid)
        counts = [count for one in waiting for count in one.result()]
    spent = time.monotonic() - began
    failed = sum(count == 0 for count in counts)
    return Load(len(counts), failed, sum(counts), spent, quarter, rss_anonymous(found.pid))


def freed(found: Served, port: int, clients: int) -> float:
    """Seconds from when all clients go away until another has its answer begun."""
    data = request(port, max_tokens=900)
    connections = [socket.create_connection(("127.0.0.1", port)) for _ in range(clients)]
    for connection in connections:
        connection.sendall(data)
    connections[0].recv(1)
    for connection in connections:
        connection.close()
    began = time.monotonic()
    while found.ask(prompt=PROMPT, max_tokens=1).status_code != httpx.codes.OK:
        time.sleep(0.01)
    return time.monotonic() - began


@dataclass(frozen=True)
class Took:
    """Seconds of the clock and of processors, of so many decode steps."""

    clock: float
    cpu: float


def own_loop(path: Path, threads: int, steps: int) -> Iterator[Took]:
    """Decode of the engine alone, each time it is asked."""
    runtime = open_runtime(path, threads)
    try:
        while True:
            runtime.reset()
            logits = runtime.forward(np.array(PROMPT, np.int64), last=True)
            clock, cpu = time.perf_counter(), time.process_time()
            for _ in range(steps):
                logits = runtime.forward(np.array([logits[-1].argmax()], np.int64), last=True)
            yield Took(time.perf_counter() - clock, time.process_time() - cpu)
    finally:
        runtime.close()


def served(found: Served, port: int, tokens: int) -> Took:
    """One stream, as its client sees it; the processors are those of the server."""
    data = request(port, max_tokens=tokens, stream_options={"include_usage": True})
    clock, cpu = time.perf_counter(), cpu_seconds(found.pid)
    answer = b"".join(received(port, data))
    took = Took(time.perf_counter() - clock, cpu_seconds(found.pid) - cpu)
    if tokens_of(answer) != tokens:
        raise EmoExportError(f"a stream of {tokens_of(answer)} tokens, expected {tokens}")
    return took


def cpu_seconds(pid: int) -> float:
    """Of a process, since it began (man 5 proc_pid_stat: utime and stime)."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:13])) / os.sysconf("SC_CLK_TCK")


def decode(
    found: Served, port: int, path: Path, threads: int, rounds: int, steps: int
) -> list[str]:
    """By turns; a stream of one token, which is all but decode, is taken off each."""
    loop = own_loop(path, threads, steps)
    next(loop), served(found, port, steps)
    turns = [
        (next(loop), served(found, port, steps + 1), served(found, port, 1)) for _ in range(rounds)
    ]
    loop.close()
    own = [here.clock / steps for here, _, _ in turns]
    there = [(long.clock - short.clock) / steps for _, long, short in turns]
    share = statistics.median(a / b for a, b in zip(own, there, strict=True))
    cpu = sum(here.cpu for here, _, _ in turns) / rounds / steps
    cpu_there = sum(long.cpu - short.cpu for _, long, short in turns) / rounds / steps
    rates = [1 / statistics.median(side) for side in (own, there)]
    return [
        *(f"{rate:.1f}" for rate in rates),
        f"{share:.3f}",
        *(f"{1e3 * seconds:.2f}" for seconds in (cpu, cpu_there)),
    ]


def row(
    package: Path, target: str, clients: int, seconds: float, threads: int, rounds: int, steps: int
) -> tuple[list[str], bool]:
    """All of it for one target, and whether all is well."""
    with serving(package, "--target", target, "--threads", threads, "--context", CONTEXT) as found:
        port = httpx.URL(found.url).port or 0
        under = load(found, port, clients, seconds)
        free = freed(found, port, clients)
        told = decode(found, port, first_that_runs(package, target), threads, rounds, steps)
    cells = [package.name, target, str(under.requests), str(under.failed), str(under.tokens)]
    cells += [f"{under.tokens / under.seconds:.0f}"]
    cells += [f"{value / 1e6:.1f}" for value in (under.quarter, under.end)]
    return [*cells, f"{free:.2f}", *told], under.well and free < 1


@click.command()
@click.argument("packages", nargs=-1, type=click.Path(exists=True, path_type=Path))
@click.option("--seconds", default=60.0, show_default=True)
@click.option("--clients", default=8, show_default=True, type=click.IntRange(1))
@click.option("--threads", default=1, show_default=True, help="Of the engine; clients want one.")
@click.option("--rounds", default=15, show_default=True, help="Of decode, after one to warm up.")
@click.option("--steps", default=32, show_default=True, help="Of decode in each round.")
def main(
    packages: Sequence[Path], seconds: float, clients: int, threads: int, rounds: int, steps: int
) -> None:
    """Print the table, as lines of JSON for docs/measurements/serving.json."""
    with tempfile.TemporaryDirectory() as folder:
        if not packages:
            packages = [Path(folder) / "emo-nano"]
            wanted = [word for target in TARGETS for word in ("--to", target)]
            run_here("export", NANO, "-o", packages[0], *wanted, "--no-golden")
        click.echo(json.dumps(COLUMNS))
        well = True
        for package in packages:
            for target in TARGETS:
                cells, fine = row(package, target, clients, seconds, threads, rounds, steps)
                click.echo(json.dumps(cells))
                well = well and fine
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
