"""Variants as tasks of a Dask cluster: workers on this machine, or those of a scheduler elsewhere.

Dask and not Ray: a cluster is two commands of a small Python package, without services, and its
LocalCluster is the same code on one machine. The tasks share nothing but a disk, so no other part
of either is of use here.
"""

from __future__ import annotations

import logging
import os
import re
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from emo_export.errors import EmoExportError
from emo_export.parity.outcome import Outcome
from emo_export.sweep.making import make
from emo_export.sweep.record import Asked, Record
from emo_export.sweep.variants import Variant

if TYPE_CHECKING:
    from distributed import Client, Future

LOCAL = "local"
DASK = re.compile(r"dask://([^/\s:]+|\[[\da-fA-F:]+\]):(\d{1,5})/?")
SCHEDULER_SECONDS, WORKER_SECONDS = 20, 60


@dataclass(frozen=True)
class Place:
    """Where tasks run: the address of a scheduler, or (None) `workers` processes here."""

    scheduler: str | None
    workers: int

    @classmethod
    def parse(cls, text: str, workers: int | None) -> Place:
        """`local` or `dask://HOST:PORT`. Raises EmoExportError for anything else."""
        if text == LOCAL:
            return cls(None, workers or 1)
        if text.startswith("ray://"):
            raise EmoExportError(
                f"--on {text}: Ray is not supported; start a Dask cluster on the same machines "
                "(dask scheduler, dask worker) and give dask://HOST:PORT"
            )
        found = DASK.fullmatch(text)
        if found is None:
            raise EmoExportError(f"--on {text}: expected local or dask://HOST:PORT")
        if workers is not None:
            raise EmoExportError(f"--workers is for --on {LOCAL}; a scheduler has its own")
        return cls(f"tcp://{found[1]}:{found[2]}", 0)


def outcomes(tasks: Sequence[tuple[Variant, Asked]], out: Path, place: Place) -> Iterator[Outcome]:
    """Make every variant; yields what became of each as it is done.

    Raises EmoExportError where there is no cluster. When the caller stops, what has not begun is
    not begun any more; workers here end, those elsewhere finish what they are at.
    """
    from distributed import as_completed

    with _connected(place) as client:
        run = uuid.uuid4().hex  # an earlier run's task of the same name may still be there
        waiting = list(reversed(tasks))
        futures: dict[Future, tuple[Variant, Asked]] = {}
        done = as_completed(loop=client.loop)
        try:
            while waiting or futures:
                # One for each worker: the end of a worker is blamed on all that it was given.
                while waiting and len(futures) < max(1, len(client.nthreads())):
                    variant, asked = waiting.pop()
                    key = f"{variant.label.name}-{run}"
                    future = client.submit(make, variant, asked, out, key=key)
                    futures[future] = variant, asked
                    done.add(future)
                future = next(done)
                yield _told(future, *futures.pop(future), out)
        except BaseException:
            client.cancel(list(futures))
            raise


def _told(future: Future, variant: Variant, asked: Asked, out: Path) -> Outcome:
    """What a worker says of its variant, or that it can't say anything any more."""
    if future.status == "finished":
        outcome: Outcome = future.result()
        return outcome
    lost = Record(asked, None, _lost(variant, future.exception()))
    lost.save(out)
    return lost.outcome


def _lost(variant: Variant, error: BaseException | None) -> Outcome:
    """Of a task whose worker ended, or could not begin it."""
    text = f"its worker ended or could not run it: {type(error).__name__}: {error}"
    return Outcome(variant.label, 0.0, EmoExportError.exit_code, error=text)


@contextmanager
def _connected(place: Place) -> Iterator[Client]:
    from distributed import Client

    if place.scheduler is None:
        with _local(place.workers) as client:
            yield client
        return
    try:
        client = Client(place.scheduler, timeout=SCHEDULER_SECONDS, set_as_default=False)
    except OSError as error:
        raise EmoExportError(f"{place.scheduler}: no Dask scheduler answers ({error})") from error
    with client:
        try:
            client.wait_for_workers(1, timeout=WORKER_SECONDS)
        except TimeoutError as error:
            raise EmoExportError(
                f"{place.scheduler}: has no worker; start some with `dask worker`"
            ) from error
        yield client


@contextmanager
def _local(workers: int) -> Iterator[Client]:
    """Processes of this machine, that share its cores."""
    import dask
    from distributed import Client, LocalCluster

    threads = str(max(1, (os.cpu_count() or 1) // workers))
    settings = {
        "distributed.scheduler.allowed-failures": 0,  # what ended a worker would end the next
        "distributed.nanny.pre-spawn-environ.OMP_NUM_THREADS": threads,
    }
    with (
        dask.config.set(settings),
        LocalCluster(
            n_workers=workers,
            threads_per_worker=1,
            memory_limit=0,  # pages of mapped weights would count, which the system can drop
            dashboard_address=None,
            silence_logs=logging.CRITICAL,
        ) as cluster,
        Client(cluster, set_as_default=False) as client,
    ):
        yield client
