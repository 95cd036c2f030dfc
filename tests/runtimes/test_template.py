"""Chat templates: what they write, and what they may not do."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.errors import EmoExportError
from emo_export.runtimes import rendering
from emo_export.runtimes.rendering import RefusedError, rendered
from emo_export.runtimes.template import Template

SAID = [("user", "a"), ("assistant", "b")]


def write(text: str) -> str:
    return rendered(text, {"bos_token": "<s>", "eos_token": "</s>"}, SAID)


def test_blocks_are_trimmed_and_special_tokens_known() -> None:
    text = (
        "{{ bos_token }}{% for m in messages %}\n  {% if true %}\n{{ m.role }}={{ m['content'] }};"
    )
    text += "{% endif %}\n{% endfor %}\n{% if add_generation_prompt %}\n>{% endif %}{{ eos_token }}"
    assert write(text) == "<s>user=a;assistant=b;></s>"


@pytest.mark.parametrize(
    "text",
    [
        "{{ raise_exception('roles must alternate') }}",
        "{{ messages.__class__.__mro__ }}",
        "{{ messages.append(1) }}",
        "{% for i in range(10 ** 9) %}{% endfor %}",
        "{{ 1 / 0 }}",
        "{{ nothing.at.all }}",
        "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}",
        r"{{ '\ud800' }}",
    ],
)
def test_what_a_template_refuses_or_may_not_do_is_told(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^refuses them"):
        write(text)


@pytest.mark.parametrize(
    "text", ["{% if %}", "{% for a in b %}" * 30 + "{% endfor %}" * 30, "{{" + "(" * 5000]
)
def test_no_template_at_all(text: str) -> None:
    with pytest.raises(RefusedError, match=r"^is no template"):
        write(text)


def test_a_prompt_of_any_length(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "LONGEST", 9)
    with pytest.raises(RefusedError, match="writes 10 characters, more than 9"):
        write("{{ ' ' * 10 }}")


@pytest.mark.slow
def test_what_never_ends_and_what_takes_all_memory_is_ended_and_told() -> None:
    loops = "{% for a in range(99999) %}" * 3 + "{% endfor %}" * 3
    text = (
        "{% set said = messages[0].content %}{% if said == 'loop' %}" + loops + "{% elif said =="
        " 'bomb' %}{{ said * 10 ** 9 }}{% endif %}{{ said }}"
    )
    template = Template(Path("x"), text, "", "", seconds=3)
    try:
        assert template.write([("user", "é")]) == "é"
        with pytest.raises(EmoExportError, match="chat template does not end within 3 seconds"):
            template.write([("user", "loop")])
        with pytest.raises(EmoExportError, match="chat template takes more than 512 MiB"):
            template.write([("user", "bomb")])
        assert template.write([("user", "b")]) == "b"
    finally:
        template.close()


@pytest.mark.slow
def test_the_file_of_what_is_no_template_is_named() -> None:
    with pytest.raises(EmoExportError, match="x: its chat template is no template"):
        Template(Path("x"), "{% if %}", "", "")
