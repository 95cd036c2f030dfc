"""SPEC.toml: what a sweep is made of, read strictly."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from emo_export.base.json_file import read_text
from emo_export.errors import EmoExportError
from emo_export.model.hub import locate
from emo_export.selection.keep import Keep
from emo_export.selection.method import Method
from emo_export.spec import Spec
from emo_export.text.documents import FIELD
from emo_export.text.sample import CALIBRATION_TOKENS

OWN, EVERY = "own", "all"
"""A variant is judged on held-out text of its own domain, or on that of each."""

EVERY_EXPERT = "all"
"""In `keep`: nothing is left out, for comparison."""

DOMAIN = re.compile(r"[A-Za-z0-9][\w.-]{0,63}", re.ASCII)  # it becomes part of a folder's name


@dataclass(frozen=True)
class Domain:
    """A kind of text: what experts are chosen for, and what the choice is judged on."""

    name: str
    calibration: tuple[Path, ...]
    heldout: tuple[Path, ...]


@dataclass(frozen=True)
class SweepOptions:
    """Options of `export` that go for every variant; those of one family to its targets alone."""

    calibration_tokens: int = CALIBRATION_TOKENS
    heldout_tokens: int = 4096
    seed: int = 0
    rescale: bool = False
    field: str = FIELD
    context: int | None = None
    tensor_type: tuple[str, ...] = ()
    block_size: int | None = None
    arch: str | None = None
    accuracy_level: int = 4
    last_logits: bool = False
    plain_attention: bool = False
    torch_device: str = "cpu"


MOST_BYTES = 128 << 10  # what tomllib takes grows faster than the text
MOST_DOTS = 256  # on a line: a key's parts cost the square of their number
LEAST = {"calibration_tokens": 2, "heldout_tokens": 2, "seed": 0, "context": 2}
ONE_OF: Mapping[str, Collection[object]] = {
    "block_size": (32, 64, 128),
    "arch": ("deepseek", "glm4moe"),
    "accuracy_level": (0, 4),
    "torch_device": ("cpu", "cuda"),
}


@dataclass(frozen=True)
class SweepSpec:
    """What is asked for. A `keep` of None: all experts."""

    checkpoint: Path
    domains: tuple[Domain, ...]
    keep: tuple[Keep | None, ...]
    targets: tuple[Spec, ...]
    methods: tuple[Method, ...] = (Method.ROUTER,)
    judge: str = OWN
    options: SweepOptions = field(default_factory=SweepOptions)


def read_spec(path: Path) -> SweepSpec:
    """Read the file; its paths are relative to its folder.

    Raises EmoExportError, which names the place, for anything that is not known, missing or of
    another type, and for files that are not there.
    """
    text = read_text(path, MOST_BYTES)
    for number, line in enumerate(text.split("\n"), 1):
        if line.count(".") > MOST_DOTS:
            raise EmoExportError(
                f"{path}: line {number} has more than {MOST_DOTS} dots; break a long list up"
            )
    try:
        raw = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: a number of too many digits, too
        raise EmoExportError(f"{path}: is not TOML ({error})") from error
    required = ("checkpoint", "keep", "targets", "domains")
    top = _Table(raw, str(path), (*required, "methods", "judge", "options"), required)
    methods = top.of("methods", list, [Method.ROUTER.value])
    judge = top.of("judge", str, OWN)
    if judge not in (OWN, EVERY):
        raise EmoExportError(f'{path}: judge: expected "{OWN}" or "{EVERY}", found {judge!r}')
    domains = top.of("domains", dict, {})
    keep = tuple(_keep(one, f"{path}: keep") for one in top.of("keep", list, []))
    targets = tuple(_target(one, f"{path}: targets") for one in top.of("targets", list, []))
    chosen = tuple(_method(one, f"{path}: methods") for one in methods)
    for name, listed in (("keep", keep), ("targets", targets), ("methods", chosen)):
        if not listed or len(set(listed)) != len(listed):
            raise EmoExportError(f"{path}: {name}: expected one or more, each of them once")
    if not domains:
        raise EmoExportError(f"{path}: domains: expected one or more tables, as [domains.code]")
    return SweepSpec(
        _checkpoint(top.of("checkpoint", str, ""), path),
        tuple(_domain(name, table, path) for name, table in domains.items()),
        keep,
        targets,
        chosen,
        judge,
        _options(top.of("options", dict, {}), f"{path}: options"),
    )


@contextmanager
def naming(where: str) -> Iterator[None]:
    """Put a place in front of what is wrong with it."""
    try:
        yield
    except EmoExportError as error:
        raise type(error)(f"{where}: {error}") from error


class _Table:
    """A table whose keys are known."""

    def __init__(
        self, raw: Any, where: str, known: Collection[str], required: Sequence[str] = ()
    ) -> None:
        if not isinstance(raw, dict):
            raise EmoExportError(f"{where}: expected a table, found {raw!r:.60}")
        for key in raw:
            if key not in known:
                raise EmoExportError(f"{where}: unknown key {key!r}; known are {', '.join(known)}")
        for key in required:
            if key not in raw:
                raise EmoExportError(f"{where}: {key} is missing")
        self._raw, self._where = raw, where

    def of(self, key: str, kind: type, default: Any) -> Any:
        """The value of a key, which is of that type, or the default."""
        value = self._raw.get(key, default)
        if key in self._raw and type(value) is not kind:  # true is an int to isinstance
            named = {list: "a list", dict: "a table", str: "a text", int: "a whole number"}
            expected = named.get(kind, "true or false")
            raise EmoExportError(f"{self._where}: {key}: expected {expected}, found {value!r:.60}")
        return value


def _keep(raw: object, where: str) -> Keep | None:
    if raw == EVERY_EXPERT:
        return None
    if type(raw) not in (int, str):
        raise EmoExportError(f'{where}: expected 8, "25%" or "all", found {raw!r:.60}')
    with naming(where):
        return Keep.parse(str(raw))


def _target(raw: object, where: str) -> Spec:
    if not isinstance(raw, str):
        raise EmoExportError(f'{where}: expected texts, as "gguf:q4_k_m", found {raw!r:.60}')
    with naming(where):
        return Spec.parse(raw)


def _method(raw: object, where: str) -> Method:
    known = [method.value for method in Method]
    if raw not in known:
        raise EmoExportError(f"{where}: expected some of {', '.join(known)}, found {raw!r:.60}")
    return Method(raw)


def _beside(text: str, where: str, spec: Path) -> Path:
    """A place that a spec names, which the system can look for."""
    try:
        place = spec.parent / Path(text).expanduser()
        place.resolve().exists()
    except (OSError, RuntimeError, ValueError) as error:  # a long name, no such home, a zero byte
        raise EmoExportError(f"{where}: {text!r:.200} is no place ({error})") from error
    return place


def _checkpoint(text: str, spec: Path) -> Path:
    """A folder beside the spec, or a Hugging Face id, fetched."""
    beside = _beside(text, f"{spec}: checkpoint", spec)
    found = beside if beside.exists() else locate(text)
    if not found.is_dir():
        raise EmoExportError(f"{spec}: checkpoint: there is no folder {beside}")
    return found.resolve()


def _domain(name: str, raw: object, spec: Path) -> Domain:
    where = f"{spec}: domains.{name}"
    if not DOMAIN.fullmatch(name):
        raise EmoExportError(
            f"{where}: it names folders, so letters, digits, '.', '_' and '-', up to 64"
        )
    keys = ("calibration", "heldout")
    table = _Table(raw, where, keys, keys)
    return Domain(name, *(_places(table.of(key, list, []), f"{where}.{key}", spec) for key in keys))


def _places(raw: Sequence[object], where: str, spec: Path) -> tuple[Path, ...]:
    if not raw or not all(isinstance(one, str) and one for one in raw):
        raise EmoExportError(f"{where}: expected a list of files or folders, found {raw!r:.60}")
    found = tuple(_beside(str(one), where, spec).resolve() for one in raw)
    for path in found:
        if not path.is_file() and not path.is_dir():
            raise EmoExportError(f"{where}: there is no file or folder {path}")
    return found


def _options(raw: Mapping[str, object], where: str) -> SweepOptions:
    defaults = SweepOptions()
    table = _Table(raw, where, [option.name for option in fields(SweepOptions)])
    given: dict[str, Any] = {}
    for key in raw:
        default = getattr(defaults, key)
        kind = {"context": int, "block_size": int, "arch": str}.get(key, type(default))
        value = table.of(key, list if kind is tuple else kind, default)
        if key in LEAST and value < LEAST[key]:
            raise EmoExportError(f"{where}: {key}: expected at least {LEAST[key]}, found {value}")
        if key in ONE_OF and value not in ONE_OF[key]:
            known = ", ".join(map(str, ONE_OF[key]))
            raise EmoExportError(f"{where}: {key}: expected one of {known}, found {value!r}")
        if kind is tuple and not all(isinstance(one, str) for one in value):
            raise EmoExportError(f"{where}: {key}: expected a list of texts, found {value!r:.60}")
        given[key] = tuple(value) if kind is tuple else value
    return SweepOptions(**given)
