"""The work of `serve`: what it refuses before it opens anything, and what it tells."""

from __future__ import annotations

import json
import os
import sys
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import click

from emo_export.base.install import need
from emo_export.cli.output import put, say
from emo_export.errors import EmoExportError
from emo_export.service.plans import Plan, Settings, plans


@dataclass(frozen=True)
class Address:
    """Where and for whom, as the options of `serve` describe it."""

    host: str
    port: int
    api_key: str | None
    cors: tuple[str, ...]
    timeout: float


def run_service(path: Path, settings: Settings, address: Address, in_json: bool) -> None:
    """Serve until a signal."""
    need(["starlette", "uvicorn", "jinja2"], "serve", "serve")
    from emo_export.service.app import Rules, Service
    from emo_export.service.listening import bind, is_loopback, listen, url_of
    from emo_export.service.opening import open_all

    _check(address)
    planned = plans(path, settings)
    with ExitStack() as stack:
        bound = bind(address.host, address.port)
        stack.callback(bound.close)
        if address.api_key is None and not is_loopback(bound):
            raise EmoExportError(
                f"{address.host} can be reached from other machines: give an API key that clients "
                "must send, in the variable EMO_EXPORT_API_KEY or with --api-key, or listen on "
                "127.0.0.1"
            )
        for plan in planned:
            say(_sizes(plan))
        served = open_all(planned, settings, stack)
        rules = Rules(address.api_key, address.cors, address.timeout)
        url = url_of(bound)

        def ready() -> None:
            if in_json:
                told = {"url": f"{url}/v1", "pid": os.getpid(), "models": list(served)}
                click.echo(json.dumps(told))
            else:
                put(f"{url}/v1")
                say("Ctrl-C ends it")
            sys.stdout.flush()

        listen(Service(served, rules), bound, ready)


def _sizes(plan: Plan) -> str:
    each, cache = plan.need.context, plan.need.cache * plan.places
    at_once = f"{plan.places} at once" if plan.places > 1 else "one at a time"
    return (
        f"{plan.name}: {plan.path}, {plan.need.weights / 1e6:.0f} MB of weights, {at_once}, "
        f"{each} tokens each, {cache / 1e6:.0f} MB of KV cache"
    )


def _check(address: Address) -> None:
    """Raise EmoExportError for a key or an origin that no request could match."""
    key = address.api_key
    if key is not None and (not key.isascii() or not key.isprintable() or not key.strip() == key):
        raise EmoExportError("the API key has other than visible ASCII characters")
    if key == "":
        raise EmoExportError("the API key is empty; leave it out, or give one")
    for origin in address.cors:
        found = urlsplit(origin)
        if found.scheme not in ("http", "https") or origin != f"{found.scheme}://{found.netloc}":
            raise EmoExportError(
                f"--cors {origin}: expected an origin alone, as http://localhost:3000"
            )
