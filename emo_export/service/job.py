"""One answer under way: an engine's thread writes it, the event loop reads it."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, ThreadPoolExecutor
from http import HTTPStatus

from starlette.requests import ClientDisconnect

from emo_export.runtimes.serving import Answering, Finish, Piece, Wanted
from emo_export.service.refusal import Refusal

MOMENT = 0.01
"""Seconds. A small model writes ten tokens meanwhile, and each wake of the loop costs it one."""


class Job:
    """What a request waits for; a Listener."""

    def __init__(self) -> None:
        self.gone = False
        self.ended_by: str | None = None  # why we, not the client, gave it up
        self._pieces: deque[Piece] = deque()
        self._stirred, self._told = asyncio.Event(), False
        self._over = asyncio.Event()
        self._loop = asyncio.get_running_loop()
        self._future: Future[Finish]

    def begin(
        self,
        answer: Callable[[], Finish],
        threads: ThreadPoolExecutor,
        left: Callable[[], None],
    ) -> None:
        """Have one of the threads answer, when its turn comes; `left` is called once it is over."""
        self._future = threads.submit(answer)
        self._future.add_done_callback(lambda _: self._soon(left))
        self._future.add_done_callback(lambda _: self._soon(self._end))

    def _soon(self, call: Callable[[], None]) -> None:
        """Have the loop call, from any thread; where it has ended nobody waits."""
        with contextlib.suppress(RuntimeError):
            self._loop.call_soon_threadsafe(call)

    def _end(self) -> None:
        self._over.set()
        self._stirred.set()

    def hear(self, piece: Piece) -> None:
        """Take a piece, in the engine's thread; the loop is woken once for all it hasn't seen."""
        self._pieces.append(piece)
        if not self._told:
            self._told = True
            self._soon(self._stirred.set)

    def leave(self, why: str | None = None) -> None:
        """Nobody waits any more: take it out of the queue, or stop the engine at its next step."""
        self.gone = True
        self.ended_by = self.ended_by or why
        self._future.cancel()
        self._end()

    async def batches(self) -> AsyncIterator[list[Piece]]:
        """The pieces as they come: all that are there, and then for a moment none."""
        while True:
            await self._stirred.wait()
            self._stirred.clear()
            over = self._future.done()
            batch = [self._pieces.popleft() for _ in range(len(self._pieces))]
            if batch:
                yield batch
            if over or self.gone:
                return
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(MOMENT):
                    await self._over.wait()
            self._told = False
            if self._pieces:
                self._stirred.set()

    def finish(self) -> Finish:
        """How it ended, once all batches were read. Raises what the engine raised.

        Raises ClientDisconnect where the client, and Refusal where the server gave it up.
        """
        if self.ended_by is not None:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, self.ended_by)
        if self.gone:
            raise ClientDisconnect
        return self._future.result(timeout=0)


class Desk:
    """One model and its queue: so many answers at once, and so many that wait for their turn."""

    def __init__(self, name: str, answering: Answering, queue: int) -> None:
        self.name, self.answering = name, answering
        self.room = answering.places + queue
        self._jobs: set[Job] = set()
        self._ended_by: str | None = None
        self._threads = ThreadPoolExecutor(answering.places, thread_name_prefix=f"serve-{name}")

    @property
    def busy(self) -> int:
        """Requests that are being answered or wait."""
        return len(self._jobs)

    def admit(self, wanted: Wanted) -> Job:
        """Take a request in, or raise Refusal where the queue is full or the server ends."""
        if self._ended_by is not None:  # while the request came in, or its template was slow
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, self._ended_by)
        if self.busy >= self.room:
            raise Refusal(
                HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.busy} requests are being answered or wait, which is all that may: try "
                "again later, or raise --queue",
                code="queue_full",
                headers={"Retry-After": "1"},
            )
        job = Job()
        self._jobs.add(job)
        job.begin(
            lambda: self.answering.answer(wanted, job),
            self._threads,
            lambda: self._jobs.discard(job),
        )
        return job

    def leave_all(self, why: str) -> None:
        """End every answer, and begin no other."""
        self._ended_by = why
        for job in list(self._jobs):
            job.leave(why)

    def close(self) -> None:
        """Stop what is still under way, and free the model. The loop may have ended."""
        for job in list(self._jobs):
            job.gone = True
        self._threads.shutdown(cancel_futures=True)
        self.answering.close()
