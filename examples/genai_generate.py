"""Generate text from an exported ONNX folder with onnxruntime-genai alone.

pip install "onnxruntime-genai>=0.18,<0.19"
python examples/genai_generate.py out/emo-nano/onnx-int4 "def main("
"""

from __future__ import annotations

import sys
from pathlib import Path

import onnxruntime_genai as og

TOKENS = 64


def main() -> None:
    """Stream the most likely text, up to TOKENS tokens of it."""
    if len(sys.argv) != 3:
        sys.exit("usage: python examples/genai_generate.py FOLDER PROMPT")
    if not (Path(sys.argv[1]) / "genai_config.json").is_file():
        sys.exit(f"{sys.argv[1]} has no genai_config.json: give the onnx-… folder of an export")
    model = og.Model(sys.argv[1])
    tokenizer = og.Tokenizer(model)
    ids = tokenizer.encode(sys.argv[2])
    if not len(ids):
        ids = [tokenizer.bos_token_id]
    params = og.GeneratorParams(model)
    # The KV cache is as long as this, so ask for no more than is needed.
    params.set_search_options(max_length=len(ids) + TOKENS)
    generator = og.Generator(model, params)
    generator.append_tokens(ids)
    stream = tokenizer.create_stream()
    while not generator.is_done():
        generator.generate_next_token()
        print(stream.decode(generator.get_next_tokens()[0]), end="", flush=True)
    print()


if __name__ == "__main__":
    main()
