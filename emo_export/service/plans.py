"""The models that a path means, and what each will take. Light: it opens none."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from emo_export.files.domains import domain_folder, is_domains, read_domains
from emo_export.files.memory_need import Need
from emo_export.runtimes.answering import places_of
from emo_export.runtimes.families import family_at
from emo_export.runtimes.loading import first_that_runs


@dataclass(frozen=True)
class Settings:
    """As the options of `serve` describe them."""

    target: str | None
    domains: tuple[str, ...]
    threads: int | None
    context: int | None
    kv_cache: str | None
    parallel: int | None
    queue: int


@dataclass(frozen=True)
class Plan:
    """A model that is to be opened."""

    name: str
    path: Path
    places: int
    need: Need


def plans(path: Path, settings: Settings) -> list[Plan]:
    """What is to be opened, by the headers of the files. Raises EmoExportError."""
    if is_domains(path):
        names = settings.domains or tuple(read_domains(path))
        folders = {name: domain_folder(path, name) for name in names}
    elif settings.domains:
        folders = {settings.domains[0]: domain_folder(path, settings.domains[0])}  # raises
    else:
        # A folder's name may have dots: only a file has a suffix.
        whole = path.absolute()
        folders = {whole.stem if path.is_file() else whole.resolve().name: path}
    return [_plan(name, folder, settings) for name, folder in folders.items()]


def _plan(name: str, folder: Path, settings: Settings) -> Plan:
    target = first_that_runs(folder, settings.target)
    family = family_at(target)
    family.need_engine()
    need = family.need(target, settings.context, settings.kv_cache)
    return Plan(name, target, places_of(target, settings.parallel), need)
