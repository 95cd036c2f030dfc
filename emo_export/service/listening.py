"""The socket, and uvicorn on it until a signal ends it."""

from __future__ import annotations

import asyncio
import ipaddress
import signal
import socket
from collections.abc import Callable
from types import FrameType

import uvicorn

from emo_export.base.uninterrupted import SIGNALS
from emo_export.errors import EmoExportError
from emo_export.service.app import Service
from emo_export.service.connection import Connection

LOOK_SECONDS = 0.05
GRACE_SECONDS = 5.0  # for answers that are under way when a signal comes
BACKLOG = 128


def bind(host: str, port: int) -> socket.socket:
    """A socket that is bound, not yet listening; port 0 takes a free one.

    Raises EmoExportError for a host that is none of this machine's and a port that is taken.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        bound = socket.socket(family, kind, protocol)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
            bound.listen(BACKLOG)
        except BaseException:
            bound.close()
            raise
    except (OSError, OverflowError, UnicodeError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise EmoExportError(
            f"can't listen on {host} port {port}: {reason}; choose another with --host and --port "
            "(0 takes a free one)"
        ) from error
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Whether only this machine can reach a bound socket."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def url_of(bound: socket.socket) -> str:
    """Where clients find it."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


class _Server(uvicorn.Server):
    """Answers under way have a few seconds when it is told to end, and are then told so."""

    def __init__(self, config: uvicorn.Config, service: Service, ready: Callable[[], None]) -> None:
        super().__init__(config)
        self._service, self._ready = service, ready
        self._hurried = False

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the second ends answers at once, and the third without a word to them."""
        if self.should_exit and not self._hurried:
            self._hurried = True
        else:
            super().handle_exit(sig, frame)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        self._ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        ending = asyncio.create_task(self._end_later())
        await super().shutdown(sockets)
        ending.cancel()

    async def _end_later(self) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + GRACE_SECONDS
        while loop.time() < end and not self._hurried:
            await asyncio.sleep(LOOK_SECONDS)  # a signal's handler may not touch the loop
        self._service.leave_all("the server ends")


def listen(service: Service, bound: socket.socket, ready: Callable[[], None]) -> None:
    """Serve until SIGTERM or SIGHUP, which return, or SIGINT, which raises KeyboardInterrupt.

    `ready` is called once requests are answered. A second signal ends answers at once.
    """
    config = uvicorn.Config(
        service.app,
        http=Connection,  # also where httptools is installed, which bounds no header
        ws="none",
        log_level="warning",
        access_log=False,
        lifespan="off",
        server_header=False,
    )
    server = _Server(config, service, ready)

    def end(number: int, frame: FrameType | None) -> None:
        server.handle_exit(number, frame)

    # uvicorn takes SIGINT and SIGTERM for itself, and afterwards has these hear them.
    ours = [number for number in SIGNALS if number != signal.SIGINT]
    ours = [number for number in ours if signal.getsignal(number) is not signal.SIG_IGN]  # nohup
    handlers = {number: signal.signal(number, end) for number in ours}
    try:
        server.run(sockets=[bound])
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
