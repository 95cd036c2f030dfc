"""The measured process of `bench`: opens one model and times it on request.

Requests come as JSON lines on stdin, answers go to what stdout was; libraries that write to stdout
write to stderr here. It ends when stdin does.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError, MissingDependencyError
from emo_export.interfaces import Runtime
from emo_export.runtimes.opening import open_runtime
from emo_export.runtimes.timing import read_through, time_decode, time_prefill


class Measured:
    """One opened model; every request is a method that answers a JSON object."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None

    def answer(self, request: Mapping[str, Any]) -> dict[str, Any]:
        """Do what a request says. Raises EmoExportError when the engine refuses."""
        if request["do"] == "open":
            return self._open(request)
        if self._runtime is None:
            raise EmoExportError("nothing has been opened")
        if request["do"] == "prefill":
            return {"seconds": time_prefill(self._runtime, request["tokens"])}
        return {"seconds": time_decode(self._runtime, request["tokens"], request["depth"])}

    def _open(self, request: Mapping[str, Any]) -> dict[str, Any]:
        path = Path(request["path"])
        if request["kind"] == "olmoe":
            from emo_export.bench.olmoe import OlmoeStandIn

            start = time.perf_counter()
            self._runtime = OlmoeStandIn(path, request["threads"])
        else:
            read_through(path)  # from here on the disk has no part in it
            start = time.perf_counter()
            self._runtime = open_runtime(path, request["threads"], kv_cache=request.get("kv_cache"))
        seconds, context = time.perf_counter() - start, self._runtime.context_length
        if context < request["positions"]:
            raise EmoExportError(
                f"--prefill, or --depth with --decode, needs {request['positions']} positions: "
                f"they exceed the context of {context}"
            )
        return {"seconds": seconds, "engine": dict(self._runtime.describe())}


def main() -> None:
    """Answer requests until stdin ends."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    measured = Measured()
    for line in sys.stdin:
        try:
            found = measured.answer(json.loads(line))
        except EmoExportError as error:
            missing = isinstance(error, MissingDependencyError)
            found = {"error": str(error), "missing": missing}
        answers.write(json.dumps(found) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()
