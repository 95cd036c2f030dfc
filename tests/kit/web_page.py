"""What a reader does on the page of examples/web, and sees there."""

from __future__ import annotations

import json

from tests.kit.browsing import Browser, Site

READY = "document.documentElement.dataset.ready !== undefined"
STATUS = "document.getElementById('status').value"
ERROR = "document.getElementById('error').textContent"
TEXT = "document.getElementById('out').textContent"
LIST = "[...document.querySelectorAll('#models .what')].map((what) => what.textContent)"
FOLDER = "onnx-int4-if"


def show(page: Browser, site: Site) -> None:
    page.do("navigate", site.url)
    page.until(READY)


def press(page: Browser, name: str) -> None:
    """A button by its name; the list's buttons have that of the package in theirs."""
    found = f"[...document.querySelectorAll('button')].find((b) => b.innerText === {name!r})"
    page.js(f"{found}.click()")


def load(page: Browser) -> None:
    press(page, "Load")
    page.until(f"{STATUS} === 'ready'")


def write(page: Browser, prompt: str = "def main(", **values: object) -> str:
    for name, value in {"prompt": prompt, "temperature": 0, "count": 16, **values}.items():
        page.js(f"document.forms.write.elements[{name!r}].value = {json.dumps(value)}")
    press(page, "Write")
    page.until(f"{STATUS}.startsWith('done') || {ERROR}")
    return str(page.js(f"{ERROR} || {TEXT}"))


def refused(page: Browser, says: str) -> None:
    page.until(f"{ERROR}.includes({says!r})")
