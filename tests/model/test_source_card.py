"""The licence and the name of a checkpoint, for the cards of what is made of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from emo_export.model.source_card import hub_id, licence_of


@pytest.mark.parametrize(
    ("card", "want"),
    [
        ("---\nlicense: apache-2.0\ntags:\n- emo\n---\n# x", {"license": "apache-2.0"}),
        ("---\r\nlicense: 'mit'\r\n---\r\n", {"license": "mit"}),
        (
            "---\nlicense: other\nlicense_name: llama3\nlicense_link: https://a.b/c\n---\n",
            {"license": "other", "license_name": "llama3", "license_link": "https://a.b/c"},
        ),
        ("# no head\nlicense: mit\n", {"license": "unknown"}),
        ("---\nlicense: [a, b]\n---\n", {"license": "unknown"}),
        ("---\ntags: x\n---\nlicense: mit\n---\n", {"license": "unknown"}),
        ("---\nlicense: mit:\n---\n", {"license": "unknown"}),  # a key, in YAML
        ("---" + "\n" * ((1 << 20) - 4) + "x", {"license": "unknown"}),  # in linear time
        ("---\nlicense: " + "a" * (1 << 20) + "\n---\n", {"license": "unknown"}),
    ],
)
def test_licences(card: str, want: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(card, "utf-8", newline="")
    assert licence_of(tmp_path) == want


def test_no_card(tmp_path: Path) -> None:
    assert licence_of(tmp_path) == {"license": "unknown"}


def test_a_folder_of_the_hub_s_cache_is_named(tmp_path: Path) -> None:
    assert hub_id(tmp_path / "hub/models--allenai--Emo_1b14b_1T/snapshots/0f3a") == (
        "allenai/Emo_1b14b_1T"
    )
    for other in (
        "models--a--b\nlicense: mit/snapshots/0f",
        "models--allenai--x/main/0f",
        "datasets--a--b/snapshots/0f",
        "emo",
        "a/b/c",
    ):
        assert hub_id(tmp_path / other) is None
