"""Generate text from an exported folder with the light install, and no command line.

python examples/generate.py out/emo-nano/onnx-int4 "def main("
python examples/generate.py out/emo-nano/model-Q4_0.gguf "def main("
"""

from __future__ import annotations

import sys
from pathlib import Path

from emo_export.runtimes.generate import generate
from emo_export.runtimes.opening import open_runtime, tokenizer_of
from emo_export.runtimes.sampling import Sampling


def main() -> None:
    """Stream 64 tokens."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/generate.py MODEL PROMPT")
    path, prompt = Path(sys.argv[1]), sys.argv[2]
    runtime = open_runtime(path, threads=None)
    tokenizer = tokenizer_of(path, runtime)
    answer = generate(runtime, tokenizer, tokenizer.encode(prompt), Sampling(), max_tokens=64)
    for text in answer.texts():
        print(text, end="", flush=True)
    print()


if __name__ == "__main__":
    main()
