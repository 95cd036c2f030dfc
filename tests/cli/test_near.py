"""What was meant where a name is not known: in a word, and as each command tells it."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from emo_export.base.near import did_you_mean
from emo_export.cli.main import cli
from emo_export.errors import EmoExportError
from emo_export.model.overrides import parse_overrides
from emo_export.planning.profiles import device_profile
from emo_export.runtimes.devices.options import kind_of


def test_a_slip_is_near_and_another_word_is_not() -> None:
    assert did_you_mean("Exprot", ("export", "run")) == "; did you mean export?"
    assert did_you_mean("convert", ("export", "run")) == did_you_mean("", ("export",)) == ""


def test_a_command_is_told_of() -> None:
    done = CliRunner().invoke(cli, ["exprot"])
    assert done.exit_code == 2 and "no command exprot; did you mean export?" in done.output
    done = CliRunner().invoke(cli, ["convert"])
    assert done.exit_code == 2 and "no command convert\n" in done.output


@pytest.mark.parametrize(
    ("given", "meant"), [("head=q4_kk", "q4_k"), ("haed=q4_k", "head"), ("head=int44", None)]
)
def test_a_type_or_role_is_told_of(given: str, meant: str | None) -> None:
    with pytest.raises(EmoExportError) as stop:
        parse_overrides([given], {"gguf": ["q8_0", "q4_k"]})
    assert str(stop.value).endswith(f"; did you mean {meant}?") is (meant is not None)
    assert given in str(stop.value)


def test_a_device_and_a_profile_are_told_of() -> None:
    with pytest.raises(EmoExportError, match=r"; did you mean pi5-8gb\?$"):
        device_profile("pi5-8g")
    with pytest.raises(EmoExportError, match=r"; did you mean phone\?$"):
        kind_of("fone")
