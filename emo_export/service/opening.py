"""The planned models, opened side by side."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack

from emo_export.runtimes.answering import open_answering
from emo_export.runtimes.families import family_at
from emo_export.runtimes.template import template_of
from emo_export.service.app import Served
from emo_export.service.job import Desk
from emo_export.service.plans import Plan, Settings


def open_all(plans: Sequence[Plan], settings: Settings, stack: ExitStack) -> dict[str, Served]:
    """Name -> model, closed with the stack. Raises EmoExportError where one can't be opened."""
    found = {}
    for plan in plans:
        template = template_of(plan.path)
        if template is not None:
            stack.callback(template.close)
        answering = open_answering(
            plan.path, plan.need, plan.places, settings.threads, settings.kv_cache
        )
        desk = Desk(plan.name, answering, settings.queue)
        stack.callback(desk.close)
        files = family_at(plan.path).files(plan.path)
        created = max(int(file.stat().st_mtime) for file in files)
        found[plan.name] = Served(desk, template, created)
    return found
