"""The process in which an engine is judged.

    python -m emo_export.judging.child JSON

JSON has target, path, golden, threads and kv_cache. Says a line of JSON on stdout whenever the
engine answered, and the verdict in the last; what libraries say goes to stderr.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from emo_export.errors import EmoExportError
from emo_export.judging.here import judge
from emo_export.parity.golden import Golden
from emo_export.spec import Spec


def main() -> None:
    """Judge one target."""
    asked: dict[str, Any] = json.loads(sys.argv[1])
    with os.fdopen(os.dup(1), "w", encoding="utf-8") as answers:
        os.dup2(2, 1)

        def tell(**said: Any) -> None:
            answers.write(json.dumps(said) + "\n")
            answers.flush()

        try:
            result = judge(
                Spec.parse(asked["target"]),
                Path(asked["path"]),
                Golden.load(Path(asked["golden"])),
                asked["threads"],
                asked["kv_cache"],
                on_answer=tell,
            )
        except EmoExportError as error:
            tell(error=str(error), exit_code=error.exit_code)
        else:
            tell(result=result.as_dict())


if __name__ == "__main__":
    main()
