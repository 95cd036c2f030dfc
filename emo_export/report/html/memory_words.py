"""What the report's page says of memory and speed on a device."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from emo_export.base.ram_size import shown
from emo_export.parity.result import Result
from emo_export.report.html.words import joined


class Part(NamedTuple):
    """A line of the table of what a target needs: its name, its key in `needs`, its bytes."""

    name: str
    key: str
    nbytes: int


MEASURED = {
    "anonymous": "anonymous, the KV cache in it",
    "weights_mapped": "weights read from the mapped file",
    "libraries": "libraries and other files",
    "total": "all together",
}
KNOWN = {"cache": "KV cache", "least": "weights and KV cache"}
BYTES = {
    "limit": "limit",
    "peak": "most at one time, anonymous and file-backed",
    "peak_anonymous": "most anonymous at one time",
    "peak_file": "most file-backed at one time",
    "base_anonymous": "before the model was opened: anonymous",
    "base_file": "before the model was opened: file-backed",
    "base_model": "before the model was opened: of the model's files",
    "at_peak_anonymous": "in the look that counts: anonymous",
    "at_peak_file": "in the look that counts: file-backed",
    "at_peak_model": "in the look that counts: of the model's files",
    "emulator_bytes": "the emulator's own, in no other figure",
}
TOLD_ABOVE = (*BYTES, "samples", "needs", "held_by", "too_small", "enforced", "finished")


def parts(memory: Mapping[str, Any]) -> list[Part]:
    """What a target needs, piece by piece; without a run only what its headers tell."""
    needs = memory.get("needs")
    if not isinstance(needs, Mapping):
        return []
    names = MEASURED if needs["measured"] else KNOWN
    return [Part(name, key, needs[key]) for key, name in names.items()]


def sizes(memory: Mapping[str, Any]) -> list[Part]:
    """What was sampled, in bytes; nothing for a moment that was not seen."""
    found = [(name, key, memory.get(key)) for key, name in BYTES.items()]
    return [Part(name, key, value) for name, key, value in found if isinstance(value, int)]


def other(memory: Mapping[str, Any]) -> dict[str, Any]:
    """Facts that no sentence and no table tells."""
    return {
        key.replace("_", " "): value
        for key, value in memory.items()
        if key not in TOLD_ABOVE and value not in (None, False, {}, [])
    }


def about_need(result: Result) -> Iterator[str]:
    """Whether the memory that was asked for holds the target, in sentences; none if not asked."""
    memory = result.memory or {}
    if not isinstance(memory.get("needs"), Mapping):
        return
    needs = memory["needs"]
    yield _verdict(result.target, needs)
    if needs["base"] is not None:
        yield f"Python and the engine took {shown(needs['base'])} before the model was opened."
    if held := memory.get("held_by"):
        yield f"Of the sizes that {result.device} is sold in, it fits into {joined(held)}."
    if small := memory.get("too_small"):
        yield f"It is too much for {joined(small)}."
    if "enforced" in memory:
        why = f": {memory['how']}" if memory.get("how") else ""
        yield "The limit was enforced." if memory["enforced"] else f"It was not enforced{why}."


def _verdict(target: str, needs: Mapping[str, Any]) -> str:
    cache = f"a KV cache of {shown(needs['cache'])} at {needs['context']} tokens"
    verdict = "which holds it" if needs["holds"] else "which is too little"
    may = f"may have {shown(needs['ram'])}, {verdict}"
    if needs["measured"]:
        return f"{target} needs {shown(needs['total'])} with {cache}; it {may}."
    if needs["oom_killed"]:
        return (
            f"{target} {may}: the system ended it there. Its weights and {cache} alone are "
            f"{shown(needs['least'])}."
        )
    return (
        f"{target} needs at least {shown(needs['total'])} for its weights and {cache}, by its "
        f"headers; it {may}, so it was not run."
    )


def about_samples(
    target: str, memory: Mapping[str, Any], samples: Sequence[tuple[float, float, float]]
) -> str:
    """The message of memory over time: each kind at its highest, and the limit."""
    text = f"{target}: anonymous memory at most {_most(memory, 'peak_anonymous', samples, 1)}, "
    text += f"file-backed at most {_most(memory, 'peak_file', samples, 2)}."
    limit = memory.get("limit")
    if isinstance(limit, int | float):
        held = "enforced" if memory.get("enforced") else "not enforced"
        text += f" Limit: {shown(limit)}, {held}."
    if memory.get("emulator_bytes"):
        text += f" The emulator's own {shown(memory['emulator_bytes'])} are not in it."
    return text


def _most(
    memory: Mapping[str, Any], key: str, samples: Sequence[tuple[float, float, float]], column: int
) -> str:
    """The highest sample and when it was; or the stated peak, whose sample may not be kept."""
    highest = max(samples, key=lambda sample: sample[column])
    stated = memory.get(key)
    if isinstance(stated, int | float) and stated > highest[column]:
        return shown(stated)
    return f"{shown(highest[column])} (at {highest[0]:.1f} s)"


def about_speed(speed: Mapping[str, Any]) -> str:
    """How speeds were measured."""
    how = speed["settings"]
    return (
        f"Medians of {how['rounds']}: a prompt of {how['prefill']} tokens at once; {how['decode']} "
        f"tokens one by one after {how['depth']}."
    )
