"""Chat templates: what they write, and what they may not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes.template import Template

SAID = [("user", "a"), ("assistant", "b")]


def template(text: str) -> Template:
    return Template(Path("x"), text, "<s>", "</s>")


def test_blocks_are_trimmed_and_special_tokens_known() -> None:
    text = (
        "{{ bos_token }}{% for m in messages %}\n  {% if true %}\n{{ m.role }}={{ m['content'] }};"
    )
    text += "{% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>{% endif %}{{ eos_token }}"
    assert template(text).write(SAID) == "<s>user=a;assistant=b;></s>"


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_told(text: str) -> None:
    with pytest.raises(EmoExportError, match="the model's chat template refuses them"):
        template(text).write(SAID)


def test_no_template_at_all() -> None:
    with pytest.raises(EmoExportError, match="is no template"):
        template("{% if %}")
