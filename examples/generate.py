"""Generate text from an exported folder with the light install, and no command line.

python examples/generate.py out/emo-nano/onnx-int4 "def main("
python examples/generate.py out/emo-nano/model-Q4_0.gguf "def main("
"""

from __future__ import annotations

import sys
from pathlib import Path

from emo_export.runtimes.generate import generate
from emo_export.runtimes.opening import open_runtime, tokenizer_of


def main() -> None:
    """Stream 64 tokens."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/generate.py MODEL PROMPT")
    path, prompt = Path(sys.argv[1]), sys.argv[2]
    runtime = open_runtime(path, threads=None)
    tokenizer = tokenizer_of(path, runtime)
    for text in generate(
        runtime,
        tokenizer,
        tokenizer.encode(prompt),
        max_tokens=64,
        temperature=0.7,
        top_p=0.95,
        seed=0,
    ):
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
