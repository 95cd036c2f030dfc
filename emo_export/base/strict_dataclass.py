"""Reading a dataclass back from parsed JSON: every key known, none missing, every type right."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from emo_export.errors import EmoExportError

T = TypeVar("T")


def read_dataclass(kind: type[T], raw: object, where: str) -> T:
    """Build a dataclass of plain values, tuples, string-keyed mappings and dataclasses.

    A null is NaN where a float is expected, as `as_dict` writes it. Raises EmoExportError naming
    the place within `where` for an unknown or missing key or a value of another type.
    """
    if not isinstance(raw, dict):
        raise _wrong(where, "an object", raw)
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    unknown, missing = sorted(set(raw) - set(names)), [n for n in names if n not in raw]
    if unknown or missing:
        found = [f"unknown {', '.join(map(str, unknown))}"] if unknown else []
        found += [f"missing {', '.join(missing)}"] if missing else []
        raise EmoExportError(
            f"{where}: {'; '.join(found)}; was it written by another version of emo-export?"
        )
    hints = get_type_hints(kind)
    return kind(**{name: _read(hints[name], raw[name], f"{where}.{name}") for name in names})


def _read(kind: Any, raw: object, where: str) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if kind is Any:
        return raw
    if origin in (Union, types.UnionType):
        (some,) = (option for option in inner if option is not types.NoneType)
        return None if raw is None else _read(some, raw, where)
    if origin is tuple:
        if not isinstance(raw, list | tuple):
            raise _wrong(where, "a list", raw)
        return tuple(_read(inner[0], item, f"{where}[{i}]") for i, item in enumerate(raw))
    if origin is Mapping:
        if not isinstance(raw, dict) or not all(isinstance(key, str) for key in raw):
            raise _wrong(where, "an object", raw)
        return {key: _read(inner[1], value, f"{where}.{key}") for key, value in raw.items()}
    if is_dataclass(kind) and isinstance(kind, type):
        return read_dataclass(kind, raw, where)
    return _plain(kind, raw, where)


def _plain(kind: type, raw: object, where: str) -> object:
    if kind is float:
        if raw is None:
            return float("nan")
        if isinstance(raw, int | float) and not isinstance(raw, bool):
            return float(raw)
    elif type(raw) is kind:  # true is an int to isinstance
        return raw
    raise _wrong(where, {float: "a number", int: "a whole number"}.get(kind, kind.__name__), raw)


def _wrong(where: str, expected: str, raw: object) -> EmoExportError:
    return EmoExportError(f"{where}: expected {expected}, found {raw!r:.60}")
