"""Which text was read, in sentences."""

from __future__ import annotations

from emo_export.text.places import Texts, named


def passed_over(texts: Texts) -> str:
    """What of folders was not read; empty for nothing."""
    kinds = [
        f"{count} {what}"
        for count, what in (
            (texts.not_text, "empty or not UTF-8 text"),
            (texts.hidden, "hidden, vendored or links to folders"),
        )
        if count
    ]
    if not kinds:
        return ""
    return f"text is read from {named(texts.files)}; passed over beside: {', '.join(kinds)}"
