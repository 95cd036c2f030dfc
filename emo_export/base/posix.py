"""What Windows lacks and the work of some commands stands on."""

from __future__ import annotations

import sys

from emo_export.errors import EmoExportError


def need_posix() -> None:
    """Raise EmoExportError on Windows, which has neither locks of folders nor our kind of child."""
    if sys.platform == "win32":
        raise EmoExportError(
            "this command holds locks and watches child processes as Linux and macOS have them; on "
            "Windows use it in WSL (run, inspect, plan and verify work without)"
        )
