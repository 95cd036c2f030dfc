"""The endpoint: its routes, and the way of a request through them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Receive

from emo_export.base.shown import on_one_line
from emo_export.errors import EmoExportError
from emo_export.runtimes.serving import Piece, UnservableError
from emo_export.runtimes.template import Template
from emo_export.service.guard import Guard
from emo_export.service.job import Desk, Job
from emo_export.service.refusal import Refusal
from emo_export.service.replies import Chat, Completion, Shape
from emo_export.service.request import Asked, parse_chat, parse_completion, parse_json
from emo_export.service.stream import Stream

LOG = logging.getLogger("uvicorn.error")
MOST_BYTES = 1 << 20  # of a request
BODY_SECONDS = 10.0  # until all of it is here
CLIENT_CLOSED = 499  # nginx's status for a client that is gone; nobody reads it


@dataclass(frozen=True)
class Served:
    """A model behind the endpoint; `created` is the time of its files, in seconds."""

    desk: Desk
    template: Template | None
    created: int


@dataclass(frozen=True)
class Rules:
    """`key`: the API key. `origins`: whose pages may ask. `seconds`: for an answer."""

    key: str | None
    origins: Sequence[str]
    seconds: float


class Service:
    """Models, by the names that requests choose them by, and the application that serves them."""

    def __init__(self, models: Mapping[str, Served], rules: Rules) -> None:
        self._models, self._rules = models, rules
        self.app = self._application()

    def leave_all(self, why: str) -> None:
        """End every answer."""
        for served in self._models.values():
            served.desk.leave_all(why)

    def _application(self) -> Starlette:
        rules = self._rules
        guards = [Middleware(Guard, key=rules.key, origins=rules.origins)]
        if rules.origins:
            allowed: dict[str, Any] = {"allow_origins": rules.origins}
            allowed |= {"allow_methods": ["GET", "POST"], "allow_headers": ["*"]}
            guards.insert(0, Middleware(CORSMiddleware, **allowed))
        return Starlette(
            routes=[
                Route("/health", self._health),
                Route("/v1/models", self._list),
                Route("/v1/models/{name}", self._one),
                Route("/v1/completions", self._completions, methods=["POST"]),
                Route("/v1/chat/completions", self._chat, methods=["POST"]),
            ],
            middleware=guards,
            exception_handlers={
                Refusal: _refused,
                HTTPException: _no_route,
                ClientDisconnect: _left,
                UnservableError: _unservable,
                EmoExportError: _failed,
                Exception: _bug,
            },
        )

    async def _health(self, request: Request) -> Response:
        return JSONResponse({"status": "ok"})

    async def _list(self, request: Request) -> Response:
        data = [_described(name, served) for name, served in self._models.items()]
        return JSONResponse({"object": "list", "data": data})

    async def _one(self, request: Request) -> Response:
        name = request.path_params["name"]
        return JSONResponse(_described(name, self._chosen(name)))

    async def _completions(self, request: Request) -> ASGIApp:
        body = await _body(request)
        served = self._chosen(body.get("model"))
        asked = parse_completion(body, served.desk.answering.context_length)
        return await self._answered(request, served.desk, asked, Completion)

    async def _chat(self, request: Request) -> ASGIApp:
        body = await _body(request)
        served = self._chosen(body.get("model"))
        if served.template is None:
            raise Refusal(
                HTTPStatus.NOT_FOUND,
                f"{served.desk.name} has no chat template: it writes texts on, and does not "
                "converse; use /v1/completions",
            )
        context, write = served.desk.answering.context_length, served.template.write
        # A template is a program, and may take its time.
        asked = await asyncio.to_thread(parse_chat, body, context, write)
        return await self._answered(request, served.desk, asked, Chat)

    def _chosen(self, name: object) -> Served:
        """The model by a name; the only one for a request that names none."""
        if name is None and len(self._models) == 1:
            return next(iter(self._models.values()))
        if isinstance(name, str) and name in self._models:
            return self._models[name]
        raise Refusal(
            HTTPStatus.NOT_FOUND,
            f"model: there is no {str(name)[:200]!r}; there is {', '.join(self._models)}",
            param="model",
            code="model_not_found",
        )

    async def _answered(
        self, request: Request, desk: Desk, asked: Asked, shape: Callable[[str, bool], Shape]
    ) -> ASGIApp:
        form = shape(desk.name, asked.wanted.alternatives is not None)
        deadline = asyncio.get_running_loop().time() + self._rules.seconds
        job = desk.admit(asked.wanted)
        watch = asyncio.create_task(_leave_when_gone(request.receive, job))
        handed_on = False
        try:
            async with asyncio.timeout_at(deadline):
                batches = job.batches()
                pieces: list[Piece] = await anext(batches, [])
                if not pieces:
                    job.finish()  # before a stream's status, where it failed
                if asked.stream:
                    handed_on = True
                    return Stream(job, batches, pieces, form, asked.usage, deadline, watch)
                async for batch in batches:
                    pieces += batch
            return JSONResponse(form.whole(pieces, job.finish()))
        except TimeoutError as error:
            raise Refusal(
                HTTPStatus.GATEWAY_TIMEOUT,
                f"no answer within {self._rules.seconds:g} seconds (--timeout)",
            ) from error
        finally:
            if not handed_on:
                job.leave()
                watch.cancel()


async def _leave_when_gone(receive: Receive, job: Job) -> None:
    """Leave the job when the client closes its connection, of which it has nothing more to say."""
    while (await receive())["type"] != "http.disconnect":
        pass
    job.leave()


async def _body(request: Request) -> Mapping[str, Any]:
    """The JSON of a request. Raises Refusal for another type, too many bytes and too slow ones."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        # A page of another site may send text/plain without asking the browser first.
        raise Refusal(
            HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
            f"the Content-Type is {kind[:100]!r}, expected application/json",
        )
    data = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for part in request.stream():
                data += part
                if len(data) > MOST_BYTES:
                    raise Refusal(
                        HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
                        f"the request has more than {MOST_BYTES} bytes",
                    )
    except TimeoutError as error:
        raise Refusal(
            HTTPStatus.REQUEST_TIMEOUT, f"the request was not here in {BODY_SECONDS:g} seconds"
        ) from error
    return parse_json(bytes(data))


def _described(name: str, served: Served) -> dict[str, Any]:
    return {
        "id": name,
        "object": "model",
        "created": served.created,
        "owned_by": "emo-export",
    }


async def _refused(request: Request, error: Exception) -> Response:
    if not isinstance(error, Refusal):
        raise error
    return JSONResponse(error.body, error.status, error.headers)


async def _no_route(request: Request, error: Exception) -> Response:
    if not isinstance(error, HTTPException):
        raise error
    status = HTTPStatus(error.status_code)
    text = f"{request.method} {request.url.path[:200]}: {status.phrase}"
    return JSONResponse(Refusal(status, text).body, status, error.headers)


async def _left(request: Request, error: Exception) -> Response:
    return Response(status_code=CLIENT_CLOSED)


async def _unservable(request: Request, error: Exception) -> Response:
    status = HTTPStatus.BAD_REQUEST
    return JSONResponse(Refusal(status, str(error), "prompt").body, status)


async def _failed(request: Request, error: Exception) -> Response:
    LOG.error("%s", on_one_line(str(error)))
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse(Refusal(status, str(error)).body, status)


async def _bug(request: Request, error: Exception) -> Response:
    # Its text may quote what is nobody's business; the traceback is on stderr.
    status = HTTPStatus.INTERNAL_SERVER_ERROR
    return JSONResponse(Refusal(status, "a bug in emo-export; its log has more").body, status)
