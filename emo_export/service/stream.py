"""An answer as server-sent events, a chunk in JSON each (WHATWG HTML, 9.2)."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator, Mapping
from http import HTTPStatus
from typing import Any

from starlette.requests import ClientDisconnect
from starlette.types import Receive, Scope, Send

from emo_export.base.shown import on_one_line
from emo_export.errors import EmoExportError
from emo_export.runtimes.serving import Piece
from emo_export.service.job import Job
from emo_export.service.refusal import Refusal
from emo_export.service.replies import Shape

LOG = logging.getLogger("uvicorn.error")
DONE = b"data: [DONE]\n\n"
PARTING_SECONDS = 1.0  # for the last words to a client that was too slow
HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-store"),
    (b"x-accel-buffering", b"no"),  # nginx would hold chunks back
]


class Stream:
    """An ASGI response that ends the job, however it ends itself."""

    def __init__(
        self,
        job: Job,
        batches: AsyncIterator[list[Piece]],
        first: list[Piece],
        shape: Shape,
        usage: bool,
        deadline: float,
        watch: asyncio.Task[None],
    ) -> None:
        """`first` was read from `batches`; `watch` leaves the job when the client is gone."""
        self._job, self._batches, self._first, self._shape = job, batches, first, shape
        self._usage, self._deadline, self._watch = usage, deadline, watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """See ASGI."""
        try:
            async with asyncio.timeout_at(self._deadline):
                await self._written(send)
        except ClientDisconnect:
            return
        except TimeoutError:
            await _parting(send, HTTPStatus.GATEWAY_TIMEOUT, "the time for an answer is over")
        except Refusal as refusal:
            await _parting(send, refusal.status, refusal.message)
        except EmoExportError as error:
            LOG.error("%s", on_one_line(str(error)))
            await _parting(send, HTTPStatus.INTERNAL_SERVER_ERROR, str(error))
        finally:
            self._job.leave()
            self._watch.cancel()

    async def _written(self, send: Send) -> None:
        shape = self._shape
        await send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        begun = shape.first()
        head = b"" if begun is None else _event(begun)
        await _send(send, head + b"".join(_event(shape.chunk(piece)) for piece in self._first))
        async for batch in self._batches:
            await _send(send, b"".join(_event(shape.chunk(piece)) for piece in batch))
        finish = self._job.finish()
        end = _event(shape.last(finish))
        if self._usage:
            end += _event(shape.usage(finish))
        await _send(send, end + DONE, more=False)


async def _parting(send: Send, status: HTTPStatus, message: str) -> None:
    """Say why a stream ends before its end: a client must not take it for whole."""
    try:
        async with asyncio.timeout(PARTING_SECONDS):
            await _send(send, _event(Refusal(status, message).body), more=False)
    except TimeoutError:
        return  # uvicorn closes the connection


async def _send(send: Send, data: bytes, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": data, "more_body": more})


def _event(chunk: Mapping[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk, ensure_ascii=False).encode() + b"\n\n"
